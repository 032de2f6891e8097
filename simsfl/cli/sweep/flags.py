"""Flags that ``sweep.py`` and ``table.py`` have in common, and checks of what they are given."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Sequence

from simsfl.config import RunConfig
from simsfl.ui.arguments import one_of, path, value_of, whole_number

_LAUNCHERS = ("local", "submitit")
"""Names of launchers (`simsfl.cli.sweep.launchers`)."""


def add_sweep_flags(group: argparse._ArgumentGroup, where: str) -> None:
    """Add the flags that say with which seeds, how long and into which directory settings are run.

    Args:
        group: group of flags that they are added to.
        where: the directory by default, as text.
    """
    group.add_argument("--seeds", default="0", metavar="N,N", help="seeds; each setting is run with each (default: 0)")
    group.add_argument(
        "--dry-run",
        action="store_true",
        help="print commands, and on stderr steps and times; train nothing, but load the data sets",
    )
    group.add_argument(
        "--budget",
        type=value_of(float, "minutes"),
        metavar="MINUTES",
        help="shorten the runs so that all fit in this time",
    )
    group.add_argument(
        "--jobs",
        type=whole_number,
        metavar="N",
        help="runs side by side, which share the cores (default: 1); or jobs of a cluster at a time (default: 100)",
    )
    group.add_argument("--devices", metavar="NAME,NAME", help="runs side by side, each on one of these: cuda:0,cuda:1")
    group.add_argument(
        "--launcher",
        type=one_of(_LAUNCHERS),
        default="local",
        metavar="{" + ",".join(_LAUNCHERS) + "}",
        help="where runs go: this machine, or jobs of a Slurm cluster (pip install simsfl[sweep]) (default: local)",
    )
    group.add_argument(
        "--job",
        type=_setting,
        action="append",
        metavar="NAME=VALUE",
        help="setting of a cluster's job, such as slurm_partition=gpu, timeout_min=240 or gpus_per_node=1; repeatable",
    )
    group.add_argument("--yes", action="store_true", help="do not ask before more than 10 minutes of work")
    group.add_argument(
        "--out", type=path, metavar="DIR", help=f"directory of the results, new or to continue (default: {where})"
    )


def _setting(text: str) -> tuple[str, int | str]:
    """Return name and value of a setting ``NAME=VALUE``."""
    name, equals, value = text.partition("=")
    if not (name.isidentifier() and equals and value):
        raise argparse.ArgumentTypeError(f"{text!r} is no setting; allowed: NAME=VALUE, such as timeout_min=240")
    return name, int(value) if value.isdecimal() else value


def check_budget(minutes: float | None) -> None:
    """Raise a ValueError unless a budget is a time, or None."""
    if minutes is not None and not 0 < minutes < float("inf"):
        raise ValueError(f"budget: {minutes:g} is no time; allowed: minutes, more than 0")


def check_effect(configs: Sequence[RunConfig], flags: Collection[str]) -> None:
    """Raise a ValueError if a flag has no effect in any of the cells."""
    idle = [config.without_effect(flags) for config in configs]
    for flag in flags:
        if all(flag in problems for problems in idle):
            raise ValueError(idle[0][flag])
