"""SimSiam (Chen & He, CVPR 2021): predict the other view's projection, without momentum models or negatives."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from simsfl.objectives import Memory, Objective, nearest
from simsfl.objectives.byol import halves


@dataclass(frozen=True)
class SimSiam(Objective):
    """SimSiam's loss: predict the other view's projection. It hardly learns without BatchNorm in its head.

    The network returns projection and prediction side by side (`simsfl.models.Projection`).
    """

    def loss(self, outputs_nD: Tensor, targets_nD: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Return the mean of both directions' negative cosine (equation 2), and an accuracy in percent.

        No gradient reaches the projections that are predicted. The accuracy is how often the nearest projection of the
        second view to a prediction from the first one is that of the same image.
        """
        projection1_nd, prediction1_nd = halves(outputs_nD)
        projection2_nd, prediction2_nd = halves(targets_nD)
        first_n = (prediction1_nd * projection2_nd.detach()).sum(dim=1)
        second_n = (prediction2_nd * projection1_nd.detach()).sum(dim=1)
        top1 = nearest(prediction1_nd, projection2_nd)
        return -(first_n + second_n).mean() / 2, top1
