"""Build the parts of a simulation from a config."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch

from simsfl.aggregations import Aggregation
from simsfl.algorithm import schedule
from simsfl.algorithm.absence import Reliability
from simsfl.algorithm.batch import Hyperparameters, Outcome
from simsfl.algorithm.plan import Attendance, Group, RoundPlan, batches_of, groups_of, plan_round
from simsfl.algorithm.state import State
from simsfl.config import Resolved, RunConfig
from simsfl.config.catalogue import HUB, METHODS, Targets
from simsfl.cost.model import ClientCost, client_cost
from simsfl.data import Dataset, check_dataset
from simsfl.data.load import load_dataset
from simsfl.data.partition import Partition
from simsfl.data.validation import with_validation
from simsfl.data.views import Recipe
from simsfl.engine import tuning
from simsfl.engine.cuda_graph import CapturedStep
from simsfl.engine.precision import arithmetic
from simsfl.evaluation import Evaluation
from simsfl.fleet.timeline import Timeline
from simsfl.kernels import accelerated, choosing, try_triton
from simsfl.models import SplitModel
from simsfl.setup import assembly, checks, defaults
from simsfl.setup.backbone import read_backbone, start_from
from simsfl.setup.outline import Outline, outline
from simsfl.setup.weights import Weights, load_weights
from simsfl.system.memory import keep_memory
from simsfl.system.messages import count_text
from simsfl.system.world import ALONE, World

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parts:
    """What a simulation is made of; only the tensors of `state` change."""

    config: Resolved
    """The config with every rule applied (`simsfl.setup.defaults`)."""
    by_rule: list[str]
    """Names of the fields of the config that rules have filled in."""
    reasons: dict[str, str]
    """Why a field of the config is what it is, by name: the precision, and a batch size smaller than its rule says."""
    dataset: Dataset
    """The images, on the device."""
    partition: Partition
    """Which images of the data set each client holds, by their rows among the training images."""
    given: Partition | None
    """The partition that was passed instead of being made from the config, as it was passed; None if none was."""
    auxiliary: Partition | None
    """Which images of the auxiliary data set each client holds, if there is one."""
    start: Weights | None
    """The weights of an expert or of a backbone that the run starts from, if there are any."""
    attendance: Attendance
    """Who trains in each round."""
    timeline: Timeline | None
    """The rounds in the time of the run's fleet, if it has one."""
    steps: int
    """Steps in a round."""
    model: SplitModel
    """The network, cut in two."""
    state: State
    """Everything that is learnt: weights, momentum encoders, key queue, ..."""
    world: World
    """The ranks that train the run together."""
    callbacks: list[object]
    """Callbacks that the config names (`simsfl.rounds.callback.Callback`)."""
    aggregation: Aggregation
    """How the cohort's models are combined, and what clients do with the result."""
    hyper: Hyperparameters
    """Values that stay the same from step to step."""
    train_step: Callable[..., Outcome]
    """The step of the config's method and engine; see `simsfl.algorithm.step.train_step` for its arguments."""
    version: str | None
    """Version of operators that the fused engine uses; None for PyTorch's own operators."""
    cost: ClientCost
    """Bytes that an image and an averaging cost a client."""
    evaluation: Evaluation
    """Evaluation of encoders on the images."""
    choices: dict[str, str] = field(default_factory=dict)
    """Versions of operators in use, by operator and shape."""

    @property
    def device(self) -> torch.device:
        """Return the device that everything is computed on."""
        return torch.device(self.config.device)

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of weights and losses."""
        return self.state.server.online.dtype

    @property
    def sources(self) -> list[Partition]:
        """Return which images clients hold, of the data set and of the auxiliary one; empty partitions are left out."""
        return _sources(self.partition, self.auxiliary)

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Compute inside with the operators of the config's engine, and with the arithmetic of its precision."""
        with arithmetic(self.config.precision), accelerated(self.version), choosing(self.choices):
            yield

    def untrained(self) -> SplitModel:
        """Build the network anew, with the weights that the run begins with."""
        return _network(self.config, self.start)

    def plan(self, round_index: int) -> RoundPlan:
        """Draw the cohort, image order and view parameters of a round counted from 0."""
        return plan_round(
            self.sources,
            self.attendance,
            round_index,
            steps=self.steps,
            noise=bool(self.hyper.defence),
            recipe=Recipe.of(self.config),
            device=self.device,
            mine=self.world.part(self.config.cohort),
        )

    def cohort(self, round_index: int) -> np.ndarray:
        """Return the ids of the clients that train in a round counted from 0, in the order of the cohort."""
        return self.attendance.draw(round_index)[0]

    @property
    def groups(self) -> Sequence[Group]:
        """Return the clients, grouped by batch size."""
        return self.attendance.groups

    @property
    def own_groups(self) -> list[Group]:
        """Return the groups of those clients of a cohort that train on this rank."""
        return groups_of(self.groups, self.world.part(self.config.cohort))

    @property
    def batches(self) -> tuple[int, ...]:
        """Return the images per step of each client of a cohort, those of other ranks included."""
        return batches_of(self.groups)

    @property
    def images(self) -> np.ndarray:
        """Return how many images each client holds, ``[M]``."""
        return _held(self.sources)

    def images_of(self, ids: torch.Tensor) -> torch.Tensor:
        """Return how many images clients hold, ``[C]`` int64 on the device, given their ids on the host."""
        held = sum(source.sizes_of(ids.numpy()) for source in self.sources)
        return torch.from_numpy(held).to(self.device, non_blocking=True)

    def server_lr(self, round_index: int) -> float:
        """Return the server's learning rate in a round counted from 0."""
        share, *when = schedule.warmed_up(round_index, self.config.rounds, self.config.warmup_rounds)
        return schedule.server_lr(share * self.config.lr, self.config.lr_schedule, *when)

    def client_lr(self, round_index: int, own_steps: torch.Tensor) -> torch.Tensor:
        """Return the learning rates ``[C]`` of clients that have done `own_steps` ``[C]`` steps each, in float64."""
        config = self.config
        share, *when = schedule.warmed_up(round_index, config.rounds, config.warmup_rounds)
        return schedule.client_lr(share * config.client_lr, config.client_lr_schedule, *when, own_steps)


