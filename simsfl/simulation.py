"""The round loop: draw, train, average, evaluate, save."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from simsfl import evaluation
from simsfl.algorithm import federated, reference, schedule, step
from simsfl.algorithm.aggregation import average_, average_statistics_, divergence, is_sync_step, receive_
from simsfl.algorithm.communication import Communication
from simsfl.algorithm.observer import Observer
from simsfl.algorithm.plan import PlanAhead, RoundPlan, plan_round, steps_per_round
from simsfl.algorithm.state import completed_rounds, gather_, same_shape, scatter_, scatter_queue_
from simsfl.algorithm.wire import Wire
from simsfl.config import RunConfig
from simsfl.cost.model import Traffic, client_cost
from simsfl.data import Dataset
from simsfl.data.load import load_dataset
from simsfl.data.partition import Partition
from simsfl.defences.taressfl import attackers_lr
from simsfl.engine import tuning
from simsfl.engine.cuda_graph import CapturedStep
from simsfl.engine.precision import arithmetic
from simsfl.kernels import accelerated, choosing, try_triton
from simsfl.models import SplitModel
from simsfl.runs import checkpoint
from simsfl.runs.directory import RunDirectory
from simsfl.runs.metrics import (
    AbsenceRecord,
    EvaluationRecord,
    ProbeRecord,
    Record,
    RoundRecord,
    Status,
    StepRecord,
    SyncRecord,
)
from simsfl.setup import assembly
from simsfl.setup.defaults import left_to_rules, resolve, with_precision
from simsfl.setup.weights import Weights, load_weights
from simsfl.system.clock import PhaseClock
from simsfl.system.memory import keep_memory, peak_memory_bytes
from simsfl.system.randomness import Purpose, numpy_generator
from simsfl.system.tensor_file import Rows, blocks_of

TRAIN_STEPS = {
    "mocosfl": (step.train_step, reference.train_step),
    "fl-moco": (federated.moco_step, reference.moco_step),
    "fl-byol": (federated.byol_step, reference.byol_step),
}
"""By method: for the stacked cohort, and for its clients one by one."""
LABELLED = (0.1, 0.01)
"""Shares of the labels that semi-supervised probes have."""
RECENT = 50
"""Steps over which the pace is averaged that remaining time is told from."""
FLUSH_SECONDS = 0.5
"""How long losses may stay on a GPU before they are read, which makes the host wait."""


class NonFiniteLossError(ArithmeticError):
    """Training diverged; the message names round and step."""


class Simulation:
    """A run of MocoSFL.

    Args:
        config: what to run.
        dataset: the images, instead of loading ``config.dataset``.
        dtype: of everything learnt, and with fp32 precision of what is computed; float64 is for tests.
        choices: versions of operators to use, where they are named, instead of finding out which are fastest.
        start: weights to start from, instead of loading ``config.init_client``.
        auto_precision: the precision that "auto" means and why, instead of what suits the device.

    Attributes:
        config: the config with every rule applied (`simsfl.setup.defaults`).
        by_rule: names of its fields that rules filled in.
        reasons: why a field is what it is, by name; the precision's.
        dataset: the images, on the device.
        partition: which images each client holds; `auxiliary`: of the auxiliary data set.
        model: the network, cut in two.
        state: everything that is learnt.
        cost: what an image and an averaging cost a client.
        round_index: rounds that are done with, their evaluation too.
        step_index: finished steps of the round under way.
        steps: steps per round.
        seconds: time spent training so far, over all sessions of the run.
        metrics_bytes: length of ``metrics.jsonl`` at the checkpoint this was loaded from.
        choices: versions of operators in use, by shape.
        groups: clients by what they can do.
        communication: the state of the round under way, where communication is saved.
        traffic: bytes sent so far, by all clients together.
        evaluation: how what is learnt is evaluated.
        earlier_peak: the most memory held in earlier sessions of the run.
        passed_over: a line on each damaged checkpoint that was not used in loading.
        recent: seconds per step of the latest steps.
        observers: told of what clients do; `wire`: what lies between them and the server.
        flush_seconds: how long losses may stay on a GPU; 0 for those who time single steps.
        plans: draws the rounds, the next one while a GPU works on this one.

    Raises:
        ValueError: config and data do not fit together.
    """

    def __init__(
        self,
        config: RunConfig,
        dataset: Dataset | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        choices: Mapping[str, str] | None = None,
        start: Weights | None = None,
        auto_precision: tuple[str, str] | None = None,
    ):
        config = self._with_precision(config, dtype, auto_precision)
        asked, config = config, resolve(config)
        dataset = dataset or load_dataset(
            config.dataset,
            data_dir=config.data_dir,
            image_size=config.image_size,
            seed=config.seed,
            stream=config.stream,
            auxiliary=config.aux_dataset,
        )
        assembly.check_precision(config, dataset.image_size)
        classes_per_client = config.classes_per_client or max(1, len(dataset.classes) // 5)
        config = replace(config, classes_per_client=classes_per_client)
        self.partition = assembly.partition(config, dataset, least=asked.batch_size or 1)
        self.auxiliary = assembly.auxiliary(config, dataset)
        config = resolve(asked, min(int(source.sizes.min()) for source in self.sources))
        self.config = config = replace(
            config,
            dataset=dataset.name,
            data_dir=str(Path(config.data_dir).resolve()),  # a run is resumed from anywhere
            aux_dataset=absolute(config.aux_dataset),
            init_client=absolute(config.init_client),
            image_size=dataset.image_size,
            classes_per_client=classes_per_client,
            **({"head": "linear", "key_dim": len(dataset.classes)} if config.supervised else {}),
            stream="never" if isinstance(dataset.train.pixels, torch.Tensor) else "always",
        )
        self.start = start or (load_weights(config.init_client) if config.init_client else None)
        self.by_rule += ["head", "key_dim"] * config.supervised + ["stream"] * (asked.stream == "auto")
        self.device = torch.device(config.device)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # events and defaults, too, are this device's
        self.dataset = dataset.to(self.device)
        self.groups = assembly.groups(config)
        self.steps = steps_per_round(self.sources, self.groups, config.local_epochs)
        self.model = self._network()
        assembly.check_batch_norm(config, self.model)
        self.state = assembly.state(config, self.model, self.steps, dtype)
        self.hyper = assembly.hyperparameters(config, self.model, dtype)
        self.model = assembly.as_run(config, self.model, self.hyper.precision)
        if self.device.type == "cpu":
            keep_memory()  # from now on: what was needed to set up goes back to the system
        engine, _, version = config.engine.partition(":")
        captured = engine == "fused" and self.device.type == "cuda" and not self.model.attacker
        stacked, looped = TRAIN_STEPS[config.method]
        self.train_step = CapturedStep(stacked) if captured else looped if engine == "loop" else stacked
        self.version = (version or "fastest") if engine == "fused" else None
        self.choices: dict[str, str] = {}
        if engine != "loop":
            with (
                arithmetic(config.precision),
                accelerated(self.version),
                tuning.remembering(choices or {}) as self.choices,
                tuning.able(config.engine),
            ):
                self._tune(dtype)
        self.cost = client_cost(
            self.model, number_bytes=self.hyper.precision.itemsize, align_momentum=config.align_momentum
        )
        self.evaluation = evaluation.Evaluation(
            self.dataset, seed=config.seed, bank=config.knn_bank, test=config.knn_test, dtype=dtype
        )
        figures = 4 if self.model.attacker else 2
        self.step_metrics = torch.zeros(self.steps, figures, device=self.device, dtype=dtype)
        self.divergences: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.absences: dict[int, list[int]] = {}
        self.communication, self.traffic = Communication(), Traffic()
        self.round_index = self.step_index = 0
        self.seconds, self.metrics_bytes, self.earlier_peak = 0.0, 0, 0
        self.passed_over: list[str] = []
        self.recent: deque[float] = deque(maxlen=RECENT)
        self.clock = PhaseClock(self.device)
        self.flush_seconds = FLUSH_SECONDS
        self.plans = PlanAhead(self.device, config.rounds)
        self.observers: list[Observer] = []
        self.wire = Wire()

    @property
    def sources(self) -> list[Partition]:
        """What clients hold: of the data set, and of the auxiliary one."""
        return [source for source in (self.partition, self.auxiliary) if source and len(source.indices)]

    def _with_precision(self, asked: RunConfig, dtype: torch.dtype, auto: tuple[str, str] | None) -> RunConfig:
        """Return the config with the precision that "auto" means; keep why, and what of the config rules fill in."""
        if dtype != torch.float32:
            auto = "fp32", f"everything is {str(dtype).removeprefix('torch.')}"
        config, reason = with_precision(asked, auto)
        self.by_rule, self.reasons = left_to_rules(asked), {"precision": reason}
        return config

    def _network(self) -> SplitModel:
        """The network as the run begins with it."""
        config = self.config
        model = assembly.with_attacker(config, assembly.network(config))
        if self.start:
            self.start.initialise(model, server=config.init_server)
        return model

    def _tune(self, dtype: torch.dtype) -> None:
        """Find out what is fastest here: how many clients are run together, and versions of operators."""
        if self.device.type == "cuda":
            try_triton(self.device)
        for group in sorted(self.groups, key=lambda group: group.images):  # the largest has the last word
            chunk = tuning.chunk_of(
                self.model.client,
                self.hyper,
                self.choices,
                cohort=group.cohort,
                batch_size=group.batch_size,
                image_size=self.dataset.image_size,
                device=self.device,
                dtype=dtype,
            )
        self.hyper = replace(self.hyper, chunk=chunk)
        if self.device.type == "cpu":
            return  # there the rest has no versions
        tuning.views_and_descent(self.dataset.train, self.plan(0), self.state.cohort.online.detach())
        if not self.model.server.size:
            return
        config, plain = self.config, not len(self.model.server.initial_statistics)
        both = config.symmetric and config.feature_sharing and not config.supervised and plain
        rows = sum(group.images for group in self.groups) * (2 if both else 1)
        smashed = torch.zeros(rows, *self.model.smashed_shape, device=self.device, dtype=self.hyper.precision)
        network = tuning.working_server(self.model.server, self.hyper, self.state.server.online, smashed)
        self.model = replace(self.model, server=network)

    def train(self) -> Iterator[Record]:
        """Train to the end, yielding each record as it becomes known.

        Order: per round its steps, its evaluation if one is due, and the round itself; at the end the probes that
        are asked for. The untrained network is evaluated after the first round's steps, so that training starts at
        once. The state may be saved whenever a `RoundRecord` has come, or a `StepRecord` whose step is `step_index`,
        or while an evaluation goes on.

        Raises:
            NonFiniteLossError: the loss of a step was not finite.
        """
        config = self.config
        while self.round_index < config.rounds:
            if self.step_index < self.steps:
                yield from self.round()
            evaluations = [self.evaluate_untrained()] if self.round_index == 0 else []
            due = config.eval_every and self.finished_rounds % config.eval_every == 0
            if due or self.finished_rounds == config.rounds:
                evaluations.append(self.evaluate())
            yield from evaluations  # all at once: one who stops in between does all of them again
            yield self._close_round()
        yield from self.probes()

    def rounds(self) -> Iterator[RoundRecord]:
        """Train round by round without evaluating, yielding each when it is done."""
        while self.round_index < self.config.rounds:
            if self.step_index < self.steps:
                deque(self.round(), maxlen=0)
            yield self._close_round()

    def round(self) -> Iterator[StepRecord | SyncRecord | AbsenceRecord]:
        """Train one round, or what is left of it, yielding its steps; none after the last round."""
        if self.step_index == self.steps:
            self._close_round()
        if self.round_index == self.config.rounds:
            return
        begin = flushed = time.perf_counter()
        recorded = self.step_index
        for _ in self._replayed_steps() if self.communication.state == "C" else self._client_steps():
            self._tell("step_is_over")
            now = time.perf_counter()
            if self.device.type == "cpu" or now - flushed > self.flush_seconds or self.step_index == self.steps:
                records = list(self._records(recorded))
                self.clock.drain()
                flushed = time.perf_counter()
                self.seconds += flushed - begin
                self.recent.append((flushed - begin) / (self.step_index - recorded))
                yield from records
                begin, recorded = time.perf_counter(), self.step_index

    def _client_steps(self) -> Iterator[None]:
        """The steps of a round that clients take part in."""
        config, state = self.config, self.state
        hyper = replace(self.hyper, clients_learn=self.hyper.clients_learn and self.communication.state == "A")
        with self.clock("data"):
            plan = self.plans.take(self.plan, self.round_index)
        with self.clock("sync"):
            if self.step_index == 0:
                gather_(state, plan.cohort)
                receive_(self.model.client, state, plan.cohort, config.divergence_tau)
            own_steps = completed_rounds(state, plan.cohort) * self.steps
        self._tell("round_begins", plan)
        known_absent: list[int] = []
        server_lr, dtype = self._on_device(self.server_lr(self.round_index)), self.step_metrics.dtype
        attackers_rate = self._on_device(attackers_lr(self.round_index, config.rounds))
        while self.step_index < self.steps:
            s = self.step_index
            with self.clock("data"):
                pixels = [self.dataset.train.pixels[group.indices[s]] for group in plan.groups]
                if s + 1 < self.steps:
                    for group in plan.groups:
                        self.dataset.train.ahead(group.indices[s + 1])
            batch = step.Batch(
                images=self.dataset.train,
                pixels=pixels,
                views=[group.views.map(lambda t, s=s: t[s]) for group in plan.groups],
                server_lr=server_lr,
                client_lr=self.client_lr(own_steps + s).to(dtype)[:, None],
                attackers_lr=attackers_rate,
                wire=self.wire,
                labels=[self.dataset.train_labels[group.indices[s]] for group in plan.groups]
                if config.supervised
                else None,
            )
            with arithmetic(config.precision), accelerated(self.version), choosing(self.choices):
                outcome = self._train_step(batch, hyper)
            self.plans.begin(self.plan, self.round_index + 1)  # not before a step, which may have to be recorded
            self._tell("stepped", batch, outcome)
            if state.sent:
                state.sent.keep_(s, outcome.smashed, batch.labels)
            self._note(outcome.loss, outcome.top1, *outcome.attackers_ssim)
            with self.clock("sync"):
                syncs = is_sync_step(s, self.steps, config.syncs_per_round)
                if syncs:
                    self._tell("averaging")
                absent = sorted(plan.cohort[position].item() for position in self.wire.absent)
                if absent != known_absent:
                    self.absences[self.step_index] = known_absent = absent
                if syncs and hyper.clients_learn:
                    self._sync(plan.cohort)
                else:
                    if syncs:
                        average_statistics_(state, self.wire.absent)
                    if self.step_index == self.steps:
                        scatter_(state)
                if syncs:
                    self._tell("averaged")
            yield

    def _train_step(self, batch: step.Batch, hyper: step.Hyperparameters) -> step.Outcome:
        """Train on a batch, by a step that is replayed if it can be with the observers there are now."""
        train_step = self.train_step
        if isinstance(train_step, CapturedStep) and any(observer.needs_eager_steps for observer in self.observers):
            train_step = partial(train_step.eager, "an observer takes part in them")
        return train_step(self.model, self.state, batch, hyper, self.clock)

    def _tell(self, moment: str, *about: object) -> None:
        """Tell the observers of a moment, which is the name of one of `Observer`'s methods."""
        for observer in self.observers:
            getattr(observer, moment)(*about)

    def _sync(self, ids: torch.Tensor) -> None:
        """Average the clients' models, and let them go on with the average."""
        config, state = self.config, self.state
        average_(state, align_momentum=config.align_momentum, absent=self.wire.absent)
        if config.measure_divergence:
            self.divergences[self.step_index] = ids, divergence(self.model.client, state)
        if self.step_index == self.steps:
            scatter_(state)
        receive_(self.model.client, state, ids, config.divergence_tau)

    def _replayed_steps(self) -> Iterator[None]:
        """The steps of a round in which the server trains on what clients sent before, in a fresh order."""
        state, server_lr = self.state, self._on_device(self.server_lr(self.round_index))
        order = numpy_generator(self.config.seed, Purpose.REPLAY, self.round_index).permutation(self.steps)
        while self.step_index < self.steps:
            with self.clock("server"):
                s = order[self.step_index]
                smashed = state.sent.smashed[s].to(self.device)
                labels = state.sent.labels[s].to(self.device) if self.config.supervised else None
                with arithmetic(self.config.precision), accelerated(self.version), choosing(self.choices):
                    lesson = step.learn_(self.model, state, smashed, server_lr, self.hyper, labels)
            self._note(lesson.loss, lesson.top1)
            if self.step_index == self.steps:
                scatter_queue_(state)
            yield

    def _on_device(self, rate: float) -> torch.Tensor:
        """A learning rate of the round under way, as a step takes it."""
        return torch.full((), rate, device=self.device, dtype=self.step_metrics.dtype)

    def _note(self, *figures: torch.Tensor) -> None:
        """A step is done."""
        for column, figure in enumerate(figures):
            self.step_metrics[self.step_index, column] = figure
        self.step_index += 1

    def plan(self, round_index: int) -> RoundPlan:
        """The draws of a round counted from 0."""
        config = self.config
        return plan_round(
            self.sources,
            round_index,
            groups=self.groups,
            steps=self.steps,
            recipe=config.views,
            image_size=config.image_size,
            crop_scale=config.crop_scale,
            seed=config.seed,
            device=self.device,
        )

    @property
    def finished_rounds(self) -> int:
        """Rounds all of whose steps are done."""
        return self.round_index + (self.step_index == self.steps)

    def _close_round(self) -> RoundRecord:
        """Go on to the next round; the record of the one whose steps are done."""
        config = self.config
        loss, top1, *ssim = self.step_metrics.mean(dim=0).tolist()
        lr, state = self.server_lr(self.round_index), self.communication.state
        usual, spent = (
            self.cost.round_traffic(
                self.groups,
                self.steps,
                config.syncs_per_round,
                communication=communication,
                frozen=not self.hyper.clients_learn,
                views=1 if config.supervised else 2,
            )
            for communication in ("A", state)
        )
        self.traffic += spent
        self.round_index, self.step_index = self.round_index + 1, 0
        if config.loss_threshold:
            self.communication = self.communication.after(self.round_index, loss, config.loss_threshold)
        up, down, kept_up, kept_down = (
            round(total / config.clients)
            for total in (
                self.traffic.up,
                self.traffic.down,
                self.round_index * usual.up - self.traffic.up,
                self.round_index * usual.down - self.traffic.down,
            )
        )
        ssim = ssim if state == "A" else ()  # else there was no gradient to resist with
        return RoundRecord(self.round_index, loss, top1, lr, up, down, state, kept_up + kept_down, *ssim)

    def _records(self, first: int) -> Iterator[StepRecord | SyncRecord | AbsenceRecord]:
        """Read the losses of the steps from `first` on; raise if one is not finite."""
        now = self.round_index + 1
        for s, (loss, top1, *_) in enumerate(self.step_metrics[first : self.step_index].tolist(), start=first + 1):
            if not math.isfinite(loss):
                raise NonFiniteLossError(f"loss is {loss} in round {now}, step {s}")
            if s in self.absences:  # before the step, as what follows: one who stops behind a step has all of it
                yield AbsenceRecord(now, s, self.absences.pop(s))
            if s in self.divergences:
                ids, own = self.divergences.pop(s)
                own = own.double().cpu()
                mean, std = own.mean().item(), own.std(correction=0).item()
                yield SyncRecord(now, s, mean, std, ids.tolist(), own.tolist())
            yield StepRecord(now, s, loss, top1)

    def server_lr(self, round_index: int) -> float:
        """The server's learning rate in a round counted from 0."""
        return schedule.server_lr(self.config.lr, self.config.lr_schedule, round_index, self.config.rounds)

    def client_lr(self, own_steps: torch.Tensor) -> torch.Tensor:
        """The learning rate ``[C]`` of clients that have done `own_steps` ``[C]`` steps each."""
        config = self.config
        return schedule.client_lr(
            config.client_lr, config.client_lr_schedule, self.round_index, config.rounds, own_steps
        )

    def evaluate(self) -> EvaluationRecord:
        """kNN accuracy of the averaged client model and the server.

        In the middle of a round the client model is the latest average.
        """
        with self.clock("evaluation"), arithmetic(self.config.precision):
            return EvaluationRecord(self.finished_rounds, self.evaluation.knn(self.encoder()))

    def evaluate_untrained(self) -> EvaluationRecord:
        """What learning has to beat: kNN accuracy of the network as it began, and of the raw pixels."""
        with self.clock("evaluation"), arithmetic(self.config.precision):
            model, to = self._network(), {"device": self.device, "dtype": self.step_metrics.dtype}
            client, server = (half.module(half.initial.to(**to)) for half in (model.client, model.server))
            encode = evaluation.encoder(client, server, self.config.eval_features)
            knn, pixels = self.evaluation.knn(encode), self.evaluation.knn(evaluation.raw_pixels)
            return EvaluationRecord(0, knn, pixel_knn_top1=pixels)

    def encoder(self, features: str | None = None) -> nn.Module:
        """The averaged client model and the server as one module, frozen; `features` instead of the config's."""
        clients, central = self.state.clients, self.state.server
        client = self.model.client.module(clients.online, clients.online_statistics)
        server = self.model.server.module(central.online, central.online_statistics)
        return evaluation.encoder(client, server, features or self.config.eval_features)

    def client(self) -> nn.Module:
        """The averaged client model as a module, frozen: what sends smashed data."""
        clients = self.state.clients
        return self.model.client.module(clients.online, clients.online_statistics).eval().requires_grad_(False)

    def probes(self) -> list[ProbeRecord]:
        """The probes that the config asks for, on all training and test images."""
        config = self.config
        shares = ([None] if config.linear_probe else []) + (list(LABELLED) if config.semi_supervised else [])
        if not shares:
            return []
        with self.clock("evaluation"), arithmetic(config.precision):
            train, test = self.evaluation.all_features(self.encoder())
            results = [self.evaluation.probe(train, test, share=share, epochs=config.probe_epochs) for share in shares]
        kinds = ["linear" if share is None else f"semi-{share:.0%}" for share in shares]
        return [
            ProbeRecord(self.round_index, kind, last, best, config.eval_features)
            for kind, (last, best) in zip(kinds, results, strict=True)
        ]

    def peak_memory_bytes(self) -> int:
        """The most memory held so far, over all sessions of the run."""
        return max(self.earlier_peak, peak_memory_bytes(self.device))

    def save(self, path: str | Path, metrics_bytes: int = 0) -> None:
        """Write a checkpoint into the run directory `path`, which is made if it does not exist.

        Args:
            metrics_bytes: length of ``metrics.jsonl`` that belongs to this state.

        Raises:
            ValueError: the directory holds another run.
            NonFiniteLossError: training has diverged; nothing is written.
            OSError: it cannot be written.
        """
        tensors = self._tensors()
        if not all(is_finite(block) for tensor in tensors.values() for block in blocks_of(tensor)):
            raise NonFiniteLossError(f"weights are not finite in round {self.round_index + 1}, step {self.step_index}")
        name = f"round-{self.round_index:06d}-step-{self.step_index:06d}"
        meta = {
            "round": self.round_index,
            "step": self.step_index,
            "seconds": self.seconds,
            "metrics_bytes": metrics_bytes,
            "communication": asdict(self.communication),
            "traffic": asdict(self.traffic),
            "phase_seconds": self.clock.seconds(),
            "peak_memory_bytes": self.peak_memory_bytes(),
        }
        directory = RunDirectory(path)
        if directory.config.exists():
            directory.check_same(self.config, self.dataset)
            checkpoint.save(directory.checkpoints, name, tensors, meta)
        else:
            with directory.appearing() as new:
                new.record(self.config, self.by_rule, self.reasons, self.dataset, self.choices)
                if self.start:
                    self.start.save(new.start)
                checkpoint.save(new.checkpoints, name, tensors, meta)

    @classmethod
    def load(cls, path: str | Path, dataset: Dataset | None = None, *, device: str | None = None) -> Simulation:
        """Continue the run in the directory `path` from its newest usable checkpoint.

        Args:
            dataset: the images, instead of loading the run's.
            device: to continue on, instead of the run's; in fp32, with a warning, where it has not the run's precision.

        Raises:
            ValueError: no run there, no usable checkpoint, or the data set is not the run's.
        """
        directory = RunDirectory(path)
        saved = directory.read_config()
        config = RunConfig.from_dict(saved["config"] | ({"device": device} if device else {}))
        if device:
            config = assembly.with_possible_precision(config)
        start = load_weights(str(directory.start)) if config.init_client else None
        simulation = cls(config, dataset, choices=saved["choices"], start=start)
        if simulation.dataset.checksum != saved["dataset"]["sha256"]:
            raise ValueError(f"dataset: {simulation.dataset.name} is not what the run in {path} was trained on")
        file, meta, problems = checkpoint.newest(directory.checkpoints)
        simulation.round_index, simulation.step_index = meta["round"], meta["step"]
        if simulation.round_index > simulation.config.rounds or simulation.step_index > simulation.steps:
            raise ValueError(f"resume: the checkpoint in {path} stands behind the end of the run")
        simulation.seconds = meta["seconds"]
        simulation.communication = Communication(**meta["communication"])
        simulation._restore(file)
        simulation.traffic = Traffic(**meta["traffic"])
        simulation.clock.start_from(meta["phase_seconds"])
        simulation.earlier_peak = meta["peak_memory_bytes"]
        simulation.metrics_bytes, simulation.passed_over = meta["metrics_bytes"], problems
        return simulation

    def _tensors(self) -> dict[str, torch.Tensor | Rows]:
        """Everything a checkpoint holds."""
        sent = self.communication.needs_sent(self.step_index)
        return {**self.state.saved(sent=sent), "step_metrics": self.step_metrics}

    @torch.no_grad()
    def _restore(self, path: Path) -> None:
        """Take over the tensors of a checkpoint.

        Raises:
            ValueError: it is of another network or other clients.
        """
        try:
            with safe_open(path, framework="pt") as file:
                if set(file.keys()) != set(self._tensors()):
                    raise ValueError("it holds other tensors")
                self.state.restore_(file, sent=self.communication.needs_sent(self.step_index))
                self.step_metrics.copy_(same_shape(file.get_tensor("step_metrics"), self.step_metrics))
        except ValueError as error:
            raise ValueError(f"resume: {path} is not of the run that config.json describes ({error})") from error

    def status(self, activity: str = "training") -> Status:
        """How the run is going: everything timed, which is not in the records."""
        config = self.config
        steps = self.round_index * self.steps + self.step_index
        rate = steps * config.cohort / self.seconds if self.seconds else None
        return Status(
            activity=activity,
            updated=time.time(),
            round=self.round_index,
            step=self.step_index,
            rounds=config.rounds,
            steps=self.steps,
            seconds=self.seconds,
            step_seconds=sum(self.recent) / len(self.recent) if self.recent else None,
            client_steps_per_second=rate,
            images_per_second=rate and rate * sum(group.images for group in self.groups) / config.cohort,
            phase_seconds=self.clock.seconds(),
            peak_memory_bytes=self.peak_memory_bytes(),
            participation=torch.bincount(self.state.clients.participation).tolist(),
            devices=self.wire.devices(),
        )


def absolute(name: str | None) -> str | None:
    """The absolute path of what exists; a name as it is."""
    return str(Path(name).resolve()) if name is not None and Path(name).exists() else name


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether all values are finite, found without a temporary as large as the tensor."""
    return tensor.numel() == 0 or all(math.isfinite(extreme) for extreme in torch.stack(tensor.aminmax()).tolist())
