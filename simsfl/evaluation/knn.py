"""The kNN monitor (Wu et al., CVPR 2018)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from simsfl.evaluation.encoding import Watch, unwatched

_CHUNK = 500
"""Test rows per block."""


@torch.no_grad()
def knn_hits(
    bank: Tensor,
    bank_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    *,
    k: int = 200,
    temperature: float = 0.1,
    watch: Watch = unwatched,
) -> Tensor:
    """Return ``[m]`` bool: which test rows their k nearest bank rows classify correctly.

    Each neighbour votes for its label with weight exp(cosine / temperature) (Wu et al., CVPR 2018).

    Args:
        bank: ``[n, F]`` features with labels ``[n]``.
        test: ``[m, F]`` features with labels ``[m]``. They are compared in blocks, so that memory is ``n * _CHUNK``
            numbers.

    >>> bank, labels = torch.eye(3), torch.tensor([0, 1, 2])
    >>> knn_hits(bank, labels, bank[:2], torch.tensor([0, 2]), k=1)
    tensor([ True, False])
    """
    bank, test = F.normalize(bank, dim=1), F.normalize(test, dim=1)
    classes = int(bank_labels.max()) + 1
    hits = []
    blocks = list(zip(test.split(_CHUNK), test_labels.split(_CHUNK), strict=True))
    for block, labels in watch("kNN", blocks):
        cosine, nearest = (block @ bank.T).topk(min(k, len(bank)), dim=1)
        votes = cosine.new_zeros(len(block), classes)
        votes.scatter_add_(1, bank_labels[nearest], (cosine / temperature).exp())
        hits.append(votes.argmax(dim=1) == labels)
    return torch.cat(hits)
