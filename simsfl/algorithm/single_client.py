"""One client by itself, as ordinary modules.

The oracle (`simsfl.algorithm.reference`) loops over such clients, and real devices run one each (hw_profile/).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class SingleClient:
    """A client's part of a step (Li et al., ICLR 2023, algorithm 1), in the order of the methods.

    Args:
        online: the model that learns.
        momentum: the momentum model, its moving average: the same module with other weights.
        velocity: SGD's velocity of each parameter of `online`, changed in place by `descend`; empty for those who take
            the step themselves.
    """

    def __init__(self, online: nn.Module, momentum: nn.Module, velocity: Iterable[Tensor] = ()):
        self.online, self.momentum, self.velocity = online, momentum, list(velocity)
        self._smashed: list[Tensor] = []

    def query(self, *views: Tensor) -> list[Tensor]:
        """Return the smashed data ``[B, c, h, w]`` of views ``[B, 3, H, W]`` of images; graphs are kept if any."""
        self._smashed = [self.online(view) for view in views]
        return self._smashed

    def move(self, tau: float) -> None:
        """Move the momentum model towards the online model; it keeps the share `tau` of its own weights."""
        move_towards(self.momentum, self.online, tau)

    @torch.no_grad()
    def key(self, images: Tensor) -> Tensor:
        """Return the momentum model's smashed data ``[B, c, h, w]`` of images ``[B, 3, H, W]``, without a graph."""
        return self.momentum(images)

    def backward(self, *gradients: Tensor) -> None:
        """Compute the parameters' gradients from those of the latest query's smashed data, ``[B, c, h, w]`` each."""
        smashed, self._smashed = self._smashed, []
        torch.autograd.backward(smashed, [own.to(sent.dtype) for own, sent in zip(gradients, smashed, strict=True)])

    @torch.no_grad()
    def descend(self, lr: float, momentum: float, weight_decay: float) -> None:
        """Take a step of SGD with the gradients of `backward`, and clear them.

        The result equals that of `torch.optim.SGD` to the last bit; its import would cost 150 MB (TorchDynamo).
        """
        for parameter, velocity in zip(self.online.parameters(), self.velocity, strict=True):
            gradient = parameter.grad.add(parameter, alpha=weight_decay)
            velocity.mul_(momentum).add_(gradient)
            parameter.add_(velocity, alpha=-lr)
            parameter.grad = None


@torch.no_grad()
def move_towards(average: nn.Module, online: nn.Module, tau: float) -> None:
    """Move the parameters of `average` towards those of `online`, in place: ``m = tau * m + (1 - tau) * p``."""
    for m, p in zip(average.parameters(), online.parameters(), strict=True):
        m.copy_(tau * m + (1.0 - tau) * p)
