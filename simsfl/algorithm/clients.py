"""The client phase: the cohort's models as one batched program.

The only place where model code meets the client dimension: `functional_call` (`FlatModule.run`) under `vmap` over
the stacked parameters.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.func import vmap

from simsfl.kernels import contiguous
from simsfl.models import FlatModule


def forward(
    model: FlatModule, parameters: Tensor, statistics: Tensor, images: Sequence[Tensor], chunk: int | None = None
) -> list[Tensor]:
    """Smashed data of every client, chunk by chunk: ``[C', B', c, h, w]`` each.

    Args:
        parameters: ``[C, P]``.
        statistics: ``[C, S]``, brought up to date.
        images: ``[C', B', 3, H, W]`` of each group of clients with the same batch size, in the order of parameters.
        chunk: C', clients run together, so that what they work on stays in cache; None for all.
    """
    smashed = []
    counts = [len(group) for group in images]
    for rows, own, x in zip(parameters.split(counts), statistics.split(counts), images, strict=True):
        size = chunk or len(x)
        for part in zip(rows.split(size), own.split(size), x.split(size), strict=True):
            named = {**model.named(part[0]), **model.named_statistics(part[1])}
            smashed.append(vmap(model.run)(named, part[2]))
    return smashed


def backward(parameters: Tensor, smashed: Sequence[Tensor], gradient: Tensor) -> Tensor:
    """Gradient ``[C, P]`` of each client's parameters from that of its own smashed data, ``[N, c, h, w]``.

    One call for all: no client's smashed data depends on another's parameters.
    """
    gradient = contiguous(gradient)  # a server may have it channels-last
    rows = gradient.split([chunk.shape[:2].numel() for chunk in smashed])
    own = [row.view_as(chunk).to(chunk.dtype) for row, chunk in zip(rows, smashed, strict=True)]
    return torch.autograd.grad(smashed, parameters, own)[0]
