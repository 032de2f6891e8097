"""From all clients to the cohort of a round, and back: what persists is gathered at its start and scattered at its end.

Letters in shapes are those of `simsfl.algorithm.state`: M clients, C of them in the cohort, of which a rank has M' and
C'.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor

from simsfl.algorithm.state import State


def _persisting(state: State) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Yield what each client takes from round to round, besides averages.

    Yields:
        The tensor of the cohort ``[C', ...]``, that of all clients ``[M', ...]``, and the row ``[...]`` of a client
        that has not taken part yet, or None where its row of all clients' tensor says it.
    """
    clients, cohort, defence = state.clients, state.cohort, state.defence
    if not clients.averaged:
        yield cohort.momentum, clients.momentum, clients.initial
        yield cohort.momentum_statistics, clients.momentum_statistics, clients.initial_statistics
    yield cohort.velocity, clients.velocity, None
    if defence:
        yield defence.cohort, defence.own, defence.initial
    if state.own_memory:
        for name, one in state.memory.items():
            yield one, state.memories[name], None


def _averaged(state: State) -> list[tuple[Tensor, Tensor]]:
    """Return the tensors ``[C', ...]`` of the cohort that are averaged, each with the average ``[1, ...]``."""
    clients, cohort = state.clients, state.cohort
    pairs = (cohort.momentum, clients.momentum), (cohort.momentum_statistics, clients.momentum_statistics)
    return list(pairs) if clients.averaged else []


@torch.no_grad()
def gather_(state: State, ids: Tensor) -> None:
    """Copy the state of the clients `ids` ``[C]``, given on the host, into the cohort, in that order.

    Where clients mix the average with their own models, the cohort's online models are those that the clients left
    with; otherwise they are the average. `simsfl.algorithm.aggregation.receive_` has to follow.
    """
    clients, cohort = state.clients, state.cohort
    cohort.ids.copy_(ids, non_blocking=True)
    new = (completed_rounds(state, ids) == 0)[:, None]
    cohort.online.copy_(clients.online.expand_as(cohort.online))
    if len(clients.own):
        cohort.online.copy_(torch.where(new, cohort.online, taken(state, clients.own, ids).to(cohort.online)))
    for mine, average in _averaged(state):
        mine.copy_(average.expand_as(mine))
    for mine, theirs, initial in _persisting(state):
        mine.copy_(taken(state, theirs, ids))
        if initial is not None:
            mine.copy_(torch.where(new, initial, mine))


def taken(state: State, stack: Tensor, ids: Tensor) -> Tensor:
    """Return the rows ``[C', ...]`` of this rank's part of the cohort, out of a stack with a row for each client.

    Args:
        state: a state whose cohort has been gathered.
        stack: ``[M', ...]`` rows of this rank's clients.
        ids: ``[C]`` ids of the cohort's clients, on the host.
    """
    rows = rows_of(state, ids)
    return state.world.rows(stack, rows, state.clients.count)[_mine(state)]


def give_(state: State, stack: Tensor, values: Tensor) -> None:
    """Write the rows ``[C', ...]`` of this rank's part of the cohort into a stack with a row for each client."""
    state.world.put_(stack, state.cohort.ids, values, state.clients.count)


def _mine(state: State) -> slice:
    """Return which positions of the cohort are this rank's."""
    mine = state.world.part(len(state.cohort.ids))
    return slice(mine.start, mine.stop)


def rows_of(state: State, ids: Tensor) -> Tensor:
    """Return the cohort's ids ``[C]`` on the device of the tensors with a row per client, to index them.

    Args:
        state: a state whose cohort has been gathered.
        ids: the same ids on the host.
    """
    return state.cohort.ids if state.clients.storage.kind == "device" else ids


def completed_rounds(state: State, ids: Tensor) -> Tensor:
    """Return the rounds that each client of this rank's part of the cohort has completed, ``[C']`` int64.

    Args:
        state: a state whose cohort has been gathered.
        ids: ``[C]`` ids of the cohort's clients, on the host.
    """
    return state.clients.participation[rows_of(state, ids)[_mine(state)]].to(state.cohort.ids.device)


@torch.no_grad()
def scatter_(state: State, missing: Collection[int] = ()) -> None:
    """Copy the cohort's state back to all clients' and count the round as completed.

    This has its place after the averaging that ends a round, and before clients receive the average.

    Args:
        state: the state.
        missing: positions of the cohort's clients that did not come, for whom the round does not count.
    """
    clients, cohort = state.clients, state.cohort
    rows = cohort.ids.to(clients.storage.device)
    for mine, average in _averaged(state):
        average.copy_(state.of_cohort(mine).mean(dim=0, keepdim=True))
    for mine, theirs, _ in _persisting(state):
        give_(state, theirs, mine)
    if len(clients.own):
        give_(state, clients.own, cohort.online.detach())
    came = torch.tensor([position not in missing for position in range(len(rows))])
    clients.participation.index_add_(0, rows, came.to(rows))
    clients.storage.release()


def scatter_memory_(state: State) -> None:
    """Copy what the objective remembers for the cohort back to all clients', unless they share it."""
    if state.own_memory:
        for name, one in state.memory.items():
            give_(state, state.memories[name], one)


def rows_before(state: State, positions: Collection[int]) -> list[tuple[Tensor, Tensor]]:
    """Return what the cohort's clients at these positions have: each tensor of the cohort, and a copy of their rows.

    What the objective remembers is among it, unless all clients share that.
    """
    if not positions:
        return []
    cohort, defence = state.cohort, state.defence
    tensors = [cohort.online.detach(), cohort.online_statistics, cohort.momentum, cohort.momentum_statistics]
    tensors += [cohort.velocity, *([defence.cohort] if defence else [])]
    tensors += state.memory.values() if state.own_memory else []
    return [(tensor, tensor[sorted(positions)]) for tensor in tensors]


@torch.no_grad()
def put_back_(before: Sequence[tuple[Tensor, Tensor]], positions: Collection[int]) -> None:
    """Give the cohort's clients at these positions what they had when `rows_before` was called."""
    for tensor, rows in before:
        tensor[sorted(positions)] = rows
