"""MoCo (He et al., CVPR 2020): InfoNCE against the keys of a queue."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from simsfl.config import RunConfig
from simsfl.kernels import info_nce
from simsfl.objectives import Memory, Objective


@dataclass(frozen=True)
class MoCo(Objective):
    """MoCo's loss: an image's own key has to score higher than the keys of earlier steps.

    The memory is a ring of keys for each group: "keys" ``[G, K, D]``, unit rows, and "pointer" ``[G]`` int64, the slot
    that the next key is written to.
    """

    temperature: float
    """T of the InfoNCE loss."""
    queue_length: int
    """K, the number of keys in each ring."""

    @classmethod
    def of(cls, config: RunConfig) -> MoCo:
        """Return the objective of a config; without feature sharing, clients have equal parts of the queue."""
        return cls(config.temperature, config.keys_in_a_queue)

    def losses(self, outputs_GnD: Tensor, targets_GnD: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Return the InfoNCE loss of all rows, and how many queries score their own key highest, in percent."""
        query_ND, key_ND = (F.normalize(one.flatten(0, 1), dim=1) for one in (outputs_GnD, targets_GnD))
        return info_nce(query_ND, key_ND, memory["keys"], self.temperature)

    def memory(
        self, groups: int, dim: int, generator: torch.Generator, device: torch.device, dtype: torch.dtype
    ) -> Memory:
        """Return rings of random unit keys."""
        keys_GKD = torch.randn(groups, self.queue_length, dim, generator=generator).to(device, dtype)
        pointer_G = torch.zeros(groups, dtype=torch.long, device=device)
        return {"keys": F.normalize(keys_GKD, dim=2), "pointer": pointer_G}

    @torch.no_grad()
    def remember_(self, memory: Memory, targets_GnD: Tensor) -> None:
        """Write each group's keys into its ring, with wrap-around; of more than K keys, the last K remain."""
        keys_GKD, pointer_G, count = memory["keys"], memory["pointer"], targets_GnD.shape[1]
        kept = min(count, self.queue_length)
        offset_n = torch.arange(count - kept, count, device=targets_GnD.device)
        slot_Gn = (pointer_G[:, None] + offset_n) % self.queue_length
        new_GnD = F.normalize(targets_GnD[:, count - kept :], dim=2)
        keys_GKD.scatter_(1, slot_Gn[:, :, None].expand_as(new_GnD), new_GnD)
        pointer_G.add_(count).remainder_(self.queue_length)
