"""A module whose parameters live outside it, in one flat vector.

Averaging, gathering, SGD and the moving average are then single operations on ``[P]`` or
``[C, P]`` tensors, and a thousand clients are one more dimension rather than a thousand objects.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor, nn


class FlatModule:
    """An `nn.Module` kept as shapes only (on the meta device), called with a flat vector.

    Attributes:
        template: the module on the meta device, in training mode.
        initial: ``[P]`` the parameters it had when wrapped; None once they are taken.
        size: P, the number of parameters.
        initial_buffers: its buffers by name (running statistics, where there are any).
        shapes: the shape of each parameter by name, in flat order.
    """

    def __init__(self, module: nn.Module):
        parameters = dict(module.named_parameters())
        self.shapes = {name: parameter.shape for name, parameter in parameters.items()}
        flats = [parameter.detach().flatten() for parameter in parameters.values()]
        self.initial = torch.cat(flats) if flats else torch.empty(0)
        self.size = self.initial.numel()
        self.initial_buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
        shapes_only = {id(p): nn.Parameter(p.detach().to("meta")) for p in module.parameters()}
        self.template = copy.deepcopy(module, shapes_only).to("meta").train()

    def take_initial(self) -> Tensor:
        """The initial parameters ``[P]``, to do with as one likes: they are held here no longer."""
        initial, self.initial = self.initial, None
        return initial

    def named(self, flat: Tensor) -> dict[str, Tensor]:
        """Views into ``flat [..., P]`` by parameter name, each ``[..., *shape]``.

        The split is one node of the graph, so the gradient of all parameters comes back as one
        flat tensor.
        """
        pieces = flat.split([prod(shape) for shape in self.shapes.values()], dim=-1)
        lead = flat.shape[:-1]
        return {
            name: piece.view(lead + shape) for (name, shape), piece in zip(self.shapes.items(), pieces, strict=True)
        }

    def module(self, flat: Tensor, buffers: Mapping[str, Tensor] | None = None) -> nn.Module:
        """An ordinary module whose parameters are views into ``flat [P]``: writes go both ways."""
        module = copy.deepcopy(self.template)
        module.load_state_dict({**self.named(flat.detach()), **(buffers or {})}, assign=True)
        return module
