"""Training on labels, the upper bound that training without labels is compared with."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from simsfl.objectives import Memory, Objective


@dataclass(frozen=True)
class Supervised(Objective):
    """Cross-entropy of the images' labels; the network's outputs are the scores of the classes."""

    def loss(self, outputs_nD: Tensor, targets_nD: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Return the cross-entropy, and how often the label scores highest, in percent; `targets_nD` are labels."""
        hits_n = (outputs_nD.detach().argmax(dim=1) == targets_nD).to(outputs_nD.dtype)
        return F.cross_entropy(outputs_nD, targets_nD), 100.0 * hits_n.mean()
