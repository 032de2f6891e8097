"""From a config, with every rule applied, to the parts of a simulation."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import numpy as np
import torch

from simsfl.algorithm.plan import Group, client_groups
from simsfl.algorithm.state import (
    Sent,
    State,
    cohort_queues,
    initial_attackers,
    initial_clients,
    initial_cohort,
    initial_queues,
    initial_server,
)
from simsfl.algorithm.step import Hyperparameters
from simsfl.config import RunConfig
from simsfl.config.notation import Bottleneck, Decoder, Unequal
from simsfl.data import Dataset
from simsfl.data.partition import Partition, make_partition
from simsfl.models import FlatModule, SplitModel, Style, split_model, whole_model
from simsfl.models.central import CentralModule
from simsfl.privacy.decoders import decoder
from simsfl.setup import defaults
from simsfl.setup.checks import check_attackers, check_queues, free_on
from simsfl.system.client_store import Storage
from simsfl.system.randomness import Purpose, torch_generator

BLOCK_BYTES = 16 << 20
"""Smashed data that goes through the server together on a CPU: half as much takes 110 MB less, and 10 % more time
(ResNet-18)."""


def partition(config: RunConfig, dataset: Dataset) -> Partition:
    """Divide the data set among the clients; what the config leaves to a rule may be left to it here.

    Raises:
        ValueError: a client would hold less than a batch, or no image.
    """
    if config.data_proportion == 0:
        return Partition.of([np.empty(0)] * config.clients)
    return make_partition(
        dataset.train_labels.cpu().numpy(),
        config.clients,
        kind=config.partition,
        classes_per_client=config.classes_per_client or defaults.classes_per_client(len(dataset.classes)),
        alpha=config.alpha,
        batch_size=config.batch_size or defaults.batch_size(config),
        least=config.batch_size or 1,
        unequal=unequal(config),
        proportion=config.data_proportion,
        seed=config.seed,
    )


def auxiliary(config: RunConfig, dataset: Dataset) -> Partition | None:
    """Who holds what of the auxiliary data set, if there is one: equally many random images each."""
    if not dataset.auxiliary:
        return None
    first = len(dataset.train_labels)
    dealt = make_partition(
        np.zeros(dataset.auxiliary, dtype=np.int64),
        config.clients,
        kind="iid",
        batch_size=config.batch_size or defaults.batch_size(config),
        least=1,
        seed=config.seed,
    )
    return Partition(first + dealt.indices, dealt.offsets)


def groups(config: RunConfig) -> list[Group]:
    """Clients by what they can do. With a second data set, batches have `batch_size` images of each."""
    sources = 2 if config.aux_dataset and config.data_proportion else 1
    return client_groups(config.clients, config.cohort, sources * config.batch_size, unequal(config))


def unequal(config: RunConfig) -> Unequal | None:
    """The config's, as it is meant."""
    return Unequal.parse(config.unequal) if config.unequal else None


def network(config: RunConfig, *, weights: bool = True) -> SplitModel:
    """The network, freshly initialised, or without `weights`; the image size has to be known."""
    what = {
        "width": config.width,
        "image_size": config.image_size,
        "head": config.head,
        "key_dim": config.key_dim,
        "generator": torch_generator(config.seed, Purpose.MODEL) if weights else None,
        "style": Style(config.norm, config.weight_standardisation),
    }
    if config.method != "mocosfl":
        return whole_model(config.arch, **what, predictor=config.method == "fl-byol")
    return split_model(
        config.arch,
        **what,
        cut_layer=config.cut_layer,
        bottleneck=Bottleneck.parse(config.bottleneck) if config.bottleneck else None,
        client_residual=config.client_residual,
    )


def as_run(config: RunConfig, model: SplitModel, precision: torch.dtype) -> SplitModel:
    """Return the network as the config's engine runs it on the config's device; the state stays what it is.

    On a CUDA device the fused engine has a server of its own (`simsfl.models.central`).
    """
    device = torch.device(config.device)
    if device.type == "cpu" or not config.engine.startswith("fused") or not model.server.size:
        return model
    return replace(model, server=CentralModule(model.server, precision, device))


