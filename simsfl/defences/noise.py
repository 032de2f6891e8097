"""Noise and clipping, of smashed data, of their gradients, or of the gradients that clients descend along."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from simsfl.config.values import option
from simsfl.defences import Defence, Draws

_PLACES = ("smashed", "gradient", "update")
"""What a defence is applied to: smashed data, their gradient, or the gradient that a client descends along."""


@dataclass(frozen=True)
class _Somewhere(Defence):
    """The base of defences that change smashed data, or the gradient of these, or that of a client's weights."""

    where: str = option("smashed", "What the noise or clipping is applied to.", choices=_PLACES)

    def changed(self, rows: Tensor, draws: Draws) -> Tensor:
        """Return rows ``[n, ...]`` as the defence leaves them."""
        raise NotImplementedError

    def protect(self, smashed: Tensor, draws: Draws) -> Tensor:
        """Return what a client sends."""
        return self.changed(smashed, draws) if self.where == "smashed" else smashed

    def receive(self, gradient: Tensor, draws: Draws) -> Tensor:
        """Return what a client gets to see of the gradient."""
        return self.changed(gradient, draws) if self.where == "gradient" else gradient

    def learn(self, gradient: Tensor, draws: Draws) -> Tensor:
        """Return the gradient that clients descend along."""
        return self.changed(gradient, draws) if self.where == "update" else gradient


@dataclass(frozen=True)
class Gaussian(_Somewhere):
    """Adds Gaussian noise to every number."""

    deviation: float = option(0.1, "Standard deviation of the Gaussian noise.", within=(0, 1e6))

    def changed(self, rows: Tensor, draws: Draws) -> Tensor:
        """Return rows with noise."""
        return rows + self.deviation * draws.normal(rows, _PLACES.index(self.where))


@dataclass(frozen=True)
class Laplacian(_Somewhere):
    """Adds Laplacian noise to every number."""

    scale: float = option(0.1, "Scale of the Laplacian noise, whose deviation is 1.41 times that.", within=(0, 1e6))

    def changed(self, rows: Tensor, draws: Draws) -> Tensor:
        """Return rows with noise."""
        return rows + self.scale * draws.laplace(rows, 8 + _PLACES.index(self.where))


@dataclass(frozen=True)
class Clip(_Somewhere):
    """Scales rows down to a norm, as differentially private training does before it adds noise (Abadi et al., 2016)."""

    norm: float = option(10.0, "Largest norm of an image's smashed data, or of a client's gradient.", within=(0, 1e9))

    def changed(self, rows: Tensor, draws: Draws) -> Tensor:
        """Return rows whose norm is at most `norm`."""
        lengths = rows.flatten(1).norm(dim=1)
        scale = (self.norm / lengths.clamp(min=torch.finfo(rows.dtype).tiny)).clamp(max=1.0)
        return rows * scale.view(-1, *[1] * (rows.ndim - 1))
