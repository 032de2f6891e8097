"""The client phase: the cohort's models as one batched program.

The only place where model code meets the client dimension: `functional_call` under `vmap` over
the stacked parameters.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from simsfl.models import FlatModule

CHUNK = 25
"""Clients run together on a CPU, so that a chunk's activations stay in cache."""


def forward(model: FlatModule, parameters: Tensor, images: Tensor) -> Tensor:
    """Smashed data of every client: ``[C, P]`` parameters, ``[C, B, 3, H, W]`` -> ``[C, B, c, h, w]``."""

    def one_client(named: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(model.template, named, (x,))

    chunk_size = CHUNK if images.device.type == "cpu" else None
    return vmap(one_client, chunk_size=chunk_size)(model.named(parameters), images)


def backward(parameters: Tensor, smashed: Tensor, gradient: Tensor) -> Tensor:
    """Gradient ``[C, P]`` of each client's parameters from that of its own smashed data.

    One call for all: no client's smashed data depends on another's parameters.
    """
    return torch.autograd.grad(smashed, parameters, gradient)[0]
