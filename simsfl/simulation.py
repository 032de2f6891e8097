"""The round loop: draw, train, average, evaluate, save."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from math import prod
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from simsfl import checkpoint, evaluate, reference, schedule, step
from simsfl.allocator import keep_memory, peak_memory_bytes
from simsfl.capture import CapturedStep
from simsfl.clock import PhaseClock
from simsfl.config import RunConfig
from simsfl.cost import client_cost
from simsfl.data import Dataset, Images
from simsfl.data.load import load_dataset
from simsfl.kernels import accelerated
from simsfl.metrics import EvaluationRecord, ProbeRecord, Record, RoundRecord, Status, StepRecord
from simsfl.models import SplitModel, split_model
from simsfl.partition import make_partition
from simsfl.plan import RoundPlan, plan_round, steps_per_round
from simsfl.randomness import Purpose, numpy_generator, torch_generator
from simsfl.rules import left_to_rules, resolve
from simsfl.run_directory import RunDirectory
from simsfl.state import completed_rounds, gather_, initial_state, same_shape, scatter_
from simsfl.storage import Storage
from simsfl.sync import average_, is_sync_step
from simsfl.tuning import tuned

TRAIN_STEPS = {"fused": step.train_step, "vmap": step.train_step, "loop": reference.train_step}
"""By engine, whatever version of the operators it forces."""
BF16_IMAGE_SIZE = 16
"""Smaller images reach a strided 3x3 convolution as single pixels, and oneDNN then leaves part of its
bfloat16 weight gradient unset (seen with torch 2.15)."""
BLOCK_BYTES = 16 << 20
"""Smashed data that goes through the server together on a CPU: half as much takes 110 MB less, and 10 % more time
(ResNet-18)."""
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

    Attributes:
        config: the config with every rule applied (`simsfl.rules`).
        by_rule: names of its fields that rules filled in.
        dataset: the images, on the device.
        partition: which images each client holds.
        model: the network, cut in two.
        state: everything that is learnt.
        cost: what a step and an averaging cost a client.
        round_index: rounds that are done with, their evaluation too.
        step_index: finished steps of the round under way.
        steps: steps per round.
        seconds: time spent training so far, over all sessions of the run.
        metrics_bytes: length of ``metrics.jsonl`` at the checkpoint this was loaded from.
        choices: versions of operators in use, by shape.
        passed_over: a line on each damaged checkpoint that was not used in loading.
        recent: seconds per step of the latest steps.
        after_step: called after each step, by those who profile.
        watch: what the long loops of evaluations go through, for those who want to see how far they are.

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
    ):
        asked, config = config, resolve(config)
        dataset = dataset or load_dataset(
            config.dataset, data_dir=config.data_dir, image_size=config.image_size, seed=config.seed
        )
        if config.precision == "bf16" and config.device == "cpu" and dataset.image_size < BF16_IMAGE_SIZE:
            raise ValueError(
                f"precision: bf16 on the CPU does not work with images of {dataset.image_size}x{dataset.image_size}; "
                f"allowed: fp32, or --image-size {BF16_IMAGE_SIZE} or more"
            )
        self.partition = make_partition(
            dataset.train_labels.cpu().numpy(),
            config.clients,
            kind=config.partition,
            classes_per_client=config.classes_per_client,
            alpha=config.alpha,
            batch_size=config.batch_size,
            least=asked.batch_size or 1,
            seed=config.seed,
        )
        config = resolve(asked, int(self.partition.sizes.min()))
        self.config = config = replace(config, dataset=dataset.name, image_size=dataset.image_size)
        self.by_rule = left_to_rules(asked)
        self.device = torch.device(config.device)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # events and defaults, too, are this device's
        self.dataset = dataset.to(self.device)
        self.model = network(config)
        computing = {"fp32": dtype, "bf16": torch.bfloat16}
        self.state = initial_state(
            self.model,
            clients=config.clients,
            cohort=config.cohort,
            queue_length=config.queue_length,
            key_dim=config.key_dim,
            feature_sharing=config.feature_sharing,
            align_momentum=config.align_momentum,
            generator=torch_generator(config.seed, Purpose.QUEUE),
            device=self.device,
            dtype=dtype,
            storage=Storage(config.client_state, self.device, computing[config.client_state_dtype]),
        )
        self.hyper = step.Hyperparameters(
            temperature=config.temperature,
            symmetric=config.symmetric,
            tau=config.tau,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            precision=computing[config.precision],
        )
        if self.device.type == "cpu":
            keep_memory()  # from now on: what was needed to set up goes back to the system
        engine, _, version = config.engine.partition(":")
        captured = engine == "fused" and self.device.type == "cuda"
        self.train_step = CapturedStep() if captured else TRAIN_STEPS[engine]
        self.version = (version or "fastest") if engine == "fused" else None
        self.choices: dict[str, str] = {}
        if engine != "loop":
            with accelerated(self.version):
                chunk, self.choices = tuned(
                    self.model.client,
                    self.hyper,
                    cohort=config.cohort,
                    batch_size=config.batch_size,
                    image_size=dataset.image_size,
                    device=self.device,
                    dtype=dtype,
                    known=choices or {},
                )
            row = prod(self.model.smashed_shape) * self.hyper.precision.itemsize
            block = max(1, BLOCK_BYTES // row) if self.device.type == "cpu" else None
            self.hyper = replace(self.hyper, chunk=chunk, block=block)
        self.cost = client_cost(
            self.model,
            batch_size=config.batch_size,
            precision=self.hyper.precision,
            align_momentum=config.align_momentum,
        )
        self.steps = steps_per_round(self.partition, config.batch_size)
        self.step_metrics = torch.zeros(self.steps, 2, device=self.device, dtype=dtype)
        self.round_index = 0
        self.step_index = 0
        self.seconds = 0.0
        self.metrics_bytes = 0
        self.passed_over: list[str] = []
        self.recent: deque[float] = deque(maxlen=RECENT)
        self.clock = PhaseClock(self.device)
        self.after_step: Callable[[], None] = lambda: None
        self.watch: evaluate.Watch = evaluate.unwatched

    def train(self) -> Iterator[Record]:
        """Train to the end, yielding each record as it becomes known.

        Order: per round its steps, its evaluation if one is due, and the round itself; at the end the linear probe
        if asked for. The untrained network is evaluated after the first round's steps, so that training starts at
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
        if config.linear_probe:
            yield self.linear_probe()

    def rounds(self) -> Iterator[RoundRecord]:
        """Train round by round without evaluating, yielding each when it is done."""
        while self.round_index < self.config.rounds:
            if self.step_index < self.steps:
                deque(self.round(), maxlen=0)
            yield self._close_round()

    def round(self) -> Iterator[StepRecord]:
        """Train one round, or what is left of it, yielding its steps; none after the last round."""
        config, state = self.config, self.state
        if self.step_index == self.steps:
            self._close_round()
        if self.round_index == config.rounds:
            return
        begin = flushed = time.perf_counter()
        with self.clock("data"):
            plan = self.plan(self.round_index)
        with self.clock("sync"):
            if self.step_index == 0:
                gather_(state, plan.cohort)
            own_steps = completed_rounds(state, plan.cohort) * self.steps
        rate, dtype = self.server_lr(self.round_index), self.step_metrics.dtype
        server_lr = torch.full((), rate, device=self.device, dtype=dtype)
        recorded = self.step_index
        while self.step_index < self.steps:
            s = self.step_index
            batch = step.Batch(
                images=self.dataset.train,
                indices=plan.indices[s],
                views=plan.views.map(lambda t, s=s: t[s]),
                server_lr=server_lr,
                client_lr=self.client_lr(own_steps + s).to(dtype)[:, None],
            )
            with accelerated(self.version):
                loss, top1 = self.train_step(self.model, state, batch, self.hyper, self.clock)
            self.step_metrics[s, 0], self.step_metrics[s, 1] = loss, top1
            self.step_index += 1
            with self.clock("sync"):
                if is_sync_step(s, self.steps, config.syncs_per_round):
                    average_(state.cohort, align_momentum=config.align_momentum)
                if self.step_index == self.steps:
                    scatter_(state)
            self.after_step()
            now = time.perf_counter()
            if self.device.type == "cpu" or now - flushed > FLUSH_SECONDS or self.step_index == self.steps:
                records = self._step_records(recorded)
                self.clock.drain()
                flushed = time.perf_counter()
                self.seconds += flushed - begin
                self.recent.append((flushed - begin) / len(records))
                yield from records
                begin, recorded = time.perf_counter(), self.step_index

    def plan(self, round_index: int) -> RoundPlan:
        """The draws of a round counted from 0."""
        config = self.config
        return plan_round(
            self.partition,
            round_index,
            cohort=config.cohort,
            batch_size=config.batch_size,
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
        loss, top1 = self.step_metrics.mean(dim=0).tolist()
        lr = self.server_lr(self.round_index)
        self.round_index, self.step_index = self.round_index + 1, 0
        up, down = self.traffic()
        return RoundRecord(self.round_index, loss, top1, lr, round(up), round(down))

    def _step_records(self, first: int) -> list[StepRecord]:
        """Read the losses of the steps from `first` on; raise if one is not finite."""
        records = []
        for s, (loss, top1) in enumerate(self.step_metrics[first : self.step_index].tolist(), start=first):
            if not math.isfinite(loss):
                raise NonFiniteLossError(f"loss is {loss} in round {self.round_index + 1}, step {s + 1}")
            records.append(StepRecord(self.round_index + 1, s + 1, loss, top1))
        return records

    def traffic(self) -> tuple[float, float]:
        """Bytes sent up and down so far, mean over all clients."""
        up, down = self.cost.round_bytes(self.steps, self.config.syncs_per_round)
        share = self.round_index * self.config.cohort / self.config.clients
        return up * share, down * share

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

        In the middle of a round the client model is the average that the round started from.
        """
        with self.clock("evaluation"):
            return EvaluationRecord(self.finished_rounds, self._knn(self.encoder()))

    def evaluate_untrained(self) -> EvaluationRecord:
        """What learning has to beat: kNN accuracy of the network as it began, and of the raw pixels."""
        with self.clock("evaluation"):
            model, to = network(self.config), {"device": self.device, "dtype": self.step_metrics.dtype}
            client, server = model.client.initial.to(**to), model.server.initial.to(**to)
            buffers = {name: buffer.to(self.device) for name, buffer in model.server.initial_buffers.items()}
            encode = evaluate.encoder(model, client, server, buffers, self.config.eval_features)
            return EvaluationRecord(0, self._knn(encode), pixel_knn_top1=self._knn(evaluate.raw_pixels))

    def encoder(self, features: str | None = None) -> nn.Module:
        """The averaged client model and the server as one module, frozen; `features` instead of the config's."""
        server = self.state.server
        return evaluate.encoder(
            self.model,
            self.state.clients.online,
            server.online,
            server.online_buffers,
            features or self.config.eval_features,
        )

    def _knn(self, encode) -> float:
        """kNN accuracy of an encoder on the configured share of bank and test images."""
        data, config = self.dataset, self.config
        rng = numpy_generator(config.seed, Purpose.EVALUATION)
        bank = torch.from_numpy(rng.permutation(len(data.train))[: config.knn_bank]).to(self.device)
        test = torch.from_numpy(rng.permutation(len(data.test))[: config.knn_test]).to(self.device)
        return evaluate.knn_top1(
            self._features(encode, data.train, bank),
            data.train_labels[bank],
            self._features(encode, data.test, test),
            data.test_labels[test],
            watch=self.watch,
        )

    def linear_probe(self) -> ProbeRecord:
        """Linear probe of the averaged model on all training and test images."""
        data = self.dataset
        with self.clock("evaluation"):
            encode = self.encoder()
            train, test = (
                self._features(encode, images, torch.arange(len(images), device=self.device))
                for images in (data.train, data.test)
            )
            last, best = evaluate.linear_probe(
                train,
                data.train_labels,
                test,
                data.test_labels,
                torch_generator(self.config.seed, Purpose.PROBE),
                epochs=self.config.linear_probe_epochs,
                watch=self.watch,
            )
        return ProbeRecord(self.round_index, last, best)

    def _features(self, encode, images: Images, rows: torch.Tensor) -> torch.Tensor:
        """Features of the images at `rows`."""
        return evaluate.embed(encode, images, rows, dtype=self.step_metrics.dtype, watch=self.watch)

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
        if not all(is_finite(tensor) for tensor in tensors.values()):
            raise NonFiniteLossError(f"weights are not finite in round {self.round_index + 1}, step {self.step_index}")
        name = f"round-{self.round_index:06d}-step-{self.step_index:06d}"
        meta = {
            "round": self.round_index,
            "step": self.step_index,
            "seconds": self.seconds,
            "metrics_bytes": metrics_bytes,
        }
        directory = RunDirectory(path)
        if directory.config.exists():
            directory.check_same(self.config, self.dataset)
            checkpoint.save(directory.checkpoints, name, tensors, meta)
        else:
            with directory.appearing() as new:
                new.record(self.config, self.by_rule, self.dataset, self.choices)
                checkpoint.save(new.checkpoints, name, tensors, meta)

    @classmethod
    def load(cls, path: str | Path, dataset: Dataset | None = None, *, device: str | None = None) -> Simulation:
        """Continue the run in the directory `path` from its newest usable checkpoint.

        Args:
            dataset: the images, instead of loading the run's.
            device: to continue on, instead of the run's.

        Raises:
            ValueError: no run there, no usable checkpoint, or the data set is not the run's.
        """
        directory = RunDirectory(path)
        saved = directory.read_config()
        config = RunConfig.from_dict(saved["config"] | ({"device": device} if device else {}))
        simulation = cls(config, dataset, choices=saved["choices"])
        if simulation.dataset.checksum != saved["dataset"]["sha256"]:
            raise ValueError(f"dataset: {simulation.dataset.name} is not what the run in {path} was trained on")
        file, meta, problems = checkpoint.newest(directory.checkpoints)
        simulation._restore(file)
        simulation.round_index, simulation.step_index = meta["round"], meta["step"]
        if simulation.round_index > simulation.config.rounds or simulation.step_index > simulation.steps:
            raise ValueError(f"resume: the checkpoint in {path} stands behind the end of the run")
        simulation.seconds = meta["seconds"]
        simulation.metrics_bytes, simulation.passed_over = meta["metrics_bytes"], problems
        return simulation

    def _tensors(self) -> dict[str, torch.Tensor]:
        """Everything a checkpoint holds."""
        return {**self.state.saved(), "step_metrics": self.step_metrics}

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
                self.state.restore_(file.get_tensor)
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
            images_per_second=rate and rate * config.batch_size,
            phase_seconds=self.clock.seconds(),
            peak_memory_bytes=peak_memory_bytes(self.device),
            participation=torch.bincount(self.state.clients.participation).tolist(),
        )


def network(config: RunConfig) -> SplitModel:
    """The network of a config with every rule applied, and its image size known."""
    return split_model(
        config.arch,
        width=config.width,
        cut_layer=config.cut_layer,
        image_size=config.image_size,
        head=config.head,
        key_dim=config.key_dim,
        generator=torch_generator(config.seed, Purpose.MODEL),
    )


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether all values are finite, found without a temporary as large as the tensor."""
    return tensor.numel() == 0 or all(math.isfinite(extreme) for extreme in torch.stack(tensor.aminmax()).tolist())
