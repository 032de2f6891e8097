"""From a config, with every rule applied, to the parts of a simulation."""

from __future__ import annotations

import logging
from dataclasses import replace
from math import prod

import numpy as np
import torch

from simsfl.algorithm.plan import Group, client_groups
from simsfl.algorithm.state import Sent, State, initial_state
from simsfl.algorithm.step import Hyperparameters
from simsfl.config import RunConfig
from simsfl.config.notation import Bottleneck, Decoder, Unequal
from simsfl.data import Dataset
from simsfl.data.partition import Partition, make_partition
from simsfl.engine.precision import TF32_CAPABILITY, has_bf16, has_tf32, name_of
from simsfl.models import FlatModule, SplitModel, Style, split_model, whole_model
from simsfl.models.central import CentralModule
from simsfl.privacy.decoders import decoder
from simsfl.setup.defaults import check_device, device_of
from simsfl.system.client_store import Storage
from simsfl.system.memory import free_memory
from simsfl.system.randomness import Purpose, torch_generator

log = logging.getLogger(__name__)

BF16_IMAGE_SIZE = 16
"""Smaller images reach a strided 3x3 convolution as single pixels, and oneDNN then leaves part of its
bfloat16 weight gradient unset (seen with torch 2.15)."""
BLOCK_BYTES = 16 << 20
"""Smashed data that goes through the server together on a CPU: half as much takes 110 MB less, and 10 % more time
(ResNet-18)."""


def partition(config: RunConfig, dataset: Dataset, least: int) -> Partition:
    """Who holds what of the data set; every client `least` images, or a ValueError."""
    if config.data_proportion == 0:
        return Partition.of([np.empty(0)] * config.clients)
    return make_partition(
        dataset.train_labels.cpu().numpy(),
        config.clients,
        kind=config.partition,
        classes_per_client=config.classes_per_client,
        alpha=config.alpha,
        batch_size=config.batch_size,
        least=least,
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
        batch_size=config.batch_size,
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
    keys = {"mocosfl": config.queue_length, "fl-moco": config.clients * config.queue_length, "fl-byol": 0}
    return initial_state(
        model,
        clients=config.clients,
        cohort=config.cohort,
        queue_length=keys[config.method],
        key_dim=config.key_dim,
        feature_sharing=config.feature_sharing and config.method == "mocosfl",
        align_momentum=config.align_momentum,
        generator=torch_generator(config.seed, Purpose.QUEUE),
        device=device,
        dtype=dtype,
        storage=storage,
        mixing=config.divergence_tau > 0,
        sent=room_for_sent(config, model, steps, storage, dtype) if config.loss_threshold else None,
    )


def free_on(device: str | torch.device) -> int:
    """Bytes of memory that can be had there."""
    device = torch.device(device)
    return free_memory() if device.type == "cpu" else torch.cuda.mem_get_info(device)[0]


def check_queues(config: RunConfig, dtype: torch.dtype) -> None:
    """Raise a ValueError if federated clients' queues, which all have whole ones, do not fit."""
    if config.method != "fl-moco":
        return
    size, free = config.clients * config.queue_length * config.key_dim * dtype.itemsize, free_on(config.device)
    if 2 * size > free:  # drawn, then normalised
        raise ValueError(
            f"queue_length: {config.queue_length} keys of {config.key_dim} numbers for each of {config.clients} "
            f"clients take {size / 1e9:,.1f} GB, twice while they are drawn, and {free / 1e9:,.1f} GB are free; "
            "allowed: fewer"
        )


def check_attackers(config: RunConfig, each: int, storage: Storage) -> None:
    """Raise a ValueError if simulated attackers, of so many bytes each, do not fit."""
    size = each * (config.cohort + (0 if storage.kind == "mmap" else config.clients))
    free = free_on(storage.device)
    if size > free:
        raise ValueError(
            f"ressfl_decoder: {config.ressfl_decoder} takes {size / 1e9:,.1f} GB for {config.clients} clients, and "
            f"{free / 1e9:,.1f} GB are free; allowed: fewer channels, or --client-state mmap"
        )


def room_for_sent(config: RunConfig, model: SplitModel, steps: int, storage: Storage, dtype: torch.dtype) -> Sent:
    """Where what clients send in a round is kept; see `state`."""
    views = 1 if config.supervised else 2
    rows, row = views * sum(group.images for group in groups(config)), prod(model.smashed_shape)
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


def check_precision(config: RunConfig, image_size: int) -> None:
    """Raise a ValueError where the precision does not work with such images, or on the device."""
    if config.precision == "tf32" and not has_tf32(config.device):
        capability = ".".join(map(str, TF32_CAPABILITY))
        raise ValueError(
            f"precision: tf32 is not what {name_of(config.device)} has; "
            f"allowed: fp32, or a CUDA device of compute capability {capability} or more"
        )
    if config.precision != "bf16":
        return
    if config.device != "cpu":
        if not has_bf16(config.device):
            raise ValueError(f"precision: bf16 is not what {name_of(config.device)} has; allowed: fp32")
    elif image_size < BF16_IMAGE_SIZE:
        raise ValueError(
            f"precision: bf16 on the CPU does not work with images of {image_size}x{image_size}; "
            f"allowed: fp32, or --image-size {BF16_IMAGE_SIZE} or more"
        )


def with_possible_precision(config: RunConfig) -> RunConfig:
    """Return the config, in fp32 where its device has not its precision, with a warning; its image size is known.

    Raises:
        ValueError: the device cannot be used on this machine.
    """
    check_device(config.device)
    try:
        check_precision(replace(config, device=device_of(config.device)), config.image_size)
    except ValueError as error:
        log.warning("%s; it is fp32 from here on", error)
        return replace(config, precision="fp32")
    return config


def check_batch_norm(config: RunConfig, model: SplitModel) -> None:
    """Raise a ValueError if BatchNorm would have a single value to normalise; nothing is computed.

    Halves without any are passed over: the meta device imports TorchDynamo, which takes a second and 200 MB.
    """
    images = torch.empty(config.batch_size, 3, config.image_size, config.image_size, device="meta")
    smashed = torch.empty(config.cohort * config.batch_size, *model.smashed_shape, device="meta")
    for half, batch, whose in ((model.client, images, "a client's"), (model.server, smashed, "a step's")):
        if not len(half.initial_statistics):
            continue
        try:
            half.template(batch)
        except ValueError as error:
            raise ValueError(
                f"batch_size: {config.batch_size} leaves BatchNorm a single value of {whose} images to normalise; "
                "allowed: 2 or more, a smaller cut layer, or networks and heads without it"
            ) from error
