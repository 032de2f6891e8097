"""Checks of a config that need the machine or the data; `simsfl.config.constraints` has all other checks."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from simsfl.algorithm.plan import Group
from simsfl.config import ENGINES, RunConfig
from simsfl.config.catalogue import DATASETS, PARTITIONS
from simsfl.data import Dataset
from simsfl.engine.precision import TF32_CAPABILITY, has_bf16, has_tf32, name_of
from simsfl.kernels import gpu
from simsfl.models import SplitModel, layer_count
from simsfl.system.client_store import Storage
from simsfl.system.memory import free_memory
from simsfl.system.messages import count_text
from simsfl.system.world import World

log = logging.getLogger(__name__)
BF16_IMAGE_SIZE = 16
"""Smallest height and width of images, in pixels, that bf16 works with on a CPU.

Smaller images reach a strided 3x3 convolution as single pixels, and oneDNN then leaves part of its bfloat16 weight
gradient unset (seen with torch 2.15)."""
_RARE = 1e-3
"""Number of times that something is to be expected in a run, up to which it counts as never."""


def check_machine(config: RunConfig) -> None:
    """Raise a ValueError unless the config's device and engine work on this machine, and its cut layer exists."""
    check_device(config.device)
    _check_engine(config.engine, config.device)
    known = DATASETS.get(config.dataset)
    size = config.image_size or (known.image_size if known else None)
    deepest = layer_count(config.arch, config.options_of("arch"), size)
    if not 1 <= config.cut_layer <= deepest:
        raise ValueError(f"cut_layer: {config.cut_layer} is out of range; allowed for {config.arch}: 1 to {deepest}")


def device_of(name: str) -> str:
    """Return the device that a config's `device` means on this machine.

    "auto" and "cuda" mean "cuda:0" if CUDA is available, else "cpu"; other names are returned as they are.
    """
    if name not in ("auto", "cuda"):
        return name
    return "cuda:0" if torch.cuda.is_available() else "cpu"


def check_device(device: str) -> None:
    """Raise a ValueError unless `device` ("auto", "cpu", "cuda" or "cuda:N") can be used on this machine."""
    kind, _, index = device.partition(":")
    if device in ("auto", "cpu"):
        return
    if kind != "cuda" or not (index.isdecimal() or device == "cuda"):
        raise ValueError(f"device: {device!r} is not known; allowed: auto, cpu, cuda, cuda:N")
    if not torch.cuda.is_available():
        raise ValueError(f"device: {device} is not available, this machine has no CUDA; allowed: auto, cpu")
    if int(index or 0) >= torch.cuda.device_count():
        highest = torch.cuda.device_count() - 1
        raise ValueError(f"device: {device} does not exist; allowed: cuda:0 to cuda:{highest}")


def _check_engine(engine: str, device: str) -> None:
    """Raise a ValueError if `engine` requires operators that cannot run on `device`."""
    device = device_of(device)
    if engine == "fused:triton" and not gpu.runs_on(torch.device(device)):
        lacking = "Triton, which is not installed" if device.startswith("cuda") else f"a CUDA device, not {device}"
        others = ", ".join(name for name in ENGINES if name != engine)
        raise ValueError(f"engine: {engine} needs {lacking}; allowed: {others}")


def _free_on(device: str | torch.device) -> int:
    """Return how many bytes of memory are free on a device."""
    device = torch.device(device)
    return free_memory() if device.type == "cpu" else torch.cuda.mem_get_info(device)[0]


def check_queues(config: RunConfig, dtype: torch.dtype) -> None:
    """Raise a ValueError if key queues in `dtype`, of which each federated client has a whole one, do not fit."""
    if config.is_split or not config.goal.queue:
        return
    size, free = config.clients * config.queue_length * config.key_dim * dtype.itemsize, _free_on(config.device)
    if 2 * size > free:  # drawn, then normalised
        raise ValueError(
            f"queue_length: {config.queue_length} keys of {config.key_dim} numbers for each of {config.clients} "
            f"clients take {size / 1e9:,.1f} GB, twice while they are drawn, and {free / 1e9:,.1f} GB are free; "
            "allowed: fewer"
        )