def with_attacker(config: RunConfig, model: SplitModel) -> SplitModel:
    """The network with the decoder of the attackers that clients learn to resist, if they do."""
    if not config.ressfl_lambda:
        return model
    generator = torch_generator(config.seed, Purpose.DECODER)
    spec = Decoder.parse(config.ressfl_decoder)
    network = decoder(spec, model.smashed_shape, config.image_size, "group", generator)
    return replace(model, attacker=FlatModule(network))


def state(config: RunConfig, model: SplitModel, steps: int, dtype: torch.dtype) -> State:
    """Everything that is learnt, as it begins; rounds have so many `steps`.

    Raises:
        ValueError: what clients send in a round is to be kept, and does not fit.
    """
    device = torch.device(config.device)
    storage = Storage(config.client_state, device, dtype_of(config.client_state_dtype, dtype))
    check_queues(config, storage.dtype)
    if model.attacker:
        check_attackers(config, 3 * model.attacker.size * dtype.itemsize, storage)
    mine = {"device": device, "dtype": dtype}
    shared = config.feature_sharing and config.method == "mocosfl"
    rings = 1 if shared else config.clients
    length = {"mocosfl": config.queue_length // rings, "fl-moco": config.queue_length, "fl-byol": 0}[config.method]
    queues = initial_queues(rings, length, config.key_dim, torch_generator(config.seed, Purpose.QUEUE), **mine)
    return State(
        clients=initial_clients(
            model.client,
            config.clients,
            storage,
            **mine,
            align_momentum=config.align_momentum,
            mixing=config.divergence_tau > 0,
        ),
        cohort=initial_cohort(model.client, config.cohort, **mine),
        server=initial_server(model.server, **mine),
        queues=queues,
        queue=queues if shared else cohort_queues(queues, config.cohort),
        sent=room_for_sent(config, model, steps, storage, dtype) if config.loss_threshold else None,
        attackers=initial_attackers(model.attacker, config.clients, config.cohort, storage, **mine)
        if model.attacker
        else None,
    )


def room_for_sent(config: RunConfig, model: SplitModel, steps: int, storage: Storage, dtype: torch.dtype) -> Sent:
    """Where what clients send in a round is kept; see `state`."""
    rows, row = config.views_sent * sum(group.images for group in groups(config)), prod(model.smashed_shape)
    precision = dtype_of(config.precision, dtype)
    size, free = steps * rows * row * precision.itemsize, free_on(storage.device)
    if storage.kind != "mmap" and size > free:
        raise ValueError(
            f"loss_threshold: {config.loss_threshold:g} keeps the {size / 1e9:,.1f} GB that clients send in a round, "
            f"and {free / 1e9:,.1f} GB are free; allowed: --client-state mmap, or a smaller --local-epochs"
        )
    smashed = storage.zeros(steps * rows, row, precision).view(steps, rows, *model.smashed_shape)
    labels = torch.zeros(steps if config.supervised else 0, rows, dtype=torch.long, device=storage.device)
    return Sent(smashed, labels)


def hyperparameters(config: RunConfig, model: SplitModel, dtype: torch.dtype) -> Hyperparameters:
    """What stays the same from step to step, but for the chunk of clients."""
    precision = dtype_of(config.precision, dtype)
    on_cpu = torch.device(config.device).type == "cpu"
    row = max(1, prod(model.smashed_shape)) * precision.itemsize
    return Hyperparameters(
        temperature=config.temperature,
        symmetric=config.symmetric,
        tau=config.tau,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        precision=precision,
        batches=tuple(group.batch_size for group in groups(config) for _ in range(group.cohort)),
        resistance=config.ressfl_lambda,
        target_ssim=config.ressfl_target_ssim,
        clients_learn=config.client_lr > 0,
        block=max(1, BLOCK_BYTES // row) if on_cpu and not config.engine.startswith("loop") else None,
    )


def dtype_of(precision: str, full: torch.dtype) -> torch.dtype:
    """The dtype of a config's precision, where fp32 and tf32 mean `full`."""
    return torch.bfloat16 if precision == "bf16" else full
