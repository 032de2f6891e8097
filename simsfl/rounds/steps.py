"""The steps of a round: those of its clients, and those in which the server replays what clients have sent."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from simsfl.aggregations.around import divergence
from simsfl.algorithm import step
from simsfl.algorithm.aggregation import average_, average_replicas_, average_statistics_, is_sync_step, receive_
from simsfl.algorithm.batch import Batch, Everyone, Hyperparameters, Outcome
from simsfl.algorithm.communication import Exchange
from simsfl.algorithm.gathering import completed_rounds, gather_, scatter_, scatter_memory_
from simsfl.algorithm.observer import Observer
from simsfl.algorithm.plan import RoundPlan
from simsfl.algorithm.wire import Wire
from simsfl.cost.model import Missed
from simsfl.engine.cuda_graph import CapturedStep
from simsfl.engine.plan_ahead import PlanAhead
from simsfl.rounds.progress import Progress
from simsfl.runs.metrics import AbsenceCount
from simsfl.setup.parts import Parts
from simsfl.system.clock import PhaseClock
from simsfl.system.randomness import Purpose, numpy_generator


def client_steps(
    parts: Parts,
    progress: Progress,
    plans: PlanAhead,
    wire: Wire,
    observers: Sequence[Observer],
    clock: PhaseClock,
) -> Iterator[None]:
    """Train the current round, or what is left of it, with its cohort; yield after each step.

    Args:
        parts: the parts of the simulation, whose state is changed in place.
        progress: how far the run has come, updated at each step.
        plans: where the plan of the round is taken from, and that of the next one is begun.
        wire: what lies between clients and server.
        observers: objects whose methods are called at each event; see `Observer`.
        clock: a clock that adds up the time of each phase.
    """
    config, state = parts.config, parts.state
    hyper = replace(
        parts.hyper,
        clients_learn=parts.hyper.clients_learn and progress.communication.state is Exchange.BOTH_WAYS,
    )
    with clock("data"):
        plan = plans.take(parts.plan, progress.round_index)
    with clock("sync"):
        if progress.step_index == 0:
            gather_(state, plan.cohort)
            receive_(parts.model.client, state, plan.cohort, parts.aggregation)
        own_steps = completed_rounds(state, plan.cohort) * progress.steps
    for observer in observers:
        observer.round_begins(plan)
    known_absent = _absent_from_latest(parts, plan, progress.step_index)
    rates = _Rates(parts, progress.round_index, own_steps)
    while not progress.round_is_over:
        with clock("data"):
            batch = _batch(parts, plan, progress.step_index, rates, wire)
        outcome = _train_step(parts, batch, hyper, observers, clock)
        plans.begin(parts.plan, progress.round_index + 1)  # after the step, which may be recorded as a CUDA graph
        for observer in observers:
            observer.stepped(batch, outcome)
        if state.sent:
            state.sent.keep_(progress.step_index, outcome.smashed, batch.labels, outcome.absent)
        syncs = is_sync_step(progress.step_index, progress.steps, config.syncs_per_round)
        figures = _of_cohort(parts, outcome.figures)
        absent = plan.absences.in_step(progress.step_index).union(plan.mine[own] for own in outcome.absent)
        progress.finish_step(outcome.loss, outcome.top1, *figures)
        images = sum(parts.batches[position] for position in absent)
        progress.missed += Missed(images=images)
        progress.count_absent(AbsenceCount(steps_missed=len(absent), images_missed=images))
        with clock("sync"):
            if syncs:
                for observer in observers:
                    observer.averaging()
                absent = plan.absences.missing.union(wire.models_up())
                progress.missed += Missed(models=len(absent))
                _average_(parts, progress, plan.cohort, absent, learn=hyper.clients_learn)
                if config.average_replicas:
                    average_replicas_(state)
            known_absent = progress.note_absent((plan.cohort[p].item() for p in absent), known_absent)
            if progress.round_is_over:
                scatter_(state, plan.absences.missing)
                progress.count_absent(AbsenceCount(len(plan.absences.missing), len(plan.absences.slow)))
            if syncs:
                if hyper.clients_learn:
                    receive_(parts.model.client, state, plan.cohort, parts.aggregation)
                for observer in observers:
                    observer.averaged()
        yield


def _of_cohort(parts: Parts, figures: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return the means of figures over the cohort's clients, given those over this rank's part of it; all scalars."""
    if parts.world.alone or not figures:
        return figures
    share = len(parts.world.part(parts.config.cohort)) / parts.config.cohort
    sums = torch.stack(list(figures)) * share
    parts.world.sum_(sums)
    return sums.unbind()


