"""The table of a fleet's groups: their devices, and what a step takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from simsfl.fleet.profiles import PUBLISHED, SCALED
from simsfl.system.messages import visible

_SCALED = (
    "scaled: computed from what was measured of other work. In brackets, the largest error that this makes between the "
    "device's own measurements, each scaled from the others. It is no bound: the work of this run may be further off."
)
"""What is said below a table that has scaled times."""


def fleet_table(groups: Sequence[Mapping[str, Any]]) -> Table:
    """Return the table of some groups, given what `simsfl.cli.fleet.story.described` says of each."""
    table = Table(box=SIMPLE, title="fleet")
    for column in ("group", "clients", "device", "ms a step", "from", "Mbit/s up", "down", "watts"):
        justify = "left" if column in ("group", "device", "from") else "right"
        table.add_column(column, justify=justify, min_width=len(PUBLISHED) if column == "from" else None)
    for own in groups:
        watts = own["idle_watts"], own["busy_watts"]
        power = "-" if None in watts else "{:g} to {:g}".format(*watts)
        table.add_row(
            visible(own["name"]),
            f"{own['clients']:,}",
            visible(own["device"]),
            f"{1000 * own['step_seconds']:,.1f}",
            _origin(own),
            *("-" if own[name] is None else f"{own[name]:,.1f}" for name in ("up_mbit_s", "down_mbit_s")),
            power,
        )
    if any(own["times"] == SCALED for own in groups):
        table.caption = _SCALED
    return table


def _origin(group: Mapping[str, Any]) -> str:
    """Return where the time of a group's step comes from; see `_SCALED`."""
    known, error = group["times"], group["scaling_error"]
    return known if known != SCALED or error is None else f"scaled ({100 * error:.0f} %)"
