"""The round loop (Li et al., ICLR 2023, algorithm 1): train a round, evaluate, go on to the next.

What happens within a round, from drawing its cohort to averaging its models, is in `simsfl.rounds.steps`.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from simsfl.algorithm.communication import Exchange
from simsfl.algorithm.observer import Observer
from simsfl.algorithm.wire import Wire
from simsfl.config import RunConfig
from simsfl.data import Dataset
from simsfl.data.partition import Partition
from simsfl.engine.plan_ahead import PlanAhead
from simsfl.engine.precision import arithmetic
from simsfl.rounds import evaluating, saving
from simsfl.rounds.callback import Callback, checked, with_added
from simsfl.rounds.pace import Pace
from simsfl.rounds.progress import Progress
from simsfl.rounds.steps import client_steps, replayed_steps
from simsfl.runs.checkpoint import Timed
from simsfl.runs.metrics import (
    AbsenceRecord,
    EvaluationRecord,
    OneRecord,
    ProbeRecord,
    Record,
    RoundRecord,
    StepRecord,
    SyncRecord,
)
from simsfl.runs.metrics_log import NOTHING, Extent
from simsfl.setup.checks import warn_of_short_queue
from simsfl.setup.parts import Parts, build
from simsfl.setup.weights import Weights
from simsfl.system.clock import PhaseClock
from simsfl.system.memory import peak_memory_bytes
from simsfl.system.randomness import global_generators
from simsfl.system.world import ALONE, World

__all__ = ["Simulation"]

log = logging.getLogger(__name__)


class Simulation:
    """A run of MocoSFL, or of one of its baselines.

    Args:
        config: what to run.
        dataset: the images, instead of loading ``config.dataset``.
        partition: which images each client holds, instead of what ``config.partition`` names. Its indices count the
            training images from 0, or those without labels if there are any. It is saved with the run.
        dtype: dtype of everything that is learnt, and with fp32 precision of what is computed; float64 is for tests.
        choices: versions of operators to use, where they are named, instead of finding out which are fastest.
        start: weights to start from, instead of loading ``config.init_client`` or ``config.init_backbone``.
        auto_precision: the precision that "auto" means and why, instead of what suits the device.
        world: the ranks that train it together, of which this process is one; all of them do with it what one does.
        callbacks: objects that follow the records, besides those that the config names.

    Attributes:
        parts: what it is made of (`simsfl.setup.parts.Parts`), of which these are at hand as well:
        config: the config with every rule applied.
        dataset: the images, on the device.
        model: the network, cut in two.
        state: everything that is learnt.
        progress: how far the run has come (`simsfl.rounds.progress.Progress`).
        callbacks: objects that follow the records (`simsfl.rounds.callback.Callback`).
        observers: objects whose methods are called when clients do something (`simsfl.algorithm.observer.Observer`).
        wire: what lies between clients and server (`simsfl.algorithm.wire.Wire`).
        clock: adds up the time of each phase.
        pace: how fast steps go, and when their losses are read (`simsfl.rounds.pace.Pace`).
        damaged: a line on each thing that was damaged, and therefore not used, in loading.

    Raises:
        ValueError: config, data and machine do not fit together.
    """

    def __init__(
        self,
        config: RunConfig,
        dataset: Dataset | None = None,
        *,
        partition: Partition | None = None,
        dtype: torch.dtype = torch.float32,
        choices: Mapping[str, str] | None = None,
        start: Weights | None = None,
        auto_precision: tuple[str, str] | None = None,
        world: World = ALONE,
        callbacks: Iterable[Callback] = (),
    ):
        callbacks = checked(callbacks)
        parts = build(
            config,
            dataset,
            partition=partition,
            dtype=dtype,
            choices=choices,
            start=start,
            auto_precision=auto_precision,
            world=world,
        )
        warn_of_short_queue(parts.config, parts.groups)  # said where a run begins, not again where it goes on
        self._begin(parts, callbacks)

    def _begin(self, parts: Parts, callbacks: list[Callback], progress: Progress | None = None) -> None:
        """Set everything up around the parts, at the start of the run or where `progress` stands."""
        self.parts, self.config, self.dataset = parts, parts.config, parts.dataset
        self.model, self.state = parts.model, parts.state
        self.progress = progress or Progress.of(parts)
        self.callbacks, self._started = [*checked(parts.callbacks), *callbacks], 0
        self.observers: list[Observer] = []
        self.wire = Wire()
        self.clock = PhaseClock(parts.device)
        self.pace = Pace(parts.device, self.clock, alone=parts.world.alone)
        self.damaged: list[str] = []
        self._expected: list[str] = []
        self._watched = False  # whether a step has been found not to draw from global random numbers, or warned of
        self._plans = PlanAhead(parts.device, parts.config.rounds)

    def __repr__(self) -> str:
        config, done = self.config, f"{self.progress.round_index:,} of {self.config.rounds:,} rounds done"
        return f"<Simulation: {config.method}, {config.clients:,} clients, {self.dataset.name}, {config.arch}, {done}>"

    def train(self) -> Iterator[Record]:
        """Train to the end, yielding each record as it becomes known.

        Order: per round its steps, its evaluation if one is due, what it took the fleet if there is one, and the round
        itself; at the end the probes that are asked for. The untrained network is evaluated after the first round's
        steps, so that training starts at once. The state may be saved whenever a `RoundRecord` has come, or a
        `StepRecord` whose step is ``progress.step_index``, or while an evaluation goes on.

        Raises:
            NonFiniteLossError: the loss of a step was not finite.
        """
        config, progress = self.config, self.progress
        self._start()
        while progress.round_index < config.rounds:
            if not progress.round_is_over:
                yield from self.round()
            evaluations = [self.evaluate_untrained()] if progress.round_index == 0 else []
            due = config.eval_every and progress.finished_rounds % config.eval_every == 0
            if due or progress.finished_rounds == config.rounds:
                evaluations.append(self.evaluate())
            yield from map(self._recorded, evaluations)  # one who stops in between does all of them again
            if self.parts.timeline:
                yield self._recorded(self.parts.timeline.record(progress.round_index))
            yield self._recorded(progress.finish_round(self.parts))
        yield from map(self._recorded, self.probes())

    def rounds(self) -> Iterator[RoundRecord]:
        """Train round by round without evaluating, yielding each when it is done."""
        self._start()
        while self.progress.round_index < self.config.rounds:
            if not self.progress.round_is_over:
                deque(self.round(), maxlen=0)
            yield self._recorded(self.progress.finish_round(self.parts))

    def round(self) -> Iterator[StepRecord | SyncRecord | AbsenceRecord]:
        """Train one round, or what is left of it, yielding its steps; none after the last round."""
        progress = self.progress
        self._start()
        if progress.round_is_over:
            self._recorded(progress.finish_round(self.parts))
        if progress.round_index == self.config.rounds:
            return
        if progress.communication.state is Exchange.SILENT:
            steps = replayed_steps(self.parts, progress, self.clock)
        else:
            steps = client_steps(self.parts, progress, self._plans, self.wire, self.observers, self.clock)
        self.pace.begin(progress)
        before = None if self._watched else global_generators()
        for _ in steps:  # the pace has their records, when it reads the losses of several steps at once
            if not self._watched:
                self._watched = True
                if global_generators() != before:
                    log.warning(
                        "a step draws from global random numbers, whose state is not kept: this run will go on with "
                        "others when it is resumed; code of one's own draws from the generators that it is given"
                    )
            for observer in self.observers:
                observer.step_is_over()
            yield from map(self._recorded, self.pace.read(progress, self.config))

    @property
    def _given(self) -> list[object]:
        """Return what was given in Python, and is not in the config: callbacks, observers and the wire."""
        return [*self.callbacks[len(self.parts.callbacks) :], *self.observers, self.wire]

    def _start(self) -> None:
        """Have callbacks that do not follow yet react to the start of training; it may start in the middle of a run.

        Warn once of what was given in Python when the run began, and is missing.
        """
        for name in self._expected:
            if name not in saving.names_of(self._given):
                log.warning("%s was given to this run in Python when it began, and is not there now", name)
        self._expected = []
        for callback in self.callbacks[self._started :]:
            callback.on_start(self)
        self._started = len(self.callbacks)

    def _recorded(self, record: OneRecord) -> OneRecord:
        """Return a record with what callbacks add to it."""
        return with_added(self.callbacks, record)

    def evaluate(self) -> EvaluationRecord:
        """Return the kNN accuracy of the averaged client model (in mid-round the latest) and the server."""
        with self._evaluating():
            return evaluating.evaluate(self.parts, self.progress.finished_rounds)

    def evaluate_untrained(self) -> EvaluationRecord:
        """Return what learning has to beat: kNN accuracy of the network as it began, and of the raw pixels."""
        with self._evaluating():
            return evaluating.evaluate_untrained(self.parts)

    def probes(self) -> list[ProbeRecord]:
        """Train the probes that the config asks for on what has been learnt; return their accuracies."""
        with self._evaluating():
            return evaluating.probes(self.parts, self.progress.round_index)

    def encoder(self, features: str | None = None) -> nn.Module:
        """Return the averaged client model and the server as one frozen module; see `evaluating.encoder`."""
        return evaluating.encoder(self.parts, features)

    def save(self, path: str | Path, metrics: Extent = NOTHING) -> None:
        """Write a checkpoint into the run directory `path`; see `simsfl.rounds.saving.save`."""
        timed = Timed(self.progress.seconds, self.peak_memory_bytes(), self.clock.seconds())
        saving.save(path, self.parts, self.progress, timed, metrics, self._given)
        for callback in self.callbacks[: self._started]:
            callback.on_checkpoint(Path(path))

    @classmethod
    def load(
        cls,
        path: str | Path,
        dataset: Dataset | None = None,
        *,
        device: str | None = None,
        places: Mapping[str, str] | None = None,
        going_on: bool = False,
        world: World = ALONE,
        callbacks: Iterable[Callback] = (),
    ) -> Simulation:
        """Take up the run in the directory `path`; see `simsfl.rounds.saving.load`, and `Simulation` for callbacks."""
        callbacks = checked(callbacks)
        parts, progress, found, saved = saving.load(
            path, dataset, device=device, places=places, going_on=going_on, world=world
        )
        simulation = cls.__new__(cls)
        simulation._begin(parts, callbacks, progress)
        simulation.clock.start_from(found.timed.phase_seconds)
        simulation.damaged = found.problems
        simulation._expected = saved.callbacks
        return simulation

    def peak_memory_bytes(self) -> int:
        """Return the most memory held so far, over all sessions of the run."""
        return max(self.progress.peak_memory_bytes, peak_memory_bytes(self.parts.device))

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Count the time of the block as evaluation, and compute in the config's precision."""
        with self.clock("evaluation"), arithmetic(self.config.precision):
            yield
