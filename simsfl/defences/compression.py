"""Quantisation and sparsification of smashed data: fewer bytes travel, and less of an image is in them.

Rounding has no useful gradient: as usual, the gradient passes through it unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log2

import torch
from torch import Tensor

from simsfl.config.values import option
from simsfl.defences import Defence, Draws


def _straight_through(smashed: Tensor, changed: Tensor) -> Tensor:
    """Return `changed`, with the gradient of `smashed`."""
    return smashed + (changed - smashed).detach()


@dataclass(frozen=True)
class Int8(Defence):
    """Rounds an image's smashed data to 256 levels between their lowest and highest value, one byte each."""

    def protect(self, smashed: Tensor, draws: Draws) -> Tensor:
        """Return what arrives, as decoded by the server."""
        flat = smashed.detach().flatten(1)
        low, high = flat.amin(dim=1, keepdim=True), flat.amax(dim=1, keepdim=True)
        step = ((high - low) / 255.0).clamp(min=torch.finfo(flat.dtype).tiny)
        levels = ((flat - low) / step).round()
        return _straight_through(smashed, (low + levels * step).view_as(smashed))

    def bytes_up(self, numbers: int, number_bytes: float) -> float:
        """Return the bytes of the levels, and of the lowest value and the step in fp32."""
        return numbers + 8


@dataclass(frozen=True)
class Half(Defence):
    """Rounds smashed data and their gradients to fp16, two bytes each."""

    def protect(self, smashed: Tensor, draws: Draws) -> Tensor:
        """Return the smashed data as the server receives them."""
        return _straight_through(smashed, smashed.detach().half().to(smashed.dtype))

    def receive(self, gradient: Tensor, draws: Draws) -> Tensor:
        """Return the gradient as the client receives it."""
        return gradient.half().to(gradient.dtype)

    def bytes_up(self, numbers: int, number_bytes: float) -> float:
        """Return two bytes for each number."""
        return 2 * numbers

    def bytes_down(self, numbers: int, number_bytes: float) -> float:
        """Return two bytes for each number."""
        return 2 * numbers


@dataclass(frozen=True)
class TopK(Defence):
    """Sends only the numbers of an image's smashed data that are largest in size, with their places."""

    share: float = option(0.1, "Share of the numbers that is sent.", within=(1e-6, 1))

    def protect(self, smashed: Tensor, draws: Draws) -> Tensor:
        """Return what arrives, with zeros for what is not sent; nor does that get a gradient."""
        flat = smashed.flatten(1)
        chosen = flat.detach().abs().topk(self._count(flat.shape[1]), dim=1).indices
        kept = torch.zeros_like(flat, dtype=torch.bool).scatter(1, chosen, True)
        return torch.where(kept, flat, torch.zeros_like(flat)).view_as(smashed)

    def _count(self, numbers: int) -> int:
        return max(1, round(self.share * numbers))

    def bytes_up(self, numbers: int, number_bytes: float) -> float:
        """Return the bytes of the numbers that are sent, and of the whole bits that say where they belong."""
        return self._count(numbers) * (number_bytes + ceil(log2(max(2, numbers))) / 8)

    def bytes_down(self, numbers: int, number_bytes: float) -> float:
        """Return the bytes of the gradient of what was sent, whose places the client knows."""
        return self._count(numbers) * number_bytes
