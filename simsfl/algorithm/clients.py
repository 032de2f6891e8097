"""The clients' part of a step: the cohort's models as one batched program.

This is the only place where model code meets the client dimension: `functional_call` (`FlatModule.run`) under `vmap`
over the stacked parameters.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.func import vmap

from simsfl.algorithm.batch import Hyperparameters
from simsfl.algorithm.state import State
from simsfl.defences import Chain
from simsfl.kernels import contiguous
from simsfl.models import FlatModule
from simsfl.optimisers import take_step_
from simsfl.system.draws import Draws


def forward(
    model: FlatModule, parameters: Tensor, statistics: Tensor, images: Sequence[Tensor], chunk: int | None = None
) -> list[Tensor]:
    """Return the smashed data of all clients, ``[C', B', c, h, w]`` for each chunk of clients.

    Args:
        model: the clients' network.
        parameters: ``[C, P]`` parameters of each client.
        statistics: ``[C, S]`` running statistics of each client, which are updated in place.
        images: ``[C', B', 3, H, W]`` for each group of clients that share a batch size, in the order of `parameters`.
        chunk: clients that run together, so that what they work on stays in the cache; None for all of a group.
    """
    smashed = []
    counts = [len(group) for group in images]
    for rows, own, x in zip(parameters.split(counts), statistics.split(counts), images, strict=True):
        size = chunk or len(x)
        for part in zip(rows.split(size), own.split(size), x.split(size), strict=True):
            named = {**model.named(part[0]), **model.named_statistics(part[1])}
            smashed.append(vmap(model.run)(named, part[2]))
    return smashed


def protected(smashed: Sequence[Tensor], defence: Chain, draws: Draws | None, start: int = 0) -> list[Tensor]:
    """Return what clients send instead of their smashed data, in the same chunks.

    Args:
        smashed: what `forward` returned.
        defence: what clients do against reconstruction.
        draws: its random numbers, for the rows in the same order and maybe more.
        start: row of the random numbers that the first of these rows has.
    """
    if not defence:
        return list(smashed)
    result = []
    for chunk in smashed:
        rows = chunk.flatten(0, 1)
        result.append(defence.protect(rows, draws.rows(start, start + len(rows))).view_as(chunk))
        start += len(rows)
    return result


def defended(
    gradient: Tensor,
    images: Sequence[Tensor],
    smashed: Tensor,
    memory: Tensor,
    defence: Chain,
    draws: Draws,
    round_index: Tensor,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return the gradient ``[N, c, h, w]`` that clients use instead of the one that arrived, and the defences' figures.

    Args:
        gradient: ``[N, c, h, w]`` gradient that arrived.
        images: ``[C', B', 3, H, H]`` images in [0, 1] of each group of clients, in the same order; where clients learn
            from both views, first those of the first view of all groups.
        smashed: ``[N, c, h, w]`` what clients have sent for them, or more than that.
        memory: ``[C, A]`` what the defences remember of each client, changed in place.
        defence: what clients do against reconstruction.
        draws: its random numbers, for the rows in the same order and maybe more.
        round_index: the round, scalar int64.
    """
    gradient = defence.receive(gradient, draws.rows(0, len(gradient)))
    views = sum(map(len, images)) // len(memory)
    memories = memory.split([len(group) for group in images[: len(images) // views]]) * views
    parts, figures, start = [], [], 0
    for group, own in zip(images, memories, strict=True):
        stop = start + group.shape[:2].numel()
        added = defence.add(group, smashed[start:stop].unflatten(0, group.shape[:2]), own, round_index)
        parts.append(gradient[start:stop] + added.gradient.flatten(0, 1) if added else gradient[start:stop])
        figures.append(added.figures if added else ())
        start = stop
    return torch.cat(parts), tuple(torch.cat(figure).mean() for figure in zip(*figures, strict=True))


def descend_(model: FlatModule, state: State, gradient: Tensor, lr: Tensor, hyper: Hyperparameters) -> None:
    """Let the clients of the cohort take a step, in place.

    Args:
        model: the clients' network.
        state: the state of the cohort, which changes, and the average.
        gradient: ``[C, P]`` gradient of each client's parameters.
        lr: ``[C, 1]`` learning rates.
        hyper: how they descend.
    """
    cohort = state.cohort
    take_step_(hyper.optimiser, model, cohort.online, gradient, cohort.velocity, lr, state.clients.online)


def backward(parameters: Tensor, smashed: Sequence[Tensor], gradient: Tensor) -> Tensor:
    """Return the gradient ``[C, P]`` of each client's parameters, given that of its own smashed data.

    One call serves all clients, since no client's smashed data depend on another's parameters.

    Args:
        parameters: ``[C, P]`` the parameters that `forward` was called with.
        smashed: what `forward` returned.
        gradient: ``[N, c, h, w]`` gradient of the smashed data, in the same order.
    """
    gradient = contiguous(gradient)  # a server may return it channels-last
    rows = gradient.split([chunk.shape[:2].numel() for chunk in smashed])
    own = [row.view_as(chunk).to(chunk.dtype) for row, chunk in zip(rows, smashed, strict=True)]
    return torch.autograd.grad(smashed, parameters, own)[0]
