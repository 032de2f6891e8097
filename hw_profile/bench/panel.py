"""Progress of a measurement: a live panel on a terminal, lines elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from simsfl.hw_profile.runtimes.client_work import PHASES
from simsfl.system.console import Output
from simsfl.system.messages import fixed, visible

_LEVELS = "▁▂▃▄▅▆▇█"
"""Blocks of a sparkline, from low to high."""
BAR = 30
"""Width of bars and sparklines, in characters."""
_STAGES = {
    "starting": "loading the runtime and the trace",
    "verifying": "doing all steps once, and comparing the results with the trace",
    "idle": "measuring the idle machine",
    "working": "timing the work",
    "memory and peak": "measuring the memory of tensors, and the peak of the machine",
}
"""Descriptions of the stages of a measurement, by the names that `measuring` gives them."""


def _sparkline(values: Sequence[float]) -> str:
    """Return a row of blocks for the values; the scale includes 0, and begins there unless a value is negative."""
    low, high = min(0.0, *values), max(0.0, *values)
    step = (high - low) / len(_LEVELS) or 1.0
    return "".join(_LEVELS[min(int((value - low) / step), len(_LEVELS) - 1)] for value in values)


def power_text(watts: Sequence[float], source: str) -> str:
    """Return the latest reading, a sparkline of the latest readings, and their source."""
    doubt = "; are VIN+ and VIN- swapped?" if min(watts) < 0 else ""
    return f"{fixed(watts[-1], 2):>6} W  {_sparkline(watts[-BAR:])}  {source}{doubt}"


def phase_bars(latest: Mapping[str, float]) -> Table:
    """Return a table with a bar for each phase of the latest step, from its seconds by phase."""
    table, longest = Table.grid(padding=(0, 2)), max(latest.values())
    table.add_column(min_width=12)
    table.add_column(justify="right", min_width=9)
    table.add_column()
    for phase in PHASES:
        if phase in latest:
            bar = "█" * max(1, round(BAR * latest[phase] / longest))
            table.add_row(phase, f"{1000 * latest[phase]:.2f} ms", Text(bar, style="cyan"))
    return table


class PlainView:
    """Prints a line for each stage."""

    def __init__(self, console: Output, title: str, seconds: float, meter: str):
        self._console, self._stage = console, ""
        console.say(title)

    def __enter__(self) -> PlainView:
        return self

    def __exit__(self, *error: object) -> None:
        """Do nothing, since nothing has to be undone."""

    def show(self, stage: str, **what: Any) -> None:
        """Print the stage if it is a new one."""
        if stage != self._stage:
            self._stage = stage
            self._console.say(f"{_STAGES[stage]} ...")


class LiveView:
    """A panel that is redrawn eight times a second."""

    def __init__(self, console: Output, title: str, seconds: float, meter: str):
        self._title, self._seconds, self._meter = Text(visible(title)), seconds, meter
        self._stage, self._what = "starting", {}
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=8, screen=True)

    def __enter__(self) -> LiveView:
        self._live.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._live.__exit__(kind, error, at)

    def show(self, stage: str, **what: Any) -> None:
        """Set the stage and its progress, which the panel shows when it is redrawn."""
        self._stage, self._what = stage, what

    def _render(self) -> Panel:
        what = self._what
        rows = Table.grid(padding=(0, 2))
        rows.add_column(min_width=12, style="bold")
        rows.add_column()
        of = {"verifying": what.get("of"), "idle": what.get("of"), "working": self._seconds}.get(self._stage)
        done = what.get("done" if self._stage == "verifying" else "seconds", 0)
        bar = ProgressBar(total=of, completed=done, width=BAR) if of else Text("")
        rows.add_row("stage", _STAGES[self._stage])
        rows.add_row("", bar)
        if "steps" in what:
            rows.add_row("steps", f"{what['steps']:,}  ({what['steps'] / max(what['seconds'], 1e-9):,.0f} a second)")
        if what.get("watts"):
            rows.add_row("power", power_text(what["watts"], self._meter))
        if what.get("temperature") is not None:
            rows.add_row("temperature", f"{what['temperature']:.1f} °C")
        parts: list[Any] = [rows]
        if "latest" in what:
            parts += [Text(""), phase_bars(what["latest"])]
        return Panel(Group(*parts), title=self._title, padding=(1, 2))
