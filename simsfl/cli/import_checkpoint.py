"""Convert weights from the published program's layout."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from simsfl.cli.flags import add_config_flags, config_values
from simsfl.cli.presets import named
from simsfl.setup import assembly
from simsfl.setup.defaults import resolve
from simsfl.setup.weights import HALVES, Weights, from_published, mismatch
from simsfl.system.array_zip import ArrayZip
from simsfl.system.console import Output
from simsfl.system.outputs import Outputs
from simsfl.ui.arguments import Parser, fail, path

_ELSE_BYTES = 1 << 28
"""Bytes of a file besides its weights, at most: of names, and of weights of a network that is not the one asked for."""


def main(argv: Sequence[str] | None = None) -> int:
    """Read state dicts, match them with the network and write them; return the exit code."""
    parser = Parser(description=__doc__)
    parser.add_argument(
        "files", type=path, nargs="+", metavar="CLIENT.tar SERVER.tar", help="state dicts; either may be left out"
    )
    parser.add_argument("--out", type=path, metavar="FILE", help="file to write (default: the first, as .safetensors)")
    add_config_flags(parser, preset="paper")
    parser.dotted = ("arch",)  # other options make no other network
    try:
        arguments = parser.parse(argv)
        out = arguments.out or arguments.files[0].with_suffix(".safetensors")
        outputs = Outputs.of(out, "out")
        asked = replace(named(arguments.preset)[0], **config_values(arguments))
        config = resolve(asked.with_options(arguments.options))
        model = assembly.network(replace(config, image_size=config.image_size or 32), weights=False)
        halves: dict[str, dict[str, Tensor]] = {half: {} for half in HALVES}
        for file in arguments.files:
            given = _read(file, 16 * (model.client.size + model.server.size))
            wrong = {half: mismatch(getattr(model, half), given) for half in HALVES}
            half = next((half for half in HALVES if wrong[half] is None), None)
            if half is None:
                half = max(HALVES, key=lambda half: wrong[half][0])
                flags = f"--arch {config.arch}, --cut-layer {config.cut_layer}, --bottleneck {config.bottleneck}"
                raise ValueError(f"{file}: {wrong[half][1]}; allowed: a {half} of {flags}, --norm {config.norm}")
            if halves[half]:
                raise ValueError(f"files: {file} is a second {half}; allowed: one client and one server")
            halves[half] = from_published(getattr(model, half), given)
        with outputs.replacing(out.name) as file:
            Weights(", ".join(map(str, arguments.files)), config, **halves).save(file)
    except (ValueError, OSError) as error:
        return fail(error)
    start = f"start from it with --init-client {out}" + " --init-server" * bool(halves["server"])
    Output().say(
        f"wrote {out}: {start if halves['client'] else 'a server alone; import both halves to start from them'}"
    )
    return 0


def _read(file: Path, most: int) -> dict[str, Tensor]:
    """Read a state dict; nothing in the file is executed.

    Args:
        file: path of the file.
        most: bytes that its weights take at most; other content may take `_ELSE_BYTES`.

    Returns:
        Tensors by name, on the CPU.

    Raises:
        ValueError: the file is missing or damaged, or holds something other than a state dict of finite numbers.
    """
    if not file.is_file():
        raise ValueError(f"files: there is no file {file}; allowed: a file that torch.save wrote")
    if (size := file.stat().st_size) > most + _ELSE_BYTES:
        raise ValueError(f"files: {file} has {size:,} bytes; allowed: {most + _ELSE_BYTES:,} at most for this network")
    try:
        if zipfile.is_zipfile(file):
            ArrayZip(file, compressed=False)  # torch would unpack what is compressed, however large it is
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about foreign pickles; the errors below say more
            given = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or foreign file can raise anything
        raise ValueError(f"files: {file} is damaged, or holds more than tensors; allowed: a state dict") from error
    if not isinstance(given, dict) or not given or not all(isinstance(value, Tensor) for value in given.values()):
        raise ValueError(f"files: {file} holds no state dict; allowed: tensors by name")
    for name, tensor in given.items():
        if not isinstance(name, str):
            raise ValueError(f"files: {file} has a name of type {type(name).__name__}; allowed: texts")
        plain = tensor.layout is torch.strided and not (tensor.is_quantized or tensor.is_complex() or tensor.is_meta)
        if plain and tensor.nbytes > most:  # strides of 0 repeat a few numbers, which takes no room in the file
            size = f"{tensor.nbytes:,} bytes in {name}"
            raise ValueError(f"files: {file} has {size}; allowed: {most:,} at most for this network")
        if not plain or not tensor.isfinite().all():
            raise ValueError(f"files: {file} holds something other than finite numbers in {name}; allowed: weights")
    return given
