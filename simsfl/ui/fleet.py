"""A fleet of devices in the live view: what it has spent, and how its groups fared in the latest round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from simsfl.runs.fleet_totals import phase_seconds, watt_hours
from simsfl.system.messages import shortened, visible

_FARED = {"came": ("█", "#", "green"), "late": ("▒", "=", "yellow"), "away": ("░", ".", "red")}
"""Characters of the part of a bar that shows how many clients came, were late or away, and its colour; the second
character is for terminals that know ASCII only."""
WAITS = {
    "compute": ("computing", "#4477aa"),
    "up": ("sending", "#ee6677"),
    "down": ("receiving", "#228833"),
    "server": ("server", "#ccbb44"),
    "away": ("absence", "#bbbbbb"),
}
"""What everyone waits for in each of `simsfl.fleet.clock.PHASES`, and its colour in figures."""
HATCHES = {"measured": "", "scaled": "///", "published": "..."}
"""How bars of computing are hatched in figures, by how the times of devices are known."""
_NAME = 14
"""Most characters of a group's name."""


TIME_UNITS = (("s", 3600.0), ("min", 60.0), ("h", 1.0))
"""Units of a time, and how many of each are an hour."""
ENERGY_UNITS = (("mWh", 1e3), ("Wh", 1.0), ("kWh", 1e-3))
"""Units of an energy, and how many of each are a Wh."""


def unit_for(most: float, units: Sequence[tuple[str, float]]) -> tuple[str, float]:
    """Return the largest unit of which the largest of some values is one or more, else the smallest, with its factor.

    >>> unit_for(0.02, TIME_UNITS), unit_for(1e-5, TIME_UNITS)
    (('min', 60.0), ('s', 3600.0))
    """
    return next((own for own in reversed(units) if most * own[1] >= 1), units[0])


def energy_text(wh: float | None) -> str:
    """Format an energy in Wh, mWh or kWh with three digits; return a dash for None.

    >>> energy_text(0.01234), energy_text(999.9), energy_text(12_345.0)
    ('12.3 mWh', '1,000 Wh', '12.3 kWh')
    """
    if wh is None:
        return "-"
    unit, scale = unit_for(wh or 1.0, ENERGY_UNITS)
    value = wh * scale
    return f"{value:,.{0 if value >= 99.95 else 1 if value >= 9.995 else 2}f} {unit}"


def spent(records: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Return as texts the energy that a fleet has taken, and what everyone waited for most.

    Args:
        records: the records of all rounds, one or more.
    """
    server = watt_hours(records, "server_wh")
    seconds = phase_seconds(records)
    total = sum(seconds.values()) or 1.0
    most = sorted(seconds, key=lambda name: -seconds[name])[:2]
    shares = ", ".join(f"{WAITS[name][0]} {100 * seconds[name] / total:.0f} %" for name in most)
    of_server = "" if server is None else f"  server {energy_text(server)}"
    return f"fleet  {energy_text(watt_hours(records))}{of_server}", f"waits: {shares}"


class GroupBars:
    """A row for each group: how many of those drawn came, were late or away, as a bar, and its batteries' charge.

    Args:
        groups: how each group fared, by its name; see `simsfl.runs.metrics.FleetRecord`.
        room: most rows; groups for which there is no room are one row together.
    """

    def __init__(self, groups: Mapping[str, Mapping[str, Any]], room: int):
        self.rows = list(groups.items())
        if len(self.rows) > room:
            kept = max(0, room - 1)
            others = [own for _, own in self.rows[kept:]]
            counts = {name: sum(own[name] for own in others) for name in ("drawn", "late", "away")}
            self.rows[kept:] = [(f"{len(others)} others" if kept else "all groups", counts | {"battery": None})]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = Table.grid(expand=True, padding=(0, 1))
        table.add_column(no_wrap=True)
        table.add_column(ratio=1, no_wrap=True)
        for _ in range(4):
            table.add_column(justify="right", no_wrap=True)
        for name, own in self.rows:
            counts = {"came": own["drawn"] - own["late"] - own["away"], "late": own["late"], "away": own["away"]}
            texts = (Text(f"{count:,} {what}", "" if count else "dim") for what, count in counts.items())
            battery = "" if own["battery"] is None else f"battery {100 * own['battery']:.0f} %"
            table.add_row(shortened(visible(name), _NAME), _Bar(counts), *texts, battery)
        yield table


class _Bar:
    """A bar as wide as its place, with a part for each of `_FARED`.

    Args:
        counts: the clients of each part.
    """

    def __init__(self, counts: Mapping[str, int]):
        self.counts = counts

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        total, done, at = sum(self.counts.values()), 0, 0
        bar = Text()
        for what, count in self.counts.items():
            block, plain, style = _FARED[what]
            done += count
            edge = round(options.max_width * done / total) if total else 0
            bar.append((plain if options.ascii_only else block) * (edge - at), style)
            at = edge
        yield bar
