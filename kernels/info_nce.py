"""InfoNCE of queries against their own keys and a queue of older keys.

    loss_i = -log( exp(q_i.k_i / T) / (exp(q_i.k_i / T) + sum_j exp(q_i.queue_j / T)) )

(van den Oord et al. 2018, eq. 4; He et al., MoCo, CVPR 2020, eq. 1). The queue may be one
for all rows or one per group of consecutive rows (a client's own queue).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def info_nce(query_ND: Tensor, key_ND: Tensor, queue_GKD: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Mean InfoNCE loss over N rows, and how often the positive ranks first.

    Args:
        query_ND: unit rows; the gradient flows here.
        key_ND: unit rows, the positives; no gradient is wanted of them.
        queue_GKD: unit rows, the negatives. Rows ``g*N/G`` to ``(g+1)*N/G`` of the
            query see queue ``g``; G is 1 when all clients share one queue.
        temperature: T of the formula.

    Returns:
        The scalar loss, and the scalar percentage of rows whose own key scores highest
        (no gradient).
    """
    groups, _, dim = queue_GKD.shape
    positive_N1 = (query_ND * key_ND).sum(dim=1, keepdim=True)
    negative_GnK = query_ND.view(groups, -1, dim) @ queue_GKD.transpose(1, 2)
    logits_NK1 = torch.cat([positive_N1, negative_GnK.flatten(0, 1)], dim=1) / temperature
    target_N = logits_NK1.new_zeros(len(logits_NK1), dtype=torch.long)
    top1 = 100.0 * (logits_NK1.detach().argmax(dim=1) == 0).to(logits_NK1.dtype).mean()
    return F.cross_entropy(logits_NK1, target_N), top1
