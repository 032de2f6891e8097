"""Flags that ``sweep.py`` and ``table.py`` have in common, and checks of what they are given."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Sequence

from simsfl.config import RunConfig
from simsfl.ui.arguments import path, value_of, whole_number


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
        default=1,
        metavar="N",
        help="runs side by side, which share the cores (default: 1)",
    )
    group.add_argument("--yes", action="store_true", help="do not ask before more than 10 minutes of work")
    group.add_argument(
        "--out", type=path, metavar="DIR", help=f"directory of the results, new or to continue (default: {where})"
    )


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
