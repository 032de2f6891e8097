"""BYOL (Grill et al., NeurIPS 2020): predict the momentum network's projection of the other view."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from simsfl.objectives import Memory, Objective, nearest


@dataclass(frozen=True)
class BYOL(Objective):
    """BYOL's loss: predict the momentum network's projection. It hardly learns without BatchNorm in its head.

    The network returns projection and prediction side by side (`simsfl.models.Projection`).
    """

    def losses(self, outputs_GnD: Tensor, targets_GnD: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Return 2 - 2 cos(prediction, projection), and how often the own projection is the nearest, in percent."""
        _, prediction_Gnd = halves(outputs_GnD)
        projection_Gnd, _ = halves(targets_GnD)
        cosine_Gnn = prediction_Gnd @ projection_Gnd.transpose(1, 2)
        own_Gn = cosine_Gnn.diagonal(dim1=1, dim2=2)
        return (2.0 - 2.0 * own_Gn).mean(), nearest(prediction_Gnd, projection_Gnd)


def halves(outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return projection and prediction ``[..., d]``, as unit rows, of what a network with a predictor returns.

    Args:
        outputs: ``[..., 2d]`` the two of them side by side.
    """
    return F.normalize(outputs.unflatten(-1, (2, -1)), dim=-1).unbind(dim=-2)