def warn_of_short_queue(config: RunConfig, groups: Sequence[Group]) -> None:
    """Warn if a key queue has less room than the keys of a single step, of which it then forgets some at once.

    Args:
        config: the config with every rule applied.
        groups: the clients, grouped by batch size.
    """
    if not config.goal.queue:
        return
    images = (
        max(group.batch_size for group in groups)
        if config.own_queues
        else sum(group.images for group in groups) // config.server_replicas
    )
    keys, held = config.views_at_server * images, config.keys_in_a_queue
    if held < keys:
        whose = " on each client" if config.own_queues else ""
        log.warning(
            "queue_length: %s%s are less than one step, which writes %s (%s of each of %s): the queue forgets some of "
            "them at once; usual are several steps, here --queue-length %s or more",
            *(count_text(held, "key"), whose, f"{keys:,}", config.views_at_server),
            *(count_text(images, "image"), 2 * keys * (config.queue_length // held)),
        )


def check_defence(config: RunConfig, each: int, storage: Storage) -> None:
    """Raise a ValueError if what defences remember, `each` bytes of a client, does not fit into memory."""
    size = each * (config.cohort + (0 if storage.kind == "mmap" else config.clients))
    free = _free_on(storage.device)
    if size > free:
        raise ValueError(
            f"defence: {'+'.join(config.defences)} remembers {size / 1e9:,.1f} GB of {config.clients} clients, and "
            f"{free / 1e9:,.1f} GB are free; allowed: --client-state mmap, or less, such as a smaller --ressfl-decoder"
        )


def check_sent(config: RunConfig, size: int, storage: Storage) -> None:
    """Raise a ValueError if what clients send in a round, `size` bytes, has to be kept and does not fit.

    Args:
        config: the config with every rule applied.
        size: bytes.
        storage: where it is to be kept.
    """
    free = _free_on(storage.device)
    if storage.kind != "mmap" and size > free:
        raise ValueError(
            f"loss_threshold: {config.loss_threshold:g} keeps the {size / 1e9:,.1f} GB that clients send in a round, "
            f"and {free / 1e9:,.1f} GB are free; allowed: --client-state mmap, or a smaller --local-epochs"
        )


def check_labels(config: RunConfig, dataset: Dataset) -> None:
    """Raise a ValueError if the config needs labels of images that have none, and are what clients hold."""
    if not dataset.unlabelled:
        return
    lacking = f"needs labels, and the {dataset.unlabelled:,} images of {dataset.name} that clients hold have none"
    if config.goal.needs_labels:
        field = "supervised: training on labels" if config.supervised else f"objective: {config.objective}"
        raise ValueError(f"{field} {lacking}; allowed: an objective without labels")
    if config.data_proportion and PARTITIONS[config.partition].code.load().needs_labels:
        without = {"given"} if dataset.train_client is not None else {"given", "natural"}
        allowed = [
            name for name, kind in PARTITIONS.items() if name not in without and not kind.code.load().needs_labels
        ]
        raise ValueError(f"partition: {config.partition} {lacking}; allowed: {', '.join(allowed)}")


def check_precision(config: RunConfig, image_size: int) -> None:
    """Raise a ValueError unless the precision works on the device, and with images of this height and width."""
    device = device_of(config.device)
    if config.precision == "tf32" and not has_tf32(device):
        capability = ".".join(map(str, TF32_CAPABILITY))
        raise ValueError(
            f"precision: tf32 is not what {name_of(device)} has; "
            f"allowed: fp32, or a CUDA device of compute capability {capability} or more"
        )
    if config.precision != "bf16":
        return
    if device != "cpu":
        if not has_bf16(device):
            raise ValueError(f"precision: bf16 is not what {name_of(device)} has; allowed: fp32")
    elif image_size < BF16_IMAGE_SIZE:
        raise ValueError(
            f"precision: bf16 on the CPU does not work with images of {image_size}x{image_size}; "
            f"allowed: fp32, or --image-size {BF16_IMAGE_SIZE} or more"
        )


def check_batch_norm(config: RunConfig, model: SplitModel) -> None:
    """Raise a ValueError if BatchNorm would have only a single value to normalise; nothing is computed.

    Halves without BatchNorm are skipped, because the meta device imports TorchDynamo, which takes a second and 200 MB.
    """
    images = torch.empty(config.batch_size, 3, config.image_size, config.image_size, device="meta")
    all_come = not _one_may_come_alone(config)
    clients = config.cohort // config.server_replicas if all_come else 1
    smashed = torch.empty(clients * config.batch_size, *model.smashed_shape, device="meta")
    at_server = "a step's images" if all_come else "a step's images, if only one client comes,"
    for half, batch, whose in ((model.client, images, "a client's images"), (model.server, smashed, at_server)):
        if not len(half.initial_statistics):
            continue
        try:
            half.template(batch)
        except ValueError as error:
            raise ValueError(
                f"batch_size: {config.batch_size} leaves BatchNorm a single value of {whose} to normalise; "
                "allowed: 2 or more, a smaller cut layer, or networks and heads without it"
            ) from error


def _one_may_come_alone(config: RunConfig) -> bool:
    """Return whether it may happen in a run that all clients of a server but one are absent, or all of them.

    Where it is to happen less than `_RARE` times, it does not count.
    """
    clients = config.cohort // config.server_replicas
    away = 1 - (1 - config.dropout) * (1 - config.straggler)
    in_a_round = clients * (1 - away) * away ** (clients - 1) + away**clients
    return clients > 1 and config.rounds * config.server_replicas * in_a_round > _RARE


def check_world(config: RunConfig, model: SplitModel, world: World) -> None:
    """Raise a ValueError if several ranks cannot share a run."""
    if world.alone:
        return
    for name, wrong, allowed in (
        ("engine", config.engine == "loop", "fused or vmap"),
        ("server_replicas", config.server_replicas > 1, "1"),
        ("loss_threshold", config.loss_threshold > 0, "0"),
    ):
        if wrong:
            raise ValueError(
                f"{name}: {getattr(config, name)} is not for a run on {world.size} ranks; allowed: {allowed}, or one "
                "rank"
            )
    if world.size > config.cohort:
        raise ValueError(
            f"ranks: {world.size} are more than the cohort's {count_text(config.cohort, 'client')}; allowed: 1 to "
            f"{config.cohort}"
        )
    if len(model.server.initial_statistics):
        raise ValueError(
            f"ranks: the server's BatchNorm has the statistics of one rank's images, and there are {world.size} ranks; "
            "allowed: networks and heads without it behind the cut, or one rank"
        )
