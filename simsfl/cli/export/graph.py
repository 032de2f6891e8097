"""A network as ``torch.export`` records it, and as a list of operations in JSON."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram, export
from torch.export.graph_signature import InputKind

from simsfl.system.messages import shortened

_IMAGES = 2
"""Images that a network is recorded with; their number is free only if it is more than 1."""


def recorded(network: nn.Module, image_size: int) -> ExportedProgram:
    """Return a network as ``torch.export`` records it, for any number of images.

    Args:
        network: a network in evaluation mode, on the CPU.
        image_size: height and width of its images in pixels.

    Raises:
        ValueError: it does what cannot be recorded, as somebody's own network may.
    """
    images = torch.zeros(_IMAGES, 3, image_size, image_size)
    try:
        return export(network, (images,), dynamic_shapes=({0: Dim("n")},))
    except Exception as error:  # whatever somebody's layer raises
        reason = shortened(" ".join(f"{type(error).__name__}: {error}".split()), 200)
        raise ValueError(
            f"format: torch.export cannot record this network ({reason}); allowed: layers of PyTorch's "
            "operators, for any number of images"
        ) from error


def tensors(program: ExportedProgram) -> dict[str, Tensor]:
    """Return the weights, running statistics and constants of a recorded network, by name."""
    return {name: tensor.detach() for name, tensor in {**program.state_dict, **program.constants}.items()}


def steps(program: ExportedProgram) -> list[list[Any]]:
    """Return the operations of a recorded network in their order, as JSON takes them.

    Each is a list of its result's name, its operator's name in ``torch.ops.aten`` (or "getitem", for one of several
    results), its arguments, and its keyword arguments. ``{"of": NAME}`` among these is an earlier result, a tensor of
    `tensors`, or the "images". The result of the last operation is that of the network.

    Raises:
        ValueError: an operator is none of PyTorch's, or has an argument that JSON does not take.
    """
    inputs = program.graph_signature.input_specs
    names = {spec.arg.name: "images" if spec.kind is InputKind.USER_INPUT else spec.target for spec in inputs}
    found: list[list[Any]] = []
    for node in program.graph.nodes:
        if node.op != "call_function" or "_assert_" in str(node.target):
            continue
        if node.target is torch.ops.aten.to.dtype and node.meta["val"].dtype == node.args[0].meta["val"].dtype:
            names[node.name] = names[node.args[0].name]
            continue
        names[node.name] = node.name
        values = [_plain(list(node.args), names), {name: _plain(value, names) for name, value in node.kwargs.items()}]
        found.append([node.name, _operator(node), *values])
    return found


def _operator(node: fx.Node) -> str:
    """Return the name of an operation's operator; raise a ValueError if it is none of PyTorch's."""
    if node.target is operator.getitem:
        return "getitem"
    namespace, _, name = str(node.target).partition(".")
    if namespace != "aten":
        raise ValueError(f"format: safetensors has no operator {node.target}; allowed for this network: torch.export")
    return name.partition(".")[0]


def _plain(value: Any, names: dict[str, str]) -> Any:
    """Return an argument as JSON takes it, given the names of what it may refer to."""
    if isinstance(value, fx.Node):
        return {"of": names[value.name]}
    if isinstance(value, (list, tuple)):
        return [_plain(one, names) for one in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ValueError(
        f"format: safetensors has no way to write {shortened(value)} of the network; allowed for it: torch.export"
    )
