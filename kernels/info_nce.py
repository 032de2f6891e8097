"""InfoNCE of queries against their own keys and a queue of older keys.

    loss_i = -log( exp(q_i.k_i / T) / (exp(q_i.k_i / T) + sum_j exp(q_i.queue_j / T)) )

(van den Oord et al. 2018, eq. 4; He et al., MoCo, CVPR 2020, eq. 1). The queue may be one
for all rows or one per group of consecutive rows (a client's own queue).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def info_nce(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Mean InfoNCE loss over N rows, and how often the positive ranks first.

    Args:
        query: ``[N, D]`` unit rows; the gradient flows here.
        key: ``[N, D]`` unit rows, the positives; no gradient is wanted of them.
        queue: ``[G, K, D]`` unit rows, the negatives. Rows ``g*N/G`` to ``(g+1)*N/G`` of the
            query see queue ``g``; G is 1 when all clients share one queue.
        temperature: T of the formula.

    Returns:
        The scalar loss, and the scalar percentage of rows whose own key scores highest
        (no gradient).
    """
    groups, _, dim = queue.shape
    positive = (query * key).sum(dim=1, keepdim=True)
    negative = query.view(groups, -1, dim) @ queue.transpose(1, 2)
    logits = torch.cat([positive, negative.flatten(0, 1)], dim=1) / temperature
    target = logits.new_zeros(len(logits), dtype=torch.long)
    top1 = 100.0 * (logits.detach().argmax(dim=1) == 0).to(logits.dtype).mean()
    return F.cross_entropy(logits, target), top1
