"""Averaging of the cohort's models, and what each client does with the average."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from simsfl.aggregations import Aggregation
from simsfl.algorithm.gathering import give_, taken
from simsfl.algorithm.state import State
from simsfl.models import FlatModule
from simsfl.system.answers import kept, tensor_from, unchanged


def is_sync_step(step: int, steps: int, syncs: int) -> bool:
    """Return whether models are averaged after step `step`, counted from 0, of a round of `steps` steps.

    The `syncs` averagings of a round are spread evenly, and the last one ends the round. There is at most one per step,
    so `steps` of them if `syncs` is larger.

    >>> [step for step in range(10) if is_sync_step(step, steps=10, syncs=3)]
    [3, 6, 9]
    """
    return (step + 1) * syncs // steps > step * syncs // steps


@torch.no_grad()
def average_(state: State, aggregation: Aggregation, images_C: Tensor, absent: Collection[int] = ()) -> None:
    """Aggregate the cohort's online models, and combine their running statistics, and momentum models to be aligned.

    The average goes to `state.clients`, from where `receive_` gives it to the clients of the cohort. By default it is
    the plain mean over the cohort (McMahan et al. 2017), while the published program starts its sum from client 0
    instead of the cohort's first client.

    >>> from types import SimpleNamespace as Part
    >>> from simsfl.system.world import ALONE
    >>> cohort = Part(online=torch.tensor([[1.0, 2.0], [3.0, 6.0]]), online_statistics=torch.empty(2, 0))
    >>> clients = Part(online=torch.empty(2), online_statistics=torch.empty(0))
    >>> state = Part(clients=clients, cohort=cohort, aggregation={}, world=ALONE)
    >>> average_(state, Aggregation(), torch.tensor([50, 50]))
    >>> clients.online
    tensor([2., 4.])

    Args:
        state: the state, whose aggregation's memory may change as well.
        aggregation: how the models are combined.
        images_C: number of images that each client of the cohort holds, int64.
        absent: positions of clients whose models did not arrive. They do not count, but receive the average like all
            others.
    """
    clients, cohort, how = state.clients, state.cohort, (aggregation, images_C, absent)
    combined_P = _combined(state, cohort.online.detach(), *how)
    with (
        kept(state.aggregation, "aggregation", "step", aggregation),
        unchanged(clients.online, field="aggregation", method="step", of=aggregation),
    ):
        new_P = aggregation.step(clients.online, combined_P, state.aggregation)
    clients.online.copy_(tensor_from(new_P, clients.online.shape, "aggregation", "step", aggregation))
    average_statistics_(state, aggregation, images_C, absent)
    if aggregation.aligns_momentum:
        for stack in (cohort.momentum, cohort.momentum_statistics):
            stack.copy_(_combined(state, stack, *how).expand_as(stack))


def _combined(
    state: State, models_cP: Tensor, aggregation: Aggregation, images_C: Tensor, absent: Collection[int]
) -> Tensor:
    """Return the model ``[P]`` that an aggregation makes of those of a cohort; raise a ValueError if it is none.

    Args:
        state: the state, which knows the ranks.
        models_cP: models of this rank's part of the cohort.
        aggregation: how they are combined.
        images_C: number of images that each client of the cohort holds.
        absent: positions of clients whose models did not arrive.
    """
    world, images_n = state.world, _present(images_C, absent)
    if not world.alone:
        mine = world.part(len(images_C))
        gone = [position - mine.start for position in absent if position in mine]
        own = _present(models_cP, gone), _present(images_C[mine.start : mine.stop], gone)
        with unchanged(*own, field="aggregation", method="share", of=aggregation):
            sum_P = aggregation.share(*own, images_n.sum(), len(images_n))
        if sum_P is not None:
            tensor_from(sum_P, models_cP.shape[1:], "aggregation", "share", aggregation)
            world.sum_(sum_P)
            return sum_P
        models_cP = state.of_cohort(models_cP)
    own = _present(models_cP, absent), images_n
    with unchanged(*own, field="aggregation", method="combine", of=aggregation):
        combined_P = aggregation.combine(*own)
    return tensor_from(combined_P, models_cP.shape[1:], "aggregation", "combine", aggregation)


def _present(stack: Tensor, absent: Collection[int]) -> Tensor:
    """Return the rows of `stack` ``[C, ...]`` that belong to clients of the cohort whose positions are not `absent`."""
    return stack[[row for row in range(len(stack)) if row not in absent]] if absent else stack


@torch.no_grad()
def average_statistics_(state: State, aggregation: Aggregation, images_C: Tensor, absent: Collection[int] = ()) -> None:
    """Replace the running statistics of the cohort's online models by what is combined of them.

    Running statistics change even in rounds in which the clients' parameters do not.

    Args:
        state: the state.
        aggregation: how they are combined.
        images_C: number of images that each client of the cohort holds, int64.
        absent: positions of clients whose statistics do not count; they receive the average like all others.
    """
    average = _combined(state, state.cohort.online_statistics, aggregation, images_C, absent)
    state.clients.online_statistics.copy_(average)
    state.cohort.online_statistics.copy_(average.expand_as(state.cohort.online_statistics))


@torch.no_grad()
def average_replicas_(state: State) -> None:
    """Replace the models of the server's replicas, online and momentum, and their running statistics by their means.

    What the optimiser and the objective remember, such as key queues, stays each replica's own.

    >>> from types import SimpleNamespace as Part
    >>> names = ("online", "momentum", "online_statistics", "momentum_statistics")
    >>> servers = [Part(**{name: torch.full((2,), value) for name in names}) for value in (1.0, 4.0)]
    >>> average_replicas_(Part(servers=servers))
    >>> servers[0].online.tolist(), servers[1].momentum.tolist()
    ([2.5, 2.5], [2.5, 2.5])
    """
    for name in ("online", "momentum", "online_statistics", "momentum_statistics"):
        own = [getattr(replica, name) for replica in state.servers]
        mean = torch.stack(own).mean(dim=0)
        for one in own:
            one.copy_(mean)


@torch.no_grad()
def receive_(model: FlatModule, state: State, ids: Tensor, aggregation: Aggregation) -> None:
    """Give the average to each client of the cohort, or what the aggregation lets it make of the average.

    >>> from types import SimpleNamespace as Part
    >>> cohort = Part(online=torch.tensor([[1.0, 2.0], [3.0, 6.0]]), online_statistics=torch.empty(2, 0))
    >>> clients = Part(online=torch.tensor([2.0, 4.0]), online_statistics=torch.empty(0))
    >>> receive_(None, Part(clients=clients, cohort=cohort), torch.tensor([7, 3]), Aggregation())
    >>> cohort.online.tolist()
    [[2.0, 4.0], [2.0, 4.0]]

    Args:
        model: the clients' network.
        state: the state; what clients remember of averagings may change as well.
        ids: ``[C]`` ids of the cohort's clients, on the host.
        aggregation: how the average was made, and what clients do with it.
    """
    clients, cohort = state.clients, state.cohort
    cohort.online_statistics.copy_(clients.online_statistics.expand_as(cohort.online_statistics))
    if not aggregation.mixes:
        cohort.online.copy_(clients.online.expand_as(cohort.online))
        return
    memory_CR = taken(state, clients.received, ids).to(cohort.online)
    with unchanged(cohort.online, clients.online, field="aggregation", method="receive", of=aggregation):
        own_CP = aggregation.receive(model, cohort.online.detach(), clients.online, memory_CR)
    cohort.online.copy_(tensor_from(own_CP, cohort.online.shape, "aggregation", "receive", aggregation))
    give_(state, clients.received, memory_CR)
