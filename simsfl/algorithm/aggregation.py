"""Averaging of the cohort's models, and what each client does with the average."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from simsfl.algorithm.state import State, put_, rows_of
from simsfl.models import FlatModule


def is_sync_step(step: int, steps: int, syncs: int) -> bool:
    """Return whether models are averaged after step `step`, counted from 0, of a round of `steps` steps.

    The `syncs` averagings of a round are spread evenly, and the last one ends the round. There is at most one per step,
    so `steps` of them if `syncs` is larger.

    >>> [step for step in range(10) if is_sync_step(step, steps=10, syncs=3)]
    [3, 6, 9]
    """
    return (step + 1) * syncs // steps > step * syncs // steps


@torch.no_grad()
def average_(state: State, *, align_momentum: bool, absent: Collection[int] = ()) -> None:
    """Average the cohort's online models with equal weights (McMahan et al. 2017), and their running statistics.

    The average goes to `state.clients`, from where `receive_` gives it to the clients of the cohort. It is the plain
    mean over the cohort, while the published program starts its sum from client 0 instead of the cohort's first client.

    >>> from types import SimpleNamespace as Part
    >>> cohort = Part(online=torch.tensor([[1.0, 2.0], [3.0, 6.0]]), online_statistics=torch.empty(2, 0))
    >>> clients = Part(online=torch.empty(2), online_statistics=torch.empty(0))
    >>> average_(Part(clients=clients, cohort=cohort), align_momentum=False)
    >>> clients.online
    tensor([2., 4.])

    Args:
        align_momentum: whether momentum models are replaced by their average, too (MonAcoSFL, Przewiezlikowski et al.,
            ECML-PKDD 2024). The published program leaves them alone.
        absent: positions of clients whose models did not arrive. They do not count, but receive the average like all
            others.
    """
    clients, cohort = state.clients, state.cohort
    clients.online.copy_(_present(cohort.online, absent).mean(dim=0))
    average_statistics_(state, absent)
    if align_momentum:
        for stack in (cohort.momentum, cohort.momentum_statistics):
            stack.copy_(_present(stack, absent).mean(dim=0, keepdim=True).expand_as(stack))


def _present(stack: Tensor, absent: Collection[int]) -> Tensor:
    """Return the rows of `stack` ``[C, ...]`` that belong to clients of the cohort whose positions are not `absent`."""
    return stack[[row for row in range(len(stack)) if row not in absent]] if absent else stack


@torch.no_grad()
def average_statistics_(state: State, absent: Collection[int] = ()) -> None:
    """Replace the running statistics of the cohort's online models by their average.

    Running statistics change even in rounds in which the clients' parameters do not.

    Args:
        absent: positions of clients whose statistics do not count; they receive the average like all others.
    """
    average = _present(state.cohort.online_statistics, absent).mean(dim=0)
    state.clients.online_statistics.copy_(average)
    state.cohort.online_statistics.copy_(average.expand_as(state.cohort.online_statistics))


@torch.no_grad()
def divergence(model: FlatModule, state: State) -> Tensor:
    """Return how far each client's online model is from the latest average, ``[C]``.

    The distance is the sum over all parameter tensors of the L2 norm of the difference, as in the published program.

    Args:
        model: the clients' network.
    """
    differences = model.named(state.cohort.online - state.clients.online)
    return torch.stack([difference.flatten(1).norm(dim=1) for difference in differences.values()]).sum(dim=0)


@torch.no_grad()
def receive_(model: FlatModule, state: State, ids: Tensor, tau: float) -> None:
    """Give the average to each client of the cohort, or with `tau` mix it into the client's own model.

    Mixing is divergence-aware (Zhuang et al., ICLR 2022, eq. 4 and 5): a client keeps the share ``min(scale *
    divergence, 1)`` of its own model. Its scale is set when it first differs from the average, such that it keeps the
    share `tau` that time.

    >>> from types import SimpleNamespace as Part
    >>> cohort = Part(online=torch.tensor([[1.0, 2.0], [3.0, 6.0]]), online_statistics=torch.empty(2, 0))
    >>> clients = Part(online=torch.tensor([2.0, 4.0]), online_statistics=torch.empty(0))
    >>> receive_(None, Part(clients=clients, cohort=cohort), torch.tensor([7, 3]), tau=0.0)
    >>> cohort.online.tolist()
    [[2.0, 4.0], [2.0, 4.0]]

    Args:
        model: the clients' network.
        ids: ``[C]`` ids of the cohort's clients, on the host.
        tau: share of its own model that a client keeps the first time; 0 for no mixing.
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
