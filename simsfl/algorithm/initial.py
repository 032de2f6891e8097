"""The state with which training begins: tensors are allocated here, once, and change in place from then on.

Letters in shapes are those of `simsfl.algorithm.state`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from simsfl.aggregations import Aggregation
from simsfl.algorithm.state import Clients, Cohort, Remembered, ServerState
from simsfl.models import FlatModule
from simsfl.objectives import Memory
from simsfl.optimisers import Optimiser
from simsfl.system.answers import count_from
from simsfl.system.client_store import Storage
from simsfl.system.world import World


def initial_clients(
    model: FlatModule,
    clients: int,
    storage: Storage,
    device: torch.device,
    dtype: torch.dtype,
    *,
    optimiser: Optimiser,
    aggregation: Aggregation,
    world: World,
) -> Clients:
    """Allocate the state of `clients` clients, who all begin with the weights of `model`.

    Args:
        model: the clients' network.
        clients: number of clients.
        storage: what allocates the tensors with a row per client, in its own dtype.
        device: device of the averages.
        dtype: dtype of the averages.
        optimiser: says how much it remembers.
        aggregation: says whether momentum models are combined, so that a single row is enough for all, and whether
            clients mix the average with their own models, which are then kept.
        world: the ranks, each of which allocates the rows of its own clients.
    """
    mine = len(world.part(clients))
    online, statistics = (one.to(device, dtype) for one in (model.initial, model.initial_statistics))
    numbers = count_from(aggregation.remembered(len(online)), "aggregation", "remembered", aggregation)
    received = (mine, numbers) if aggregation.mixes else (0, 1)

    def persisting(one: Tensor) -> Tensor:
        return _stack(one, 1) if aggregation.aligns_momentum or clients == 1 else storage.zeros(mine, len(one))

    return Clients(
        online=online.clone(),
        online_statistics=statistics.clone(),
        initial=online.clone(),
        initial_statistics=statistics.clone(),
        momentum=persisting(online),
        momentum_statistics=persisting(statistics),
        velocity=storage.zeros(mine, _remembered(optimiser, online)),
        own=storage.zeros(mine if aggregation.mixes else 0, len(online)),
        received=storage.zeros(*received, dtype),
        participation=torch.zeros(clients, dtype=torch.long, device=storage.device),
        averaged=aggregation.aligns_momentum,
        storage=storage,
        world=world,
    )


def _remembered(optimiser: Optimiser, weights: Tensor) -> int:
    """Return how many numbers an optimiser remembers of these weights ``[P]``; raise a ValueError if it is no count."""
    return count_from(optimiser.size(len(weights)), "optimizer", "size", optimiser)


def initial_cohort(
    model: FlatModule, cohort: int, device: torch.device, dtype: torch.dtype, *, optimiser: Optimiser, world: World
) -> Cohort:
    """Allocate the state of a rank's part of a cohort of `cohort` clients, who begin with the weights of `model`."""
    mine = len(world.part(cohort))
    online, statistics = (one.to(device, dtype) for one in (model.initial, model.initial_statistics))
    return Cohort(
        ids=torch.arange(cohort, device=device),
        online=_stack(online, mine).requires_grad_(),
        online_statistics=_stack(statistics, mine),
        momentum=_stack(online, mine),
        momentum_statistics=_stack(statistics, mine),
        velocity=torch.zeros(mine, _remembered(optimiser, online), device=device, dtype=dtype),
    )


def initial_server(model: FlatModule, device: torch.device, dtype: torch.dtype, *, optimiser: Optimiser) -> ServerState:
    """Allocate the server's state, which takes the initial weights out of `model` (see `FlatModule.take_initial`).

    They may be most of a run's memory, so the model does not keep a copy.
    """
    online, statistics = model.take_initial().to(device, dtype), model.initial_statistics.to(device, dtype)
    return ServerState(
        online=online.clone(),
        momentum=online,
        velocity=online.new_zeros(_remembered(optimiser, online)),
        online_statistics=statistics.clone(),
        momentum_statistics=statistics.clone(),
    )


def further_replicas(server: ServerState, count: int) -> tuple[ServerState, ...]:
    """Allocate the states of `count` further replicas of a server, which begin as it does."""
    return tuple(ServerState(**{name: one.clone() for name, one in vars(server).items()}) for _ in range(count))


def cohort_memory(memories: Memory, cohort: int) -> Memory:
    """Allocate what an objective remembers for `cohort` clients of a cohort, given what it does for all of a rank."""
    return {name: one.new_zeros(cohort, *one.shape[1:]) for name, one in memories.items()}


def initial_remembered(
    initial: Tensor, clients: int, cohort: int, storage: Storage, device: torch.device, dtype: torch.dtype
) -> Remembered:
    """Allocate what the defences remember of `clients` clients, who all begin with the row `initial` ``[A]``."""
    initial = initial.to(device, dtype)
    own = storage.zeros(clients, len(initial), dtype)  # a row may count steps, and bfloat16 stops at 256
    return Remembered(initial=initial, cohort=initial.repeat(cohort, 1), own=own)


def _stack(one: Tensor, rows: int) -> Tensor:
    """Return `rows` copies of a vector."""
    return one.expand(rows, -1).clone()
