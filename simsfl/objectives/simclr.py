"""SimCLR (Chen et al., ICML 2020): NT-Xent over the rows of the batch, without a queue or momentum models."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from simsfl.kernels import tie_width
from simsfl.objectives import Memory, Objective, option


@dataclass(frozen=True)
class SimCLR(Objective):
    """SimCLR's loss: a row has to be more similar to the other view of its image than to all other rows, of both views.

    On the split server these are the rows of all clients.
    """

    temperature: float = option(0.5, "Temperature of NT-Xent.", within=(1e-6, 1e6))

    def loss(self, outputs_nD: Tensor, targets_nD: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Return NT-Xent (equation 1), the mean over the rows of both views, and its accuracy in percent."""
        rows_rD = F.normalize(torch.cat([outputs_nD, targets_nD]), dim=1)
        itself_rr = torch.eye(len(rows_rD), dtype=torch.bool, device=rows_rD.device)
        scores_rr = (rows_rD @ rows_rD.T / self.temperature).masked_fill(itself_rr, float("-inf"))
        partner_r = torch.arange(len(rows_rD), device=rows_rD.device).roll(len(outputs_nD))
        positive_r = scores_rr.gather(1, partner_r[:, None])[:, 0]
        others_rr = scores_rr.detach().scatter(1, partner_r[:, None], float("-inf"))
        lead_r = positive_r.detach() - others_rr.amax(dim=1)
        hits_r = (lead_r > tie_width(rows_rD) / self.temperature).to(scores_rr.dtype)
        return (scores_rr.logsumexp(dim=1) - positive_r).mean(), 100.0 * hits_r.mean()