def replayed_steps(parts: Parts, progress: Progress, clock: PhaseClock) -> Iterator[None]:
    """Train the server alone, on what clients sent in an earlier round, in a new order; yield after each step.

    Args:
        parts: the parts of the simulation, whose state is changed in place.
        progress: how far the run has come, updated at each step.
        clock: a clock that adds up the time of each phase.
    """
    state, lr = parts.state, _on_device(parts, parts.server_lr(progress.round_index))
    order = numpy_generator(parts.config.seed, Purpose.REPLAY, progress.round_index).permutation(progress.steps)
    while not progress.round_is_over:
        with clock("server"):
            s = order[progress.step_index]
            smashed = state.sent.smashed[s].to(parts.device)
            labels = state.sent.labels[s].to(parts.device) if parts.config.goal.needs_labels else None
            absent = state.sent.absent[s].nonzero().flatten().tolist()
            with parts.computing():
                loss, top1, _ = step.learn_(parts.model, state, smashed, lr, parts.hyper, labels, absent)
            syncs = is_sync_step(progress.step_index, progress.steps, parts.config.syncs_per_round)
            if syncs and parts.config.average_replicas:
                average_replicas_(state)
        progress.finish_step(loss, top1)
        if progress.round_is_over:
            scatter_memory_(state)
        yield


def _absent_from_latest(parts: Parts, plan: RoundPlan, finished: int) -> list[int]:
    """Return the sorted ids of clients that the draws make absent after `finished` steps of a round, as is recorded.

    At an averaging, slow clients count as present.
    """
    if not finished:
        return []
    averaged = is_sync_step(finished - 1, parts.steps, parts.config.syncs_per_round)
    absent = plan.absences.missing if averaged else plan.absences.in_step(finished - 1)
    return sorted(plan.cohort[position].item() for position in absent)


def _average_(parts: Parts, progress: Progress, ids: Tensor, absent: Collection[int], *, learn: bool) -> None:
    """Average the cohort's models, or only their running statistics if clients do not learn.

    Args:
        parts: the parts of the simulation.
        progress: keeps the divergences, if they are to be measured.
        ids: ``[C]`` ids of the clients in the cohort.
        absent: positions in the cohort of clients whose models did not arrive.
        learn: whether clients learn in this round.
    """
    how = parts.state, parts.aggregation, parts.images_of(ids)
    if not learn:
        average_statistics_(*how, absent)
        return
    average_(*how, absent)
    if parts.config.measure_divergence:
        apart = divergence(parts.model.client, parts.state.cohort.online, parts.state.clients.online)
        apart = parts.state.of_cohort(apart)
        progress.divergences[progress.step_index] = ids, apart


class _Rates:
    """The number of a round and its learning rates, as tensors on the device.

    Args:
        parts: the parts of the simulation.
        round_index: the round, counted from 0.
        own_steps: ``[C']`` number of steps that each client of this rank's part of the cohort did before the round.

    Attributes:
        round_index: the round, scalar int64.
        server: scalar rate of the server.
    """

    def __init__(self, parts: Parts, round_index: int, own_steps: Tensor):
        self.round_index = torch.full((), round_index, device=parts.device)
        self.server = _on_device(parts, parts.server_lr(round_index))
        self._parts, self._index, self._own_steps = parts, round_index, own_steps

    def clients(self, step_index: int) -> Tensor:
        """Return the learning rates ``[C', 1]`` of these clients in a step of the round, counted from 0."""
        return self._parts.client_lr(self._index, self._own_steps + step_index).to(self._parts.dtype)[:, None]


def _on_device(parts: Parts, rate: float) -> Tensor:
    """Return a learning rate as a scalar on the device."""
    return torch.full((), rate, device=parts.device, dtype=parts.dtype)


def _batch(parts: Parts, plan: RoundPlan, s: int, rates: _Rates, wire: Wire) -> Batch:
    """Return what the cohort trains on in step `s` of a round, counted from 0; start to read the next step's images."""
    dataset, world, absent = parts.dataset, parts.world, plan.absences.in_step(s)
    everyone = None
    if not world.alone:
        batches = [0 if position in absent else rows for position, rows in enumerate(parts.batches)]
        everyone = Everyone(world, tuple(sum(batches[p.start : p.stop]) for p in world.parts(len(batches))))
    pixels = [dataset.train.pixels[group.indices[s]] for group in plan.groups]
    if s + 1 < parts.steps:
        for group in plan.groups:
            dataset.train.ahead(group.indices[s + 1])
    labels = (
        [dataset.train_labels[group.indices[s]] for group in plan.groups] if parts.config.goal.needs_labels else None
    )
    return Batch(
        images=dataset.train,
        pixels=pixels,
        views=[group.views.map(lambda t: t[s]) for group in plan.groups],
        server_lr=rates.server,
        client_lr=rates.clients(s),
        noise=[group.noise[s] for group in plan.groups] if parts.hyper.defence else None,
        round_index=rates.round_index,
        absent=plan.here(absent),
        everyone=everyone,
        wire=wire,
        labels=labels,
    )


def _train_step(
    parts: Parts, batch: Batch, hyper: Hyperparameters, observers: Sequence[Observer], clock: PhaseClock
) -> Outcome:
    """Train on a batch; a step that could be replayed is run by Python if an observer needs that."""
    train_step = parts.train_step
    if isinstance(train_step, CapturedStep) and any(observer.needs_eager_steps for observer in observers):
        train_step = partial(train_step.eager, "an observer takes part in them")
    with parts.computing():
        return train_step(parts.model, parts.state, batch, hyper, clock)
