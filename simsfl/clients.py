"""The client phase: the cohort's models as one batched program.

The only place where model code meets the client dimension: `functional_call` under `vmap` over
the stacked parameters.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from simsfl.models import FlatModule


def forward(model: FlatModule, parameters: Tensor, images: Tensor, chunk: int | None = None) -> list[Tensor]:
    """Smashed data of every client, chunk by chunk: ``[C, P]``, ``[C, B, 3, H, W]`` -> ``[C', B, c, h, w]`` each.

    Args:
        chunk: C', clients run together, so that what they work on stays in cache; None for all.
    """

    def one_client(named: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(model.template, named, (x,))

    size = chunk or len(images)
    chunks = zip(parameters.split(size), images.split(size), strict=True)
    return [vmap(one_client)(model.named(rows), x) for rows, x in chunks]


def backward(parameters: Tensor, smashed: Sequence[Tensor], gradient: Tensor) -> Tensor:
    """Gradient ``[C, P]`` of each client's parameters from that of its own smashed data, ``[N, c, h, w]``.

    One call for all: no client's smashed data depends on another's parameters.
    """
    rows = gradient.split([chunk.shape[:2].numel() for chunk in smashed])
    own = [row.view_as(chunk).to(chunk.dtype) for row, chunk in zip(rows, smashed, strict=True)]
    return torch.autograd.grad(smashed, parameters, own)[0]
