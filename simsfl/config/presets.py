"""Presets: functions that return a config, whose fields flags can override.

The docstrings are what ``run.py --list`` prints.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from simsfl.config import RunConfig
from simsfl.system.messages import unknown

__all__ = [
    "PRESETS",
    "automatic",
    "central",
    "coffee",
    "evening",
    "fedema",
    "fl_byol",
    "fl_moco",
    "laptop",
    "named",
    "paper",
    "paper_large",
    "paper_random_init",
    "paper_small",
    "paper_supervised",
    "paper_v1",
    "random_init",
    "supervised",
    "taressfl_pretrain",
]


def paper() -> RunConfig:
    """MocoSFL's V2 setting: ResNet-18 cut after the stem, 2 classes per client, 200 epochs."""
    return RunConfig(preset="paper", linear_probe=True)


def paper_v1() -> RunConfig:
    """MocoSFL's V1 setting: linear head, 128-number keys, asymmetric loss, no blur, rates that fall in steps."""
    return replace(
        paper(),
        preset="paper-v1",
        head="linear",
        key_dim=128,
        symmetric=False,
        views="v1",
        lr_schedule="step",
        client_lr_schedule="step",
    )


def paper_small() -> RunConfig:
    """MocoSFL's smallV2 setting: the V2 setting with 512-number keys."""
    return replace(paper(), preset="paper-small", key_dim=512)


def paper_large() -> RunConfig:
    """MocoSFL's largeV2 setting: the V2 setting, 4,096 hidden units with BatchNorm, 2,048-number keys."""
    return replace(paper(), preset="paper-large", head="large-mlp", key_dim=2048)


def laptop() -> RunConfig:
    """The paper's clients and algorithm with a small residual network: a few minutes on two CPU cores."""
    return RunConfig(
        preset="laptop",
        arch="resnet8",
        width=16,
        key_dim=512,
        queue_length=2000,
        crop_scale=0.2,
        lr=0.06,
        epochs=4,
        knn_bank=10_000,
        knn_test=2_000,
    )


def coffee() -> RunConfig:
    """The laptop setting tuned for kNN accuracy (docs/accuracy.md): four minutes on two CPU cores, MoCo v1's loss."""
    return replace(
        laptop(),
        preset="coffee",
        arch="resnet8-s1",
        head="linear",
        symmetric=False,
        temperature=0.07,
        views="v1",
        crop_scale=0.6,
        epochs=5,
        eval_every=25,
        knn_bank=None,
        knn_test=5_000,
    )


def evening() -> RunConfig:
    """The coffee setting with a wider network, stronger views and a longer queue: up to two hours on two CPU cores."""
    return replace(coffee(), preset="evening", width=32, crop_scale=0.4, queue_length=6000, epochs=72)


def central() -> RunConfig:
    """The laptop setting's network trained in one place on all data: plain MoCo."""
    rounds_of_50_steps: dict[str, Any] = {
        "batch_size": 100,
        "local_epochs": 0.1,
    }  # the laptop setting has as many steps in a round
    return replace(laptop(), preset="central", method="fl-moco", clients=1, partition="iid", **rounds_of_50_steps)


def fl_moco() -> RunConfig:
    """MoCo on each of five clients, the whole network of the laptop setting averaged every five epochs."""
    return replace(laptop(), preset="fl-moco", method="fl-moco", clients=5, local_epochs=5, epochs=20)


def fl_byol() -> RunConfig:
    """BYOL on each of five clients, the whole network of the laptop setting averaged every five epochs."""
    return replace(fl_moco(), preset="fl-byol", method="fl-byol")


def fedema() -> RunConfig:
    """FedEMA: the fl-byol preset with divergence-aware mixing."""
    return replace(fl_byol(), preset="fedema", divergence_tau=0.7)


def supervised() -> RunConfig:
    """The laptop setting trained on labels: the accuracy to aim for."""
    return replace(laptop(), preset="supervised", supervised=True, linear_probe=True)


def random_init() -> RunConfig:
    """The laptop setting untrained, one round at rate 0: the accuracy of random weights."""
    return replace(
        laptop(), preset="random-init", lr=0.0, client_lr=0.0, rounds=1, syncs_per_round=1, linear_probe=True
    )


def taressfl_pretrain() -> RunConfig:
    """TAResSFL's expert: one trusted party, CIFAR-100 and no data of the target, a client that resists inversion."""
    return replace(
        laptop(),
        preset="taressfl-pretrain",
        clients=1,
        batch_size=128,
        partition="iid",
        bottleneck="C4S2",
        aux_dataset="cifar100",
        data_proportion=0.0,
        ressfl_lambda=2.0,
        epochs=1,
        local_epochs=0.1,
    )


def paper_supervised() -> RunConfig:
    """The paper's setting trained on labels: the accuracy to aim for."""
    return replace(paper(), preset="paper-supervised", supervised=True)


def paper_random_init() -> RunConfig:
    """The paper's setting untrained, one round at rate 0: the accuracy of random weights."""
    return replace(paper(), preset="paper-random-init", lr=0.0, client_lr=0.0, rounds=1, syncs_per_round=1)


PRESETS: dict[str, Callable[[], RunConfig]] = {
    "paper": paper,
    "paper-v1": paper_v1,
    "paper-small": paper_small,
    "paper-large": paper_large,
    "taressfl-pretrain": taressfl_pretrain,
    "paper-supervised": paper_supervised,
    "paper-random-init": paper_random_init,
    "laptop": laptop,
    "coffee": coffee,
    "evening": evening,
    "central": central,
    "fl-moco": fl_moco,
    "fl-byol": fl_byol,
    "fedema": fedema,
    "supervised": supervised,
    "random-init": random_init,
}
"""Functions that return the presets, by name, in the order of ``run.py --list``."""


def named(name: str, device: str = "auto", *, cpu: str = "coffee") -> tuple[RunConfig, str]:
    """Return the config of a preset, and why it was chosen.

    Args:
        name: a name in `PRESETS`, or "auto" for the preset that suits `device`.
        device: "auto", "cpu", "cuda" or "cuda:N".
        cpu: name of the preset that suits a CPU.

    Raises:
        ValueError: the preset is not known.
    """
    if name == "auto":
        name, why = automatic(device, cpu=cpu)
        return PRESETS[name](), why
    if name not in PRESETS:
        raise unknown("preset", name, ("auto", *PRESETS))
    return PRESETS[name](), "--preset"


def automatic(device: str = "auto", *, cpu: str = "coffee") -> tuple[str, str]:
    """Return the name of the preset that suits a device of this machine, and why it does; on a CPU, it is `cpu`."""
    if device == "cpu":
        return cpu, "--preset auto: --device cpu"
    import torch  # noqa: PLC0415  (takes seconds)

    if torch.cuda.is_available():
        return "paper", f"--preset auto: CUDA device {torch.cuda.get_device_name()}"
    return cpu, "--preset auto: no CUDA device"