def build(
    config: RunConfig,
    dataset: Dataset | None = None,
    *,
    partition: Partition | None = None,
    dtype: torch.dtype = torch.float32,
    choices: Mapping[str, str] | None = None,
    start: Weights | None = None,
    auto_precision: tuple[str, str] | None = None,
    world: World = ALONE,
) -> Parts:
    """Build the parts of a simulation.

    Args:
        config: what to run.
        dataset: the images, instead of loading ``config.dataset``.
        partition: which images each client holds, instead of what ``config.partition`` names, which is then "given";
            indices count the images that clients may hold (`Dataset.held`) from 0.
        dtype: dtype of everything that is learnt, and with fp32 precision of what is computed; float64 is for tests.
        choices: versions of operators to use, by operator and shape, instead of measuring which are fastest.
        start: weights to start from, instead of loading ``config.init_client`` or ``config.init_backbone``.
        auto_precision: the precision that "auto" means, and the reason, instead of what suits the device.
        world: the ranks that train the run together.

    Raises:
        ValueError: config, data and machine do not fit together.
    """
    if dtype != torch.float32:
        auto_precision = "fp32", f"everything is {str(dtype).removeprefix('torch.')}"
    config = _with_partition(config, partition)
    by_rule = defaults.left_to_rules(config)
    checks.check_machine(config)
    start = start or (load_weights(config.init_client) if config.init_client else None)  # sooner read than images
    pretrained = read_backbone(config.init_backbone) if config.init_backbone and not start else None
    dataset = load_images(config, dataset)
    asked, reason = defaults.with_precision(config, auto_precision, image_size=dataset.image_size)
    checks.check_precision(asked, dataset.image_size)
    checks.check_labels(asked, dataset)
    held, auxiliary = assembly.partition(asked, dataset, partition), assembly.auxiliary(asked, dataset)
    sources = _sources(held, auxiliary)
    size = _outline(asked, dataset, sources)
    config = size.config
    device = torch.device(config.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # events and defaults are to be this device's, too
    if pretrained:
        start = start_from(config.init_backbone, pretrained, config)
    model = _network(config, start)
    checks.check_batch_norm(config, model)
    checks.check_world(config, model, world)
    state = assembly.state(size, model, dtype, world)
    hyper, aggregation = assembly.hyperparameters(size, model, dtype, world), assembly.aggregation(config)
    if device.type == "cpu":
        keep_memory()  # not before: what set-up alone needs goes back to the system
    cost = client_cost(
        model,
        number_bytes=hyper.precision.itemsize,
        defence=hyper.defence,
        align_momentum=aggregation.aligns_momentum,
    )
    attendance = _attendance(size, sources)
    timeline = assembly.timeline(size, attendance, model, cost)
    model = assembly.as_run(config, model, hyper.precision)
    dataset = dataset.to(device)
    parts = Parts(
        config=cast(Resolved, config),
        by_rule=by_rule,
        reasons={"precision": reason} | _limits(asked, config, sources),
        dataset=dataset,
        partition=held,
        given=partition,
        auxiliary=auxiliary,
        start=start,
        attendance=timeline.attendance if timeline else attendance,
        timeline=timeline,
        steps=size.steps,
        model=model,
        state=state,
        world=world,
        callbacks=assembly.callbacks(config),
        aggregation=aggregation,
        hyper=hyper,
        train_step=_train_step(config, hyper, world),
        version=_version(config.engine),
        cost=cost,
        evaluation=Evaluation(
            dataset,
            seed=config.seed,
            bank=config.knn_bank,
            test=config.knn_test,
            k=config.knn_k,
            temperature=config.knn_temperature,
            dtype=dtype,
            world=world,
        ),
    )
    return parts if config.engine == "loop" else _tuned(parts, choices or {})


def _with_partition(config: RunConfig, partition: Partition | None) -> RunConfig:
    """Return the config of a run whose partition is passed, which says "given"; without one, the config itself.

    Raises:
        ValueError: the config says "given", and no partition is passed, or it is none.
    """
    if partition is None:
        if config.partition == "given":
            raise ValueError(
                "partition: given is not passed; allowed: in Python Simulation(config, partition=...), or another such "
                "as iid"
            )
        return config
    if not isinstance(partition, Partition):
        raise ValueError(
            f"partition: {type(partition).__name__} is no Partition; allowed: simsfl.extend.Partition.of(parts)"
        )
    return replace(config, partition="given")


def load_images(config: RunConfig, given: Dataset | None = None) -> Dataset:
    """Return the images of a run, of which some may be held out.

    Args:
        config: what to run.
        given: the images, instead of loading those that the config names.

    Raises:
        ValueError: they cannot be had.
    """
    if given is None:
        given = load_dataset(
            config.dataset,
            data_dir=config.data_dir,
            image_size=config.image_size,
            seed=config.seed,
            stream=config.stream,
            auxiliary=config.aux_dataset,
            options=config.options_of("dataset"),
        )
    check_dataset(given)
    return with_validation(given, config.validation)


def _sources(partition: Partition, auxiliary: Partition | None) -> list[Partition]:
    """Return those of the two partitions that hold images."""
    return [source for source in (partition, auxiliary) if source and len(source.indices)]


def _held(sources: Sequence[Partition]) -> np.ndarray:
    """Return how many images each client holds, ``[M]``."""
    return sum(source.sizes for source in sources)


def _attendance(size: Outline, sources: Sequence[Partition]) -> Attendance:
    """Return who trains in each round of a run of this size."""
    config = size.config
    reliability = Reliability(config.dropout, config.straggler, config.straggler_factor)
    return Attendance(size.groups, config.seed, _held(sources), assembly.sampler(config), reliability)


def _outline(asked: RunConfig, dataset: Dataset, sources: Sequence[Partition]) -> Outline:
    """Return the outline of a run; paths in its config are absolute, so that it can be resumed from anywhere.

    Args:
        asked: the config, apart from the rules.
        dataset: the images.
        sources: which images clients hold.
    """
    config = replace(
        asked,
        dataset=dataset.name,
        data_dir=str(Path(asked.data_dir).resolve()),
        aux_dataset=absolute(asked.aux_dataset),
        fleet=absolute(asked.fleet),
        init_client=absolute(asked.init_client),
        init_backbone=absolute(asked.init_backbone),
        options=asked.options | {name: absolute(file) for name, file in asked.option_files.items()},
        image_size=dataset.image_size,
        stream="never" if isinstance(dataset.train.pixels, torch.Tensor) else "always",
    )
    return outline(
        config,
        [len(source.indices) for source in sources],
        smallest=min(int(source.sizes.min()) for source in sources),
        classes=len(dataset.classes),
    )


def _limits(asked: RunConfig, config: RunConfig, sources: list[Partition]) -> dict[str, str]:
    """Return why the batch size is smaller than its rule says, by "batch_size"; nothing if it is not.

    Args:
        asked: the config, apart from the rules.
        config: the config with every rule applied.
        sources: which images clients hold.
    """
    usual = defaults.batch_size(asked)
    if asked.batch_size or config.batch_size == usual:
        return {}
    source = min(sources, key=lambda one: one.sizes.min())
    client = int(source.sizes.argmin())
    held = count_text(int(source.sizes[client]), "image")
    return {"batch_size": f"by rule {usual}, but client {client} holds only {held}"}


def absolute(name: str | None) -> str | None:
    """Return the absolute path of a file or directory that exists, and any other name unchanged."""
    if name is not None and name.startswith(HUB):
        return HUB + absolute(name.removeprefix(HUB))
    return str(Path(name).resolve()) if name is not None and Path(name).exists() else name


def _network(config: RunConfig, start: Weights | None) -> SplitModel:
    """Build the network with the weights that a run begins with."""
    model = assembly.network(config)
    if start:
        start.initialise(model, config, server=config.init_server or config.init_backbone is not None)
    return model


def _train_step(config: RunConfig, hyper: Hyperparameters, world: World = ALONE) -> Callable[..., Outcome]:
    """Return the step of the config's method and engine; on CUDA, that of the fused engine is recorded and replayed."""
    method = METHODS[config.method]
    if config.engine == "loop":
        return method.looped.load()
    step = method.stacked.load()
    if not _version(config.engine) or torch.device(config.device).type != "cuda":
        return step
    if not world.alone:
        log.warning("steps are not replayed as a CUDA graph on several ranks")
        return step
    for part in (hyper.objective, hyper.optimiser, *hyper.defence.defences):
        if not part.replayable:
            log.warning("steps are not replayed as a CUDA graph, because %s runs Python in each", type(part).__name__)
            return step
    return CapturedStep(step)


def _version(engine: str) -> str | None:
    """Return the version of operators that an engine names, "fastest" if it names none; None for PyTorch's own."""
    kind, _, version = engine.partition(":")
    return (version or "fastest") if kind == "fused" else None


def _tuned(parts: Parts, known: Mapping[str, str]) -> Parts:
    """Measure which operators, and how many clients run together, are fastest; return parts that use them.

    Args:
        parts: the parts, apart from these choices.
        known: choices that are already made, and are kept.
    """
    config, hyper, model, device = parts.config, parts.hyper, parts.model, parts.device
    with (
        arithmetic(config.precision),
        accelerated(parts.version),
        tuning.remembering(known) as choices,
        tuning.able(config.engine),
    ):
        if device.type == "cuda":
            try_triton(device)
        for group in sorted(parts.own_groups, key=lambda group: group.images):  # the chunk of the largest one is used
            chunk = tuning.chunk_of(
                model.client,
                hyper,
                choices,
                cohort=group.cohort,
                batch_size=group.batch_size,
                image_size=config.image_size,
                device=device,
                dtype=parts.dtype,
            )
        hyper = replace(hyper, chunk=chunk)
        if device.type != "cpu":  # on a CPU there is nothing else to choose or to try
            tuning.views_and_descent(parts.dataset.train, parts.plan(0), parts.state.cohort.online.detach())
            if model.server.size:
                whole = hyper.whole_batch or not config.feature_sharing  # then the momentum model gets view by view
                apart = (whole and hyper.targets is Targets.MOMENTUM) or len(model.server.initial_statistics)
                images = sum(group.images for group in parts.own_groups) // config.server_replicas
                rows = images * (1 if apart else config.views_at_server)
                smashed = torch.zeros(rows, *model.smashed_shape, device=device, dtype=hyper.precision)
                server = tuning.working_server(model.server, hyper, parts.state.server.online, smashed)
                model = replace(model, server=server)
    return replace(parts, hyper=hyper, model=model, choices=choices)
