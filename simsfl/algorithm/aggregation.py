"""What clients and the average exchange: averaging of the cohort's models, and what a client makes of the average."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from simsfl.algorithm.state import State, put_, rows_of
from simsfl.models import FlatModule


def is_sync_step(step: int, steps: int, syncs: int) -> bool:
    """Whether the models are averaged after step `step` (from 0) of a round of `steps`.

    `syncs` averagings are spread evenly, the last at the end; more than one a step makes no sense,
    so at most `steps` take place.
    """
    return (step + 1) * syncs // steps > step * syncs // steps


@torch.no_grad()
def average_(state: State, *, align_momentum: bool, absent: Collection[int] = ()) -> None:
    """Average the cohort's online models (McMahan et al. 2017, equal weights), running statistics too.

    The published program starts its sum from client 0 instead of the cohort's first; here it is
    the plain mean. Momentum models are left alone, as published, unless `align_momentum` (MonAcoSFL,
    Przewiezlikowski et al., ECML-PKDD 2024).

    Args:
        absent: positions of clients whose models did not arrive, and do not count; they get the average, too.
    """
    clients, cohort = state.clients, state.cohort
    clients.online.copy_(present(cohort.online, absent).mean(dim=0))
    average_statistics_(state, absent)
    if align_momentum:
        for stack in (cohort.momentum, cohort.momentum_statistics):
            stack.copy_(present(stack, absent).mean(dim=0, keepdim=True).expand_as(stack))


def present(stack: Tensor, absent: Collection[int]) -> Tensor:
    """The rows of a cohort's `stack` of those that are there."""
    return stack[[row for row in range(len(stack)) if row not in absent]] if absent else stack


@torch.no_grad()
def average_statistics_(state: State, absent: Collection[int] = ()) -> None:
    """Average the cohort's running statistics, which all have from then on: those of clients that do not learn, too."""
    average = present(state.cohort.online_statistics, absent).mean(dim=0)
    state.clients.online_statistics.copy_(average)
    state.cohort.online_statistics.copy_(average.expand_as(state.cohort.online_statistics))


@torch.no_grad()
def divergence(model: FlatModule, state: State) -> Tensor:
    """``[C]`` how far each client's online model is from the average: the norms of all parameters' differences, summed.

    As the published program measures it.
    """
    differences = model.named(state.cohort.online - state.clients.online)
    return torch.stack([difference.flatten(1).norm(dim=1) for difference in differences.values()]).sum(dim=0)


@torch.no_grad()
def receive_(model: FlatModule, state: State, ids: Tensor, tau: float) -> None:
    """Each client of the cohort takes the average, or with `tau` mixes it with its own model.

    Divergence-aware (Zhuang et al., ICLR 2022, eq. 4 and 5): the client keeps the share ``min(scale * divergence, 1)``
    of its own; its scale is set the first time, so that the share then is `tau`.

    Args:
        ids: of the cohort, on the host.
    """
    clients, cohort = state.clients, state.cohort
    average = clients.online.expand_as(cohort.online)
    cohort.online_statistics.copy_(clients.online_statistics.expand_as(cohort.online_statistics))
    if not tau:
        cohort.online.copy_(average)
        return
    apart, rows = divergence(model, state), rows_of(state, ids)
    scale = clients.scale[rows, 0].to(apart)
    scale = torch.where((scale == 0) & (apart > 0), tau / apart, scale)
    put_(clients.scale, rows, scale[:, None])
    own_share = (scale * apart).clamp(max=1.0)[:, None]
    cohort.online.copy_(torch.lerp(average, cohort.online, own_share))
