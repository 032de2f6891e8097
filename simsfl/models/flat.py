"""A module whose parameters are kept outside it, in one flat vector.

Averaging, gathering, SGD and the moving average are then single operations on ``[P]`` or ``[C, P]`` tensors, and a
thousand clients are one more dimension rather than a thousand objects.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn
from torch.func import functional_call


@dataclass(frozen=True)
class Leaves:
    """The weights of a network as leaves of a graph, whose gradients add up from one backward pass to the next."""

    tensors: dict[str, Tensor]
    """Leaves by parameter name, as `FlatModule.run` takes them."""
    gradient: Callable[[], Tensor]
    """Function that returns the gradient of the flat parameters ``[P]``, to be called after the last backward pass."""


class FlatModule:
    """An `nn.Module` of which only the shapes are kept (on the meta device), and which is called with a flat vector.

    Attributes:
        template: The module on the meta device, in training mode.
        initial: ``[P]``, the parameters that the module had when it was wrapped; None after `take_initial`.
        size: P, the number of parameters.
        initial_statistics: ``[S]``, the buffers that the module had: the running statistics of its BatchNorm layers.
        shapes: Shape of each parameter by name, in flat order.
        statistic_shapes: Shape of each buffer by name, in flat order.
    """

    def __init__(self, module: nn.Module):
        parameters, statistics = dict(module.named_parameters()), dict(module.named_buffers())
        self.shapes = {name: parameter.shape for name, parameter in parameters.items()}
        self.statistic_shapes = {name: statistic.shape for name, statistic in statistics.items()}
        self.initial, self.initial_statistics = flattened(parameters), flattened(statistics)
        self.size = self.initial.numel()
        shapes_only = {id(p): nn.Parameter(p.detach().to("meta")) for p in module.parameters()}
        self.template = copy.deepcopy(module, shapes_only).to("meta").train()

    def take_initial(self) -> Tensor:
        """Return the initial parameters ``[P]``, which the caller may change: they are no longer kept here."""
        initial, self.initial = self.initial, None
        return initial

    def named(self, flat: Tensor) -> dict[str, Tensor]:
        """Return views into ``flat [..., P]`` by parameter name, each ``[..., *shape]``.

        The split is one node of the graph, so the gradient of all parameters comes back as one flat tensor.
        """
        return pieces(flat, self.shapes)

    def named_statistics(self, flat: Tensor) -> dict[str, Tensor]:
        """Return views into ``flat [..., S]`` by buffer name, each ``[..., *shape]``."""
        return pieces(flat, self.statistic_shapes)

    def weights(self, flat: Tensor) -> dict[str, Tensor]:
        """Return the tensors that `run` takes, by parameter name, from ``flat [P]``."""
        return self.named(flat)

    def leaves(self, flat: Tensor) -> Leaves:
        """Return the weights in ``flat [P]`` as leaves of a graph, whose gradients add up in one flat tensor."""
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in self.named(flat).items()}
        gradient = torch.zeros_like(flat)
        for leaf, part_of_it in zip(leaves.values(), self.named(gradient).values(), strict=True):
            leaf.grad = part_of_it
        return Leaves(leaves, lambda: gradient)

    def received(self, x: Tensor) -> Tensor:
        """Return images or smashed data in the form that `run` takes; this class returns them unchanged."""
        return x

    def run(self, tensors: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Return the module's output for `x`, with the parameters and buffers given by name in `tensors`."""
        return functional_call(self.template, tensors, (x,))

    def module(self, flat: Tensor, statistics: Tensor | None = None) -> nn.Module:
        """Return an ordinary module whose parameters and buffers are views into ``flat [P]`` and ``statistics [S]``.

        A write to either is visible in the other. Without `statistics`, the buffers are a copy of the initial ones.
        """
        statistics = self.initial_statistics.to(flat, copy=True) if statistics is None else statistics
        return _bound(self.template, {**self.named(flat.detach()), **self.named_statistics(statistics)})


def _bound(module: nn.Module, tensors: Mapping[str, Tensor], prefix: str = "") -> nn.Module:
    """Return a copy of a module that has the tensors of these names, after the prefix, as parameters and buffers.

    Dictionaries, such as those of hooks, are its own, and all else is shared: a deep copy of a network takes as long as
    a small step with it.
    """
    bound = copy.copy(module)
    vars(bound).update({name: own.copy() for name, own in vars(module).items() if isinstance(own, dict)})
    bound._parameters = {
        name: parameter if parameter is None else nn.Parameter(tensors[prefix + name], parameter.requires_grad)
        for name, parameter in module._parameters.items()
    }
    bound._buffers = {
        name: buffer if buffer is None else tensors[prefix + name] for name, buffer in module._buffers.items()
    }
    bound._modules = {
        name: child if child is None else _bound(child, tensors, f"{prefix}{name}.")
        for name, child in module._modules.items()
    }
    return bound


def flattened(tensors: Mapping[str, Tensor]) -> Tensor:
    """Return the values of all tensors, detached, as one vector."""
    if any(tensor.is_meta for tensor in tensors.values()):  # `torch.cat` of meta tensors imports TorchDynamo: 150 MB
        return torch.empty(sum(tensor.numel() for tensor in tensors.values()), device="meta")
    flat = [tensor.detach().flatten() for tensor in tensors.values()]
    return torch.cat(flat) if flat else torch.empty(0)


def pieces(flat: Tensor, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Return views into ``flat [..., total]`` by name, each ``[..., *shape]``, in the order of `shapes`."""
    parts = flat.split([prod(shape) for shape in shapes.values()], dim=-1) if shapes else ()
    return {name: part.view(flat.shape[:-1] + shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
