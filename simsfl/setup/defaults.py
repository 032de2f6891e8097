"""The rules that fill in what a config leaves open: MocoSFL's "auto" rule, and this project's own rules."""

from __future__ import annotations

import logging
from dataclasses import fields, replace

from simsfl.config import RunConfig
from simsfl.config.catalogue import ARCHITECTURES, Targets
from simsfl.engine.precision import automatic
from simsfl.setup.checks import BF16_IMAGE_SIZE, check_device, check_machine, check_precision, device_of

_FEDERATED_BATCH = 128
"""Images per client and step in federated learning, as in FedEMA (Zhuang et al., ICLR 2022)."""

log = logging.getLogger(__name__)


def resolve(config: RunConfig) -> RunConfig:
    """Return the config with every rule applied that does not need the images.

    Raises:
        ValueError: the config cannot be run on this machine, or its network lacks the cut layer.
    """
    config, _ = with_precision(config)
    check_machine(config)
    return with_rules(config)


def with_rules(config: RunConfig, images_per_client: int | None = None, classes: int | None = None) -> RunConfig:
    """Return the config with every rule applied except that of the precision (`with_precision`).

    Args:
        config: what was asked for.
        images_per_client: number of images of the client that holds the fewest, if known: a batch size that is set by
            rule is not larger.
        classes: number of classes of the data set, if known: it sets the shards per client, and the head of supervised
            training.
    """
    clients = config.clients
    cohort = config.cohort_size
    images = config.batch_size or batch_size(config, images_per_client)
    of_classes = {"head": config.head_name}
    if classes:
        of_classes["classes_per_client"] = config.classes_per_client or classes_per_client(classes)
        of_classes |= {"head": "linear", "key_dim": classes} if config.goal.targets is Targets.LABELS else {}
    return replace(
        config,
        cohort=cohort,
        batch_size=images,
        rounds=config.rounds or max(1, round(config.epochs * clients / cohort / config.local_epochs)),
        syncs_per_round=config.syncs_per_round or (max(1, 1000 // (images * clients)) if config.is_split else 1),
        width=config.width or ARCHITECTURES[config.arch].width,
        weight_standardisation=(
            config.norm == "group" if config.weight_standardisation is None else config.weight_standardisation
        ),
        client_lr=config.lr if config.client_lr is None else config.client_lr,
        device=device_of(config.device),
        **of_classes,
    )


def batch_size(config: RunConfig, images_per_client: int | None = None) -> int:
    """Return the batch size by rule, which is at most `images_per_client`, the fewest that a client holds, if known."""
    clients = config.clients
    in_split = 100 // clients if clients <= 50 else 1
    by_rule = in_split if config.is_split else _FEDERATED_BATCH
    return min(by_rule, images_per_client or by_rule)


def classes_per_client(classes: int) -> int:
    """Return the number of shards per client by rule: a fifth of the number of classes."""
    return max(1, classes // 5)


def left_to_rules(config: RunConfig) -> list[str]:
    """Return the names of the fields that rules fill in, or change."""
    return [
        *(spec.name for spec in fields(config) if getattr(config, spec.name) is None),
        *["precision"] * (config.precision == "auto"),
        *["head", "key_dim"] * (config.goal.targets is Targets.LABELS),
        *["stream"] * (config.stream == "auto"),
    ]


def with_precision(
    config: RunConfig, usual: tuple[str, str] | None = None, *, image_size: int | None = None
) -> tuple[RunConfig, str]:
    """Return the config with the precision that "auto" means, and the reason for it.

    Args:
        config: what was asked for; a precision other than "auto" is kept.
        image_size: height and width of the images in pixels, if known beside the config's.
        usual: precision that "auto" means, and the reason, instead of what suits the device.

    Raises:
        ValueError: the device cannot be used on this machine.
    """
    check_device(config.device)
    if config.precision != "auto":
        return config, "asked for"
    size = image_size or config.image_size
    large_enough = size is None or size >= BF16_IMAGE_SIZE
    precision, reason = usual or automatic(
        device_of(config.device), bf16_on_cpu=ARCHITECTURES[config.arch].bf16_on_cpu and large_enough
    )
    return replace(config, precision=precision), f"auto, {reason}"


def with_possible_precision(config: RunConfig) -> RunConfig:
    """Return the config, in fp32 and with a warning if its device does not support its precision.

    The config's image size has to be known.

    Raises:
        ValueError: the device cannot be used on this machine.
    """
    check_device(config.device)
    try:
        check_precision(config, config.image_size)
    except ValueError as error:
        log.warning("%s; it is fp32 from here on", error)
        return replace(config, precision="fp32")
    return config
