"""InfoNCE of queries against their own keys and a queue of older keys.

    loss_i = -log( exp(q_i.k_i / T) / (exp(q_i.k_i / T) + sum_j exp(q_i.queue_j / T)) )

for unit rows q and k ``[N, D]`` and queue ``[G, K, D]`` (van den Oord et al. 2018, eq. 4; He et al., MoCo, CVPR 2020,
eq. 1). All rows may share one key queue, or each group of consecutive rows may have its own (one queue per client).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from simsfl.kernels.choice import accelerating
from simsfl.kernels.stacking import custom_op

BLOCK = 2048
"""Keys that `_streamed` handles at a time on a CPU, few enough for their scores to stay in its caches."""
_SCORES = 1 << 25
"""Scores that `_streamed` handles at a time on a GPU, where fewer and larger operations are faster."""


def info_nce(query_ND: Tensor, key_ND: Tensor, queue_GKD: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return the mean InfoNCE loss over N rows, and the percentage of rows whose own key scores higher than all others.

    Where another key scores the same, up to rounding (`tie_width`), the row does not count: if an encoder gives all
    images the same output, it tells none of them from the others.

    >>> rows = torch.eye(3)  # a query that equals its key, and two other keys in the queue
    >>> loss, top1 = info_nce(rows[:1], rows[:1], rows[None, 1:], temperature=0.5)
    >>> round(loss.item(), 4), top1.item()  # log(1 + 2 / e ** 2)
    (0.2395, 100.0)

    Args:
        query_ND: The queries, ``[N, D]`` unit rows; the loss is differentiated with respect to them.
        key_ND: The positives, ``[N, D]`` unit rows, which need no gradient.
        queue_GKD: The negatives, ``[G, K, D]`` unit rows. Rows ``g*N/G`` to ``(g+1)*N/G`` of the query see queue ``g``;
            G is 1 when all clients share one queue.
        temperature: T of the formula.

    Returns:
        The scalar loss, and the scalar percentage, 0 to 100, which has no gradient.
    """
    if not accelerating():
        return reference(query_ND, key_ND, queue_GKD, temperature)
    loss, top1, _ = _operator(query_ND, key_ND, queue_GKD, temperature)
    return loss, top1


def tie_width(rows: Tensor) -> float:
    """Return how far apart rounding may put two equal cosines of unit rows ``[..., D]``; nearer ones are a tie.

    A sum and a matrix product of the same numbers differ by up to about ``eps * sqrt(D)``.

    Args:
        rows: Some of the rows, whose dtype and length D the width depends on.
    """
    return 4.0 * torch.finfo(rows.dtype).eps * rows.shape[-1] ** 0.5


def reference(query_ND: Tensor, key_ND: Tensor, queue_GKD: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return the loss and the percentage of `info_nce`, computed as a cross-entropy of all scores ``[N, 1 + K]``."""
    groups, _, dim = queue_GKD.shape
    positive_N1 = (query_ND * key_ND).sum(dim=1, keepdim=True)
    negative_GnK = query_ND.view(groups, -1, dim) @ queue_GKD.transpose(1, 2)
    logits_NK1 = torch.cat([positive_N1, negative_GnK.flatten(0, 1)], dim=1) / temperature
    target_N = logits_NK1.new_zeros(len(logits_NK1), dtype=torch.long)
    lead_N = logits_NK1.detach()[:, 0] - logits_NK1.detach()[:, 1:].amax(dim=1)
    top1 = 100.0 * (lead_N > tie_width(query_ND) / temperature).to(logits_NK1.dtype).mean()
    return F.cross_entropy(logits_NK1, target_N), top1


def _streamed(query_ND: Tensor, key_ND: Tensor, queue_GKD: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss and the percentage of `info_nce`, and the gradient of the loss with respect to the query.

    Keys are handled in blocks, so that nothing of the size ``[N, K]`` is kept. The sums so far are scaled down whenever
    a block has a higher score (as in FlashAttention, Dao et al. 2022). The gradient ``[N, D]`` is
    (sum of all keys, weighted by their share of the exponentials, - own key) / (T N).
    """
    groups, length, dim = queue_GKD.shape
    query_GnD, key_GnD = query_ND.view(groups, -1, dim), key_ND.view(groups, -1, dim)
    positive_Gn1 = (query_GnD * key_GnD).sum(dim=2, keepdim=True) / temperature
    highest_Gn1, rival_Gn1 = positive_Gn1.clone(), torch.full_like(positive_Gn1, -torch.inf)
    total_Gn1 = torch.ones_like(positive_Gn1)
    weighted_GnD = key_GnD.clone()
    block = max(BLOCK, _SCORES // len(query_ND)) if query_ND.is_cuda else BLOCK
    for start in range(0, length, block):
        block_GBD = queue_GKD[:, start : start + block]
        scores_GnB = (query_GnD @ block_GBD.transpose(1, 2)).div_(temperature)
        rival_Gn1 = torch.maximum(rival_Gn1, scores_GnB.amax(dim=2, keepdim=True))
        highest = torch.maximum(highest_Gn1, rival_Gn1)
        shrink_Gn1 = (highest_Gn1 - highest).exp_()
        scores_GnB.sub_(highest).exp_()
        total_Gn1.mul_(shrink_Gn1).add_(scores_GnB.sum(dim=2, keepdim=True))
        weighted_GnD.mul_(shrink_Gn1).baddbmm_(scores_GnB, block_GBD)
        highest_Gn1 = highest
    loss = (highest_Gn1 + total_Gn1.log() - positive_Gn1).mean()
    top1 = 100.0 * (positive_Gn1 - rival_Gn1 > tie_width(query_ND) / temperature).to(query_ND.dtype).mean()
    gradient_GnD = weighted_GnD.div_(total_Gn1).sub_(key_GnD).div_(temperature * len(query_ND))
    return loss, top1, gradient_GnD.view_as(query_ND)


def _shapes(query_ND: Tensor, key_ND: Tensor, queue_GKD: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return uninitialised tensors of the shapes that `_streamed` returns."""
    return query_ND.new_empty(()), query_ND.new_empty(()), torch.empty_like(query_ND)


def _remember(ctx, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    """Save the gradient, which the forward pass has already computed, on `ctx`."""
    _, top1, gradient_ND = output
    ctx.save_for_backward(gradient_ND)
    ctx.mark_non_differentiable(top1, gradient_ND)
    ctx.set_materialize_grads(False)


def _differentiate(ctx, grad: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return the gradient of the query; the other inputs get none."""
    (gradient_ND,) = ctx.saved_tensors
    return None if grad is None else grad * gradient_ND, None, None, None


_operator = custom_op(
    "info_nce", _streamed, shapes=_shapes, stacked=False, setup_context=_remember, backward=_differentiate
)
