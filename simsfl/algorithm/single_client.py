"""One client by itself, as an ordinary module: what the oracle loops over, and what runs on a device (hw_profile/)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class SingleClient:
    """A client's side of a step (Li et al., ICLR 2023, algorithm 1).

    Args:
        online: the model that learns.
        momentum: its moving average, the same module with other weights.
        velocity: of SGD, for each parameter of `online`.
    """

    def __init__(self, online: nn.Module, momentum: nn.Module, velocity: Iterable[Tensor]):
        self.online, self.momentum, self.velocity = online, momentum, list(velocity)
        self.smashed: Tensor | None = None

    def query(self, images: Tensor) -> Tensor:
        """Smashed data ``[B, c, h, w]`` of images ``[B, 3, H, W]``; its graph, if there is one, is kept."""
        smashed = self.online(images)
        self.smashed = smashed if smashed.requires_grad else None
        return smashed

    def move(self, tau: float) -> None:
        """The momentum model follows."""
        move_towards(self.momentum, self.online, tau)

    @torch.no_grad()
    def key(self, images: Tensor) -> Tensor:
        """Smashed data of the momentum model."""
        return self.momentum(images)

    def backward(self, gradient: Tensor) -> None:
        """From the gradient of the query's smashed data ``[B, c, h, w]`` to that of the parameters."""
        self.smashed.backward(gradient.to(self.smashed.dtype))
        self.smashed = None

    @torch.no_grad()
    def descend(self, lr: float, momentum: float, weight_decay: float) -> None:
        """A step of SGD, the same to the last bit as `torch.optim.SGD`'s (which imports TorchDynamo: 150 MB)."""
        for parameter, velocity in zip(self.online.parameters(), self.velocity, strict=True):
            gradient = parameter.grad.add(parameter, alpha=weight_decay)
            velocity.mul_(momentum).add_(gradient)
            parameter.add_(velocity, alpha=-lr)
            parameter.grad = None


@torch.no_grad()
def move_towards(average: nn.Module, online: nn.Module, tau: float) -> None:
    """Exponential moving average, parameter by parameter."""
    for m, p in zip(average.parameters(), online.parameters(), strict=True):
        m.copy_(tau * m + (1.0 - tau) * p)
