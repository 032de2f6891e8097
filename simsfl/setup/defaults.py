"""The rules that fill in what a config leaves open, and what of it this machine must be asked about."""

from __future__ import annotations

from dataclasses import fields, replace

import torch

from simsfl.config import ARCHITECTURES, ENGINES, RunConfig
from simsfl.engine.precision import automatic
from simsfl.kernels import gpu
from simsfl.models import layer_count

FEDERATED_BATCH = 128
"""As in FedEMA (Zhuang et al., ICLR 2022)."""


def resolve(config: RunConfig, images_per_client: int | None = None) -> RunConfig:
    """The same run with every rule applied (MocoSFL's "auto" rule).

    Args:
        images_per_client: what the client with the fewest holds; a batch size set by rule is not larger.

    Raises:
        ValueError: values that cannot work together, or on this machine.
    """
    config, _ = with_precision(config)
    check_engine(config.engine, config.device)
    deepest = layer_count(config.arch)
    if not 1 <= config.cut_layer <= deepest:
        raise ValueError(f"cut_layer: {config.cut_layer} is out of range; allowed for {config.arch}: 1 to {deepest}")
    clients = config.clients
    cohort = config.cohort or (100 if clients >= 200 else clients)
    split = config.method == "mocosfl"
    by_rule = FEDERATED_BATCH if not split else 100 // clients if clients <= 50 else 1
    batch_size = config.batch_size or min(by_rule, images_per_client or by_rule)
    return replace(
        config,
        cohort=cohort,
        batch_size=batch_size,
        rounds=config.rounds or max(1, round(config.epochs * clients / cohort / config.local_epochs)),
        syncs_per_round=config.syncs_per_round or (max(1, 1000 // (batch_size * clients)) if split else 1),
        width=config.width or ARCHITECTURES[config.arch],
        weight_standardisation=(
            config.norm == "group" if config.weight_standardisation is None else config.weight_standardisation
        ),
        client_lr=config.lr if config.client_lr is None else config.client_lr,
        device=device_of(config.device),
    )


def left_to_rules(config: RunConfig) -> list[str]:
    """Names of the fields that rules fill in."""
    return [spec.name for spec in fields(config) if getattr(config, spec.name) is None] + (
        ["precision"] if config.precision == "auto" else []
    )


def with_precision(config: RunConfig, usual: tuple[str, str] | None = None) -> tuple[RunConfig, str]:
    """Return the config with the precision that "auto" means, and why it is that one.

    Args:
        usual: what "auto" means and why, instead of what suits the device.

    Raises:
        ValueError: the device cannot be used on this machine.
    """
    check_device(config.device)
    if config.precision != "auto":
        return config, "asked for"
    precision, reason = usual or automatic(device_of(config.device))
    return replace(config, precision=precision), f"auto, {reason}"


def device_of(name: str) -> str:
    """The device that a config's `device` means: "auto" and "cuda" are the first CUDA device, "auto" else the CPU."""
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


def check_engine(engine: str, device: str) -> None:
    """Raise a ValueError if `engine` forces operators that cannot run on `device`."""
    device = device_of(device)
    if engine == "fused:triton" and not gpu.runs_on(torch.device(device)):
        lacking = "Triton, which is not installed" if device.startswith("cuda") else f"a CUDA device, not {device}"
        others = ", ".join(name for name in ENGINES if name != engine)
        raise ValueError(f"engine: {engine} needs {lacking}; allowed: {others}")
