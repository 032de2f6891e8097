"""Barlow Twins (Zbontar et al., ICML 2021): make the cross-correlation of two views the identity."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from simsfl.objectives import Memory, Objective, nearest, option

_EPSILON = 1e-5
"""Added to variances over the batch, as BatchNorm does."""


@dataclass(frozen=True)
class BarlowTwins(Objective):
    """The loss of Barlow Twins: each output agrees over the views, and differs from all other outputs.

    The statistics are those of the rows that are trained together, which has to be two images at least.
    """

    redundancy: float = option(0.005, "Weight of what is off the diagonal of the cross-correlation.", within=(0, 1e6))

    def loss(self, outputs_nD: Tensor, targets_nD: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Return the loss of equation 1, and an accuracy in percent.

        The accuracy is how often the nearest row of the second view to one of the first is that of the same image.
        """
        first_nD, second_nD = (_standardised(view) for view in (outputs_nD, targets_nD))
        correlation_DD = first_nD.T @ second_nD / len(first_nD)
        own_D = correlation_DD.diagonal()
        redundant = correlation_DD.square().sum() - own_D.square().sum()
        loss = (1.0 - own_D).square().sum() + self.redundancy * redundant
        return loss, nearest(F.normalize(first_nD, dim=1), F.normalize(second_nD, dim=1))


def _standardised(rows_nD: Tensor) -> Tensor:
    """Return rows whose columns have mean 0 and variance 1 over the batch."""
    return (rows_nD - rows_nD.mean(dim=0)) / (rows_nD.var(dim=0, unbiased=False) + _EPSILON).sqrt()
