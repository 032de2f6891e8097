"""Making the parts of a simulation, one by one, from a config with every rule applied."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch

from simsfl.aggregations import Aggregation
from simsfl.aggregations.around import Aligned, Mixed
from simsfl.algorithm.aggregation import is_sync_step
from simsfl.algorithm.batch import Hyperparameters
from simsfl.algorithm.initial import (
    cohort_memory,
    further_replicas,
    initial_clients,
    initial_cohort,
    initial_remembered,
    initial_server,
)
from simsfl.algorithm.plan import Attendance, batches_of, groups_of
from simsfl.algorithm.state import (
    Sent,
    State,
)
from simsfl.config import RunConfig
from simsfl.config.catalogue import (
    AGGREGATIONS,
    CALLBACKS,
    DEFENCES,
    OPTIMIZERS,
    PARTITIONS,
    PRECISIONS,
    SAMPLERS,
)
from simsfl.config.fleet import read_fleet
from simsfl.config.notation import Bottleneck
from simsfl.cost.model import ClientCost
from simsfl.data import Dataset
from simsfl.data.partition import IID, Given, Partition, make_partition
from simsfl.defences import Chain
from simsfl.fleet.costs import Costs
from simsfl.fleet.timeline import Timeline
from simsfl.models import SplitModel, Style, split_model, whole_model
from simsfl.models.central import CentralModule
from simsfl.objectives import Objective
from simsfl.optimisers import Optimiser
from simsfl.optimisers.proximal import Proximal
from simsfl.samplers import Sampler
from simsfl.setup import defaults
from simsfl.setup.checks import check_defence, check_queues, check_sent
from simsfl.setup.outline import Outline
from simsfl.system.answers import memory_from
from simsfl.system.client_store import Storage
from simsfl.system.randomness import Purpose, torch_generator
from simsfl.system.world import ALONE, World

_BLOCK_BYTES = 16 << 20
"""Bytes of smashed data that go through the server together on a CPU; half as many take 110 MB less memory and 10 %
more time (ResNet-18)."""


def partition(config: RunConfig, dataset: Dataset, given: Partition | None = None) -> Partition:
    """Divide the data set among the clients; no rule needs to have been applied to the config.

    Args:
        config: the config.
        dataset: the images.
        given: the partition if the config's is "given"; its indices count the images that clients hold from 0.

    Returns:
        The partition, whose indices are rows of the training images.

    Raises:
        ValueError: a client would hold less than a batch that the config sets, or no image, or the partition that is
            given is none of these images.
    """
    if config.data_proportion == 0:
        return Partition.of([np.empty(0)] * config.clients)
    shards = config.classes_per_client or defaults.classes_per_client(len(dataset.classes))
    kind = PARTITIONS[config.partition].code.load()
    partitioner = Given(given) if given else kind.of(replace(config, classes_per_client=shards), dataset)
    labels = np.full(dataset.unlabelled, -1) if dataset.unlabelled else dataset.train_labels.cpu().numpy()
    dealt = make_partition(
        labels,
        config.clients,
        partitioner,
        batch_size=config.batch_size or defaults.batch_size(config),
        least=config.batch_size or 1,
        unequal=config.inequality,
        proportion=config.data_proportion,
        seed=config.seed,
    )
    return dealt.shifted(dataset.held.start)


def auxiliary(config: RunConfig, dataset: Dataset) -> Partition | None:
    """Divide the auxiliary data set among the clients: the same number of random images for each.

    Returns:
        The partition, whose indices count on from the training images of the data set; None if there is no auxiliary
        data set.
    """
    if not dataset.auxiliary:
        return None
    first = len(dataset.train_labels) + dataset.unlabelled
    dealt = make_partition(
        np.zeros(dataset.auxiliary, dtype=np.int64),
        config.clients,
        IID(),
        batch_size=config.batch_size or defaults.batch_size(config),
        least=1,
        seed=config.seed,
    )
    return dealt.shifted(first)


def network(config: RunConfig, *, weights: bool = True) -> SplitModel:
    """Return the network of a config whose image size is known.

    Args:
        config: the config with every rule applied.
        weights: whether to initialise the weights, from the config's seed.
    """
    what = {
        "width": config.width,
        "image_size": config.image_size,
        "head": config.head,
        "key_dim": config.key_dim,
        "predictor": config.goal.predictor,
        "generator": torch_generator(config.seed, Purpose.MODEL) if weights else None,
        "style": Style(config.norm, config.weight_standardisation),
        "options": config.options_of("arch"),
    }
    if not config.is_split:
        return whole_model(config.arch, **what)
    return split_model(
        config.arch,
        **what,
        cut_layer=config.cut_layer,
        bottleneck=Bottleneck.parse(config.bottleneck) if config.bottleneck else None,
        client_residual=config.client_residual,
    )


def as_run(config: RunConfig, model: SplitModel, precision: torch.dtype) -> SplitModel:
    """Return the network in the form in which the config's engine runs it on the config's device.

    On a CUDA device the fused engine has its own form of the server (`simsfl.models.central`). The state is the same.
    """
    device = torch.device(config.device)
    if device.type == "cpu" or not config.engine.startswith("fused") or not model.server.size:
        return model
    return replace(model, server=CentralModule(model.server, precision, device))


def state(size: Outline, model: SplitModel, dtype: torch.dtype, world: World = ALONE) -> State:
    """Allocate everything that is learnt, with its initial values.

    Args:
        size: the outline of the run.
        model: the network, whose initial weights the server takes over.
        dtype: dtype of weights and losses.
        world: the ranks.

    Raises:
        ValueError: key queues, what defences remember, or the smashed data that has to be kept do not fit into memory.
    """
    config, device = size.config, torch.device(size.config.device)
    storage = Storage(config.client_state, device, _dtype_of(config.client_state_dtype, dtype))
    check_queues(config, storage.dtype)
    shapes, defences = (model.smashed_shape, config.image_size), defence(config)
    if remembered := defences.size(*shapes):
        check_defence(config, remembered * dtype.itemsize, storage)
    mine = {"device": device, "dtype": dtype}
    learning = mine | {"optimiser": optimiser(config)}
    shared = config.feature_sharing and config.is_split
    rings = config.server_replicas if shared else config.clients
    generator = torch_generator(config.seed, Purpose.QUEUE)
    goal, averaging = objective(config), aggregation(config)
    memories = memory_from(goal.memory(rings, config.key_dim, generator, **mine), rings, "objective", goal)
    own, positions = world.part(config.clients), world.part(config.cohort)
    if not (shared or world.alone):
        memories = {name: one[own.start : own.stop].clone() for name, one in memories.items()}
    server = initial_server(model.server, **learning)
    return State(
        clients=initial_clients(
            model.client,
            config.clients,
            storage,
            **learning,
            aggregation=averaging,
            world=world,
        ),
        cohort=initial_cohort(model.client, config.cohort, **learning, world=world),
        server=server,
        memories=memories,
        memory=memories if shared else cohort_memory(memories, len(positions)),
        sent=_room_for_sent(size, model, storage, dtype) if config.loss_threshold else None,
        defence=initial_remembered(
            defences.initial(*shapes, torch_generator(config.seed, Purpose.DECODER)),
            len(own),
            len(positions),
            storage,
            **mine,
        )
        if remembered
        else None,
        aggregation=memory_from(averaging.memory(model.client.size, **mine), None, "aggregation", averaging),
        replicas=further_replicas(server, config.server_replicas - 1),
    )


def _room_for_sent(size: Outline, model: SplitModel, storage: Storage, dtype: torch.dtype) -> Sent:
    """Allocate what keeps the smashed data and labels of a whole round; see `state` for arguments and errors."""
    config, steps = size.config, size.steps
    rows, row = config.views_sent * sum(group.images for group in size.groups), prod(model.smashed_shape)
    precision = _dtype_of(config.precision, dtype)
    check_sent(config, steps * rows * row * precision.itemsize, storage)
    smashed = storage.zeros(steps * rows, row, precision).view(steps, rows, *model.smashed_shape)
    labelled = steps if config.goal.needs_labels else 0
    labels = torch.zeros(labelled, rows // config.views_sent, dtype=torch.long, device=storage.device)
    return Sent(smashed, labels, absent=torch.zeros(steps, config.cohort, dtype=torch.bool))


def objective(config: RunConfig) -> Objective:
    """Return the objective of a config with every rule applied."""
    return config.goal.code.load().of(config)


def aggregation(config: RunConfig) -> Aggregation:
    """Return the aggregation of a config with every rule applied.

    Raises:
        ValueError: clients are to mix the average with their own models in two ways.
    """
    chosen = AGGREGATIONS[config.aggregation].load().of(config)
    if config.align_momentum:
        chosen = Aligned(chosen)
    if config.divergence_tau and chosen.mixes:
        raise ValueError(
            f"divergence_tau: {config.divergence_tau:g} is not for aggregation {config.aggregation}, whose clients mix "
            "in a way of their own; allowed: 0"
        )
    return Mixed(chosen, config.divergence_tau) if config.divergence_tau else chosen


def sampler(config: RunConfig) -> Sampler:
    """Return the sampler of a config with every rule applied."""
    return SAMPLERS[config.sampler].code.load().of(config)


def averaged(config: RunConfig, steps: int) -> np.ndarray:
    """Return whether an averaging follows each step of a round, ``[steps]`` bool."""
    return np.array([is_sync_step(s, steps, config.syncs_per_round) for s in range(steps)])


def timeline(size: Outline, attendance: Attendance, model: SplitModel, cost: ClientCost) -> Timeline | None:
    """Return the rounds of a run in the time of its fleet, None if it has none.

    Args:
        size: the size of the run.
        attendance: who trains in each round, apart from the fleet's say.
        model: its network.
        cost: bytes that its messages have.
    """
    config = size.config
    if config.fleet is None:
        return None
    return Timeline(
        Costs(config, model, cost, batches_of(size.groups), read_fleet(Path(config.fleet))),
        attendance,
        averaged(config, size.steps),
        deadline=config.deadline,
        over_select=config.over_select,
    )


def optimiser(config: RunConfig) -> Optimiser:
    """Return the optimiser of a config with every rule applied."""
    chosen = OPTIMIZERS[config.optimizer].code.load().of(config)
    return Proximal(chosen, config.proximal) if config.proximal else chosen


def defence(config: RunConfig) -> Chain:
    """Return the defences of a config with every rule applied.

    Raises:
        ValueError: two of them report a figure of the same name.
    """
    chain = Chain(tuple(DEFENCES[name].code.load().of(config) for name in config.defences))
    if twice := [name for name in chain.figures if chain.figures.count(name) > 1]:
        raise ValueError(f"defence: {config.defence} reports {twice[0]} twice; allowed: defences that do so once")
    return chain


def callbacks(config: RunConfig) -> list[Any]:
    """Return the callbacks that a config names (`simsfl.rounds.callback.Callback`)."""
    return [CALLBACKS[name].load().of(config) for name in config.callbacks]


def hyperparameters(size: Outline, model: SplitModel, dtype: torch.dtype, world: World = ALONE) -> Hyperparameters:
    """Return the values that stay the same from step to step on this rank, except `chunk`, which is measured later.

    Args:
        size: the outline of the run.
        model: the network.
        dtype: dtype of weights and losses.
        world: the ranks.
    """
    config = size.config
    groups = groups_of(size.groups, world.part(config.cohort))
    precision = _dtype_of(config.precision, dtype)
    on_cpu = torch.device(config.device).type == "cpu"
    row = max(1, prod(model.smashed_shape)) * precision.itemsize
    return Hyperparameters(
        objective=objective(config),
        symmetric=config.symmetric,
        tau=config.tau,
        optimiser=optimiser(config),
        defence=defence(config),
        targets=config.goal.targets,
        whole_batch=config.goal.whole_batch,
        shared=config.feature_sharing and config.is_split,
        labels=config.goal.labels,
        precision=precision,
        batches=batches_of(groups),
        clients_learn=config.client_lr > 0,
        block=max(1, _BLOCK_BYTES // row) if on_cpu and not config.engine.startswith("loop") else None,
    )


def _dtype_of(precision: str, full: torch.dtype) -> torch.dtype:
    """Return the dtype that a config's precision means; `full` stands for float32."""
    dtype = getattr(torch, PRECISIONS[precision].dtype)
    return full if dtype == torch.float32 else dtype
