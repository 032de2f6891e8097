"""NoPeek (Vepakomma et al., 2020): smashed data that depend less on the images they are made of."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from simsfl.config.values import option
from simsfl.defences import Added, Defence


@dataclass(frozen=True)
class NoPeek(Defence):
    """Clients also minimise the distance correlation between their images and their smashed data.

    It is that of a client's own batch, which has to be of three images at least: that of two is always 1.
    """

    correlation: float = option(0.1, "Weight of the distance correlation.", within=(0, 1e6))

    def add(self, images: Tensor, smashed: Tensor, memory: Tensor, round_index: Tensor) -> Added:
        """Return the gradient of the distance correlation, times its weight, for each client."""
        with torch.enable_grad():
            precise = torch.promote_types(smashed.dtype, torch.float32)
            leaf = smashed.detach().to(precise).requires_grad_()
            total = distance_correlation(images.flatten(2), leaf.flatten(2)).sum()
            (gradient,) = torch.autograd.grad(self.correlation * total, leaf)
        return Added(gradient.to(smashed.dtype))


def distance_correlation(x: Tensor, y: Tensor) -> Tensor:
    """Return the distance correlation ``[C]`` of paired rows (Székely et al., 2007, definition 3).

    Args:
        x: ``[C, n, d]`` rows of one kind.
        y: ``[C, n, e]`` rows of the other kind.
    """
    a, b = _centred(x.to(y)), _centred(y)
    product, own_a, own_b = ((one * two).mean(dim=(1, 2)).clamp(min=0) for one, two in ((a, b), (a, a), (b, b)))
    tiny = torch.finfo(y.dtype).tiny
    return (product / (own_a * own_b).sqrt().clamp(min=tiny) + tiny).sqrt()


def _centred(rows: Tensor) -> Tensor:
    """Return the distances ``[C, n, n]`` between rows, less the means of their row and column, plus the mean of all."""
    distance = torch.cdist(rows, rows)
    return (
        distance
        - distance.mean(dim=1, keepdim=True)
        - distance.mean(dim=2, keepdim=True)
        + distance.mean(dim=(1, 2), keepdim=True)
    )
