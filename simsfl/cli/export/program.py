"""Write a trained backbone, or a client, for use without simsfl.

The backbone is the averaged client model and the server up to the features, without the projection head. Standardised
weights are folded into its convolutions. A card beside the file says how images are normalised, and has the code that
loads the network and fine-tunes it. For the published program, there is export-checkpoint.
"""

from __future__ import annotations

import io
import json
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from simsfl.cli.export.card import Statistics, card
from simsfl.cli.export.graph import recorded, steps, tensors
from simsfl.cli.export.layouts import FORMATS, KNOWN, known, loader
from simsfl.cli.flags import add_plugin_flag
from simsfl.config import RunConfig
from simsfl.models.backbone import folded, joined
from simsfl.models.names import as_known, known_names
from simsfl.runs.directory import RunDirectory
from simsfl.setup import assembly
from simsfl.setup.defaults import resolve
from simsfl.setup.parts import load_images
from simsfl.setup.weights import Weights, load_weights
from simsfl.system.console import Output
from simsfl.system.messages import blaming
from simsfl.system.outputs import Outputs
from simsfl.ui.arguments import Parser, fail, one_of, path, source

_USUAL = {"backbone": "safetensors", "client": "torch.export"}
"""The parts that can be exported, and the format of each by default."""

_HALVES = {"backbone": {"client": "other weights", "server": "client"}, "client": {"client": "other weights"}}
"""The halves of a network that each part needs, and what may be exported where a half is missing."""


def parser() -> Parser:
    """Return the parser of this program's flags."""
    result = Parser(description=__doc__)
    result.add_argument(
        "source", type=source, metavar="SOURCE", help="run directory, weights file, or name of an expert"
    )
    result.add_argument(
        "--format",
        type=one_of(list(FORMATS)),
        metavar="{" + ",".join(FORMATS) + "}",
        help="torchvision and timm: a state dict of their own networks; safetensors: one of this network, with the "
        "operations that it consists of; torch.export: a program for torch.export.load (default: safetensors, of a "
        "client torch.export)",
    )
    result.add_argument(
        "--part",
        type=one_of(list(_USUAL)),
        metavar="{" + ",".join(_USUAL) + "}",
        default="backbone",
        help="the whole network up to its features, or what a client runs (default: backbone)",
    )
    result.add_argument(
        "--out",
        type=path,
        metavar="FILE",
        help="file to write, and FILE.md beside it (default: in the directory exports, for a run within its own)",
    )
    add_plugin_flag(result)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Read weights, write the network that has them and its card, print where they are; return the exit code."""
    try:
        arguments = parser().parse(argv)
        format = arguments.format or _USUAL[arguments.part]
        out, name = _place(arguments, format)
        notes = f"{name}.md"
        out.check(name, notes)
        with blaming("source", for_="init_client"):
            weights = load_weights(arguments.source)
        config = resolve(replace(weights.config, device="cpu"))
        config = replace(config, image_size=config.image_size or 32)
        network = folded(_network(arguments.part, weights, config))
        other = known(format, arguments.part, config, network) if format in KNOWN else None
        with torch.no_grad():
            shape = network(torch.zeros(1, 3, config.image_size, config.image_size)).shape[1:]
        text = card(
            arguments.part,
            config,
            loader(format, other, Path(name).name),
            other.about if other else None,
            origin=Path(arguments.source).name or arguments.source,
            shape=shape,
            statistics=_statistics(arguments.source, config),
        )
        content = _content(format, config, network, text)
        with out.replacing(name) as file:
            file.write_bytes(content)
        out.write_text(notes, text)
    except (ValueError, OSError) as error:
        return fail(error)
    Output().say(f"wrote {out.path / name}; {Path(notes).name} beside it says what it is, and how to load it")
    return 0


def _place(arguments: Namespace, format: str) -> tuple[Outputs, str]:
    """Return the directory that is written into, and the file's place in it; raise a ValueError for a wrong suffix."""
    suffix = FORMATS[format]
    if arguments.out:
        if arguments.out.suffix != suffix:
            raise ValueError(
                f"out: {arguments.out} does not end as format {format} does; allowed: a name with {suffix}"
            )
        return Outputs(arguments.out.parent), arguments.out.name
    name, source = arguments.part + f"-{format}" * (format in KNOWN) + suffix, Path(arguments.source)
    if source.is_dir():
        return Outputs(source, "source"), f"{RunDirectory(source).exports.name}/{name}"
    return Outputs(Path("exports")), f"{source.stem}-{name}"


def _network(part: str, weights: Weights, config: RunConfig) -> nn.Module:
    """Return the backbone, or the client's half, of a network with these weights, as a module in evaluation mode.

    Raises:
        ValueError: the weights are of one half alone, or there are no halves in federated learning.
    """
    model = assembly.network(config, weights=False)
    if part == "client" and not config.is_split:
        raise ValueError(f"part: a client of method {config.method} has the whole network; allowed: backbone")
    for half, allowed in _HALVES[part].items():
        if getattr(model, half).size and not getattr(weights, half):
            raise ValueError(
                f"part: {part} needs the {half}'s half, which {Path(weights.origin).name} lacks; allowed: {allowed}"
            )
    if part == "client":
        return weights.module("client", model).requires_grad_(False)
    return joined(weights.module("client", model), weights.module("server", model), config.cut_layer).eval()


def _statistics(source: str, config: RunConfig) -> Statistics | None:
    """Return what the images of a run are normalised by; None for weights alone.

    Earlier versions did not record it, so that the images of their runs have to be loaded.
    """
    if not Path(source).is_dir():
        return None
    record = RunDirectory(source).read_config().dataset
    if record.mean and record.std:
        return record.mean, record.std
    images = load_images(config).train
    return images.mean.flatten().tolist(), images.std.flatten().tolist()


def _content(format: str, config: RunConfig, network: nn.Module, text: str) -> bytes:
    """Return the content of a file.

    Args:
        format: a name in `FORMATS`.
        config: config of the network.
        network: the network.
        text: its card, which safetensors files have in their header.
    """
    if format in KNOWN:
        return save(_known_tensors(config, network), {"card": text})
    program = recorded(network, config.image_size)
    if format == "torch.export":
        content = io.BytesIO()
        torch.export.save(program, content)
        return content.getvalue()
    fixed = [name for name in tensors(program) if name not in dict(network.named_parameters())]
    return save(tensors(program), {"card": text, "steps": json.dumps(steps(program)), "fixed": json.dumps(fixed)})


def _known_tensors(config: RunConfig, network: nn.Module) -> dict[str, Tensor]:
    """Return the weights of a backbone as torchvision or timm names and shapes them; BatchNorm counts batches there."""
    own = network.state_dict()
    there = {other: as_known(other, own[name]).contiguous() for name, other in known_names(config.arch, own).items()}
    counts = [name for name in there if name.endswith(".running_mean")]
    return there | {name.replace("running_mean", "num_batches_tracked"): torch.tensor(0) for name in counts}
