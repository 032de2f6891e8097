"""Random numbers with an address, computed where they are needed: for noise that clients add in every step.

They are counter-based (Salmon et al., SC 2011): a number is a hash of a key and its place, so that it does not depend
on the device, on other clients, or on how clients are grouped. Unlike a generator, this can be part of a CUDA graph.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_FIRST, _SECOND = -0x7A143595, -0x3D4D51CB
"""Multipliers of MurmurHash3's finaliser for 32 bits (Appleby, 2011), as signed integers."""
_GOLDEN = -0x61C88647
"""The golden ratio in 32 bits, as a signed integer: multiples of it are spread evenly."""


@dataclass(frozen=True)
class Draws:
    """Random numbers for the rows of a batch.

    Two calls with the same arguments return the same numbers; `stream` sets apart what has to be independent.
    """

    keys: Tensor
    """``[N, 2]`` int32 key of each row."""

    def rows(self, start: int, stop: int) -> Draws:
        """Return the `Draws` that belong to these rows of the batch."""
        return Draws(self.keys[start:stop])

    def uniform(self, like: Tensor, stream: int = 0) -> Tensor:
        """Return float32 numbers in (0, 1), with the shape ``[N, ...]`` and device of `like`."""
        first_N1, second_N1 = self.keys.split(1, dim=1)
        place = torch.arange(like[0].numel(), dtype=torch.int32, device=like.device) * _GOLDEN
        bits = _mixed_(place + _mixed_(first_N1 + stream)).bitwise_xor_(second_N1)
        return _between_0_and_1(_mixed_(bits)).view_as(like)

    def normal(self, like: Tensor, stream: int = 0) -> Tensor:
        """Return normal numbers of mean 0 and variance 1, with the shape ``[N, ...]``, dtype and device of `like`."""
        radius = self.uniform(like, 2 * stream).log_().mul_(-2.0).sqrt_()
        angle = self.uniform(like, 2 * stream + 1).mul_(2.0 * math.pi)
        return radius.mul_(angle.cos_()).to(like.dtype)

    def laplace(self, like: Tensor, stream: int = 0) -> Tensor:
        """Return Laplacian numbers of mean 0 and scale 1, with the shape ``[N, ...]``, dtype and device of `like`."""
        centred = self.uniform(like, stream).sub_(0.5)
        return (-centred.sign() * torch.log1p(-2.0 * centred.abs())).to(like.dtype)


def _between_0_and_1(bits: Tensor) -> Tensor:
    """Return the middles of 2 ** 24 parts of (0, 1), chosen by the upper bits of int32 numbers, as float32.

    Half of the middles round to a border of their part. That of the last part would be 1, of which a logarithm is not
    finite.
    """
    return (_shifted(bits, 8).float() + 0.5).mul_(2.0**-24).clamp_(max=1.0 - 2.0**-24)


def _mixed_(bits: Tensor) -> Tensor:
    """Return a hash of int32 numbers, computed in place."""
    bits.bitwise_xor_(_shifted(bits, 16)).mul_(_FIRST)
    bits.bitwise_xor_(_shifted(bits, 13)).mul_(_SECOND)
    return bits.bitwise_xor_(_shifted(bits, 16))


def _shifted(bits: Tensor, count: int) -> Tensor:
    """Return int32 numbers shifted to the right, with zeros from the left."""
    return (bits >> count).bitwise_and_((1 << (32 - count)) - 1)
