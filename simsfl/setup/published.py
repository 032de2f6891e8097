"""Weights in the published program's files, each of which holds the state dict of one half of a network."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from simsfl.config import RunConfig
from simsfl.setup import assembly
from simsfl.setup.weights import HALVES, Weights, from_published, mismatch
from simsfl.system.array_zip import ArrayZip

_ELSE_BYTES = 1 << 28
"""Bytes of a file besides its weights, at most: of names, and of weights of a network that is not the one asked for."""


def load_published(files: Sequence[Path], config: RunConfig, field: str) -> Weights:
    """Read the state dicts of one half of a network, or of both; nothing in the files is executed.

    Args:
        files: paths of the files, in any order.
        config: config of the network that they are of, with every rule applied and its image size.
        field: name of the flag that the files are given by, for errors.

    Raises:
        ValueError: a file is missing or damaged, or of another network.
    """
    model = assembly.network(config, weights=False)
    halves: dict[str, dict[str, Tensor]] = {half: {} for half in HALVES}
    for file in files:
        given = _read(file, 16 * (model.client.size + model.server.size), field)
        wrong = {half: mismatch(getattr(model, half), given) for half in HALVES}
        half = next((half for half in HALVES if wrong[half] is None), None)
        if half is None:
            half = max(HALVES, key=lambda half: wrong[half][0])
            flags = f"--arch {config.arch}, --cut-layer {config.cut_layer}, --bottleneck {config.bottleneck}"
            raise ValueError(f"{file}: {wrong[half][1]}; allowed: a {half} of {flags}, --norm {config.norm}")
        if halves[half]:
            raise ValueError(f"{field}: {file} is a second {half}; allowed: one client and one server")
        halves[half] = from_published(getattr(model, half), given)
    return Weights(", ".join(map(str, files)), config, **halves)


def _read(file: Path, most: int, field: str) -> dict[str, Tensor]:
    """Read a state dict.

    Args:
        file: path of the file.
        most: bytes that its weights take at most; other content may take `_ELSE_BYTES`.
        field: name of the flag that it is given by.

    Returns:
        Tensors by name, on the CPU.

    Raises:
        ValueError: the file is missing or damaged, or holds something other than a state dict of finite numbers.
    """
    if not file.is_file():
        raise ValueError(f"{field}: there is no file {file}; allowed: a file that torch.save wrote")
    if (size := file.stat().st_size) > most + _ELSE_BYTES:
        raise ValueError(
            f"{field}: {file} has {size:,} bytes; allowed: {most + _ELSE_BYTES:,} at most for this network"
        )
    try:
        if zipfile.is_zipfile(file):
            ArrayZip(file, compressed=False)  # torch would unpack what is compressed, however large it is
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about foreign pickles; the errors below say more
            given = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or foreign file can raise anything
        raise ValueError(f"{field}: {file} is damaged, or holds more than tensors; allowed: a state dict") from error
    if not isinstance(given, dict) or not given or not all(isinstance(value, Tensor) for value in given.values()):
        raise ValueError(f"{field}: {file} holds no state dict; allowed: tensors by name")
    for name, tensor in given.items():
        if not isinstance(name, str):
            raise ValueError(f"{field}: {file} has a name of type {type(name).__name__}; allowed: texts")
        plain = tensor.layout is torch.strided and not (tensor.is_quantized or tensor.is_complex() or tensor.is_meta)
        if plain and tensor.nbytes > most:  # strides of 0 repeat a few numbers, which takes no room in the file
            size = f"{tensor.nbytes:,} bytes in {name}"
            raise ValueError(f"{field}: {file} has {size}; allowed: {most:,} at most for this network")
        if not plain or not tensor.isfinite().all():
            raise ValueError(f"{field}: {file} holds something other than finite numbers in {name}; allowed: weights")
    return given
