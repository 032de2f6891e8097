"""The live view of a run, and plain lines where there is no terminal.

Both show only what the run directory holds, too: the config, the records of ``metrics.jsonl`` and the status of
``live.json``. So the same code can watch a run from another process.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from types import TracebackType
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from simsfl.algorithm.wire import DeviceStatus
from simsfl.runs.history import History
from simsfl.runs.metrics import Status
from simsfl.system.clock import PHASES
from simsfl.system.console import Output
from simsfl.system.messages import visible
from simsfl.ui.fleet import GroupBars, spent
from simsfl.ui.spread import collapse, spreads
from simsfl.ui.status import filling, time_left
from simsfl.ui.text import bytes_text, number, time_text

REFRESH_SECONDS = 1.0
"""Least seconds between two drawings of the live view."""
_BLOCKS, _ASCII_BLOCKS = "▁▂▃▄▅▆▇█", ".:-=+*%#"
_BINS = 6
"""Most rows of the participation histogram: as many as there are phases."""
_DEVICES = 6
"""Most real devices that are shown."""
_PRESENCE = {"at work": "green", "here": "cyan", "away": "red"}
"""Colours of a real device's presence, in the order in which devices are shown."""


class _Sparkline:
    """A row of blocks as wide as its place, with the latest value at the right.

    Args:
        values: from the oldest to the latest.
        style: colour of the blocks.
    """

    def __init__(self, values: Sequence[float], style: str):
        self.values, self.style = values, style

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        values = _squeeze(self.values, options.max_width)
        if not values:
            return
        blocks = _ASCII_BLOCKS if options.ascii_only else _BLOCKS
        low, high = min(values), max(values)
        scale = (len(blocks) - 1) / (high - low) if high > low else 0.0
        yield Text("".join(blocks[round((v - low) * scale)] for v in values), style=self.style)


def _squeeze(values: Sequence[float], width: int) -> list[float]:
    """Return at most `width` values, each the mean of a stretch of `values`: [1.5, 3.5] for [1, 2, 3, 4] and 2."""
    count = len(values)
    if count <= width:
        return list(values)
    edges = [i * count // width for i in range(width + 1)]
    return [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]


def histogram(counts: Sequence[int]) -> list[tuple[str, int]]:
    """Return labels and numbers of clients for at most `_BINS` ranges of rounds taken part in.

    Args:
        counts: numbers of clients that took part in 0, 1, 2, ... rounds.
    """
    width = -(-len(counts) // _BINS)
    bins = []
    for low in range(0, len(counts), width):
        high = min(low + width, len(counts)) - 1
        bins.append((str(low) if low == high else f"{low}-{high}", sum(counts[low : high + 1])))
    return bins


def render(config: Mapping[str, Any], history: History, status: Status | None) -> RenderableType:
    """Return the whole view, of at most 22 lines, for any width from 80 columns; groups of a fleet fill the terminal.

    Args:
        config: fields of the run's `RunConfig`.
        history: the records so far.
        status: the latest status; None before there is one.
    """
    activity = f"{status.activity}{', ' * bool(filling(status))}{filling(status)}" if status else "starting"
    parts = [_header(config, activity), _curves(config, history)]
    if status:
        parts.insert(1, _progress(status))
        parts.append(_figures(history, status))
        if status.devices:
            parts.append(_devices(status.devices))
        else:
            lower = Table.grid(expand=True, padding=(0, 1))
            lower.add_column(ratio=1)
            lower.add_column(ratio=1)
            lower.add_row(_phases(status.phase_seconds), _participation(status.participation))
            parts.append(lower)
    return _WithFleet(parts, history.latest["fleet"]["groups"]) if status and history.fleet else Group(*parts)


class _WithFleet:
    """A view with the groups of a fleet above its last part, as many as there is room for beside the rest.

    Args:
        parts: the view.
        groups: how each group fared in the latest round, by its name.
    """

    def __init__(self, parts: Sequence[RenderableType], groups: Mapping[str, Mapping[str, Any]]):
        self.parts, self.groups = parts, groups

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        *upper, lower = self.parts
        lines = len(console.render_lines(Group(*self.parts), options.update(height=None), pad=False))
        yield from upper
        yield GroupBars(self.groups, max(1, options.max_height - 1 - lines))  # the cursor has the last line
        yield lower


def _header(config: Mapping[str, Any], activity: str) -> Panel:
    """Return a panel of the run's settings and its current activity."""
    text = Text.assemble(
        (config["preset"], "bold cyan"),
        "" if config["method"] in ("mocosfl", config["preset"]) else f"  {config['method']}",
        "".join(f"  {config[name]}" for name in ("objective", "defence") if config.get(name)),
        f"  {config['dataset'].rsplit('/', 1)[-1]}  {config['device']}  ",
        (f"{config['clients']:,} clients", "bold"),
        f", cohort {config['cohort']:,}  {config['engine']}  {config['precision']}",
    )
    titles = {"title": "simsfl", "title_align": "left", "subtitle": Text(visible(activity)), "subtitle_align": "right"}
    return Panel(text, border_style="cyan", **titles)


def _progress(status: Status) -> Table:
    """Return progress bars of the rounds and of the current round's steps, with the time left."""
    left = time_left(status)
    between = status.step == 0 and status.round > 0  # the last round's steps are all done
    step = status.steps if between else status.step
    step_left = None if status.step_seconds is None else status.step_seconds * (status.steps - step)
    table = Table.grid(expand=True, padding=(0, 1))
    table.add_column(width=8)
    table.add_column(ratio=1)
    table.add_column(justify="right", width=13)
    table.add_column(justify="right", width=14)
    for name, at, total, eta in (
        ("rounds", status.round, status.rounds, left),
        ("steps", step, status.steps, step_left),
    ):
        table.add_row(
            name,
            ProgressBar(total=total, completed=at),
            f"{at:,}/{total:,}",
            "" if eta is None else f"{time_text(eta)} left",
        )
    return table


def _curves(config: Mapping[str, Any], history: History) -> Table:
    """Return rows of the loss, contrastive and kNN accuracy, spread and attackers' SSIM, each with a sparkline."""
    knn = [record["knn_top1"] for record in history.evaluations]
    pixels = history.untrained("pixel_knn_top1")
    table = Table.grid(expand=True, padding=(0, 1))
    table.add_column(width=8)
    table.add_column(justify="right", width=8)
    table.add_column(width=26, no_wrap=True)
    table.add_column(ratio=1, no_wrap=True)
    loss = [record["loss"] for record in history.rounds]
    top1 = [record["contrast_top1"] for record in history.rounds]
    against = f", pixels {pixels:.1f}" if pixels is not None else ""
    ssim = [record["attackers_ssim"] for record in history.rounds if record["attackers_ssim"] is not None]
    best = "untrained" if history.best_knn is None else f"best {history.best_knn:.1f}"
    first = min(config["eval_every"] or config["rounds"], config["rounds"])
    for name, event, key, form, unit, values, note, style in (
        ("loss", "step", "loss", ".3f", "", loss, f"round {loss[-1]:.3f}" if loss else "", "yellow"),
        ("contrast", "step", "contrast_top1", ".1f", " %", top1, f"round {top1[-1]:.1f}" if top1 else "", "magenta"),
        ("kNN", "evaluation", "knn_top1", ".1f", " %", knn, best + against if knn else "", "green"),
    ):
        value, curve = number(history.value(event, key), form, unit), _Sparkline(values, style)
        if event == "evaluation" and history.best_knn is None:
            value, curve = value if values else "", Text(f"first evaluation after round {first:,}")
        table.add_row(name, value, note, curve)
    if found := spreads(config, history):
        latest, values = found[-1], [spread.percent for spread in found]
        note = Text("outputs almost the same", "red") if latest.collapsed else f"std {latest}"
        table.add_row("spread", f"{latest.percent:.1f} %", note, _Sparkline(values, "blue"))
    if ssim:
        before = number(history.value("round", "attackers_ssim_before"), ".3f")
        note = f"SSIM ({config['ssim_borders']}), was {before}"
        table.add_row("attacker", f"{ssim[-1]:.3f}", note, _Sparkline(ssim, "red"))
    return table


def _figures(history: History, status: Status) -> Table:
    """Return a table of speed, memory, traffic per client and training time, with time and energy of a fleet."""
    table = Table.grid(expand=True, padding=(0, 1))
    for _ in range(2):
        table.add_column(ratio=1)
    up, down = (history.value("round", f"bytes_{way}_per_client") for way in ("up", "down"))
    table.add_row(
        f"{number(status.client_steps_per_second, ',.0f')} clients/s  "
        f"{number(status.images_per_second, ',.0f')} images/s",
        f"peak memory {bytes_text(status.peak_memory_bytes)}",
    )
    simulated = history.value("fleet", "clock")
    table.add_row(
        f"per client  {bytes_text(up or 0)} up  {bytes_text(down or 0)} down{_saving(history)}",
        f"training {time_text(status.seconds)}" + (f"  fleet {time_text(simulated)}" if history.fleet else ""),
    )
    if history.fleet:
        table.add_row(*spent(history.fleet))
    if status.ranks:
        slowest = max(rank.step_seconds for rank in status.ranks)
        waiting = [100 * rank.waiting for rank in status.ranks]
        table.add_row(
            f"{len(status.ranks)} ranks  {1000 * slowest:,.0f} ms a step",
            f"{min(waiting):.0f} to {max(waiting):.0f} % of it in exchange",
        )
    return table


def _saving(history: History) -> str:
    """Return the bytes saved per client and the state of communication; empty where nothing is saved."""
    saved = history.value("round", "bytes_saved_per_client")
    return f"  {bytes_text(saved)} saved ({history.value('round', 'communication')})" if saved else ""


def _bars(title: str, rows: Sequence[tuple[str, float, str]]) -> Panel:
    """Return a panel of labelled horizontal bars, scaled to the longest.

    Args:
        title: title of the panel.
        rows: label, value and the value's text of each bar.
    """
    table = Table.grid(expand=True, padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column(ratio=1)
    table.add_column(justify="right", no_wrap=True)
    top = max((value for _, value, _ in rows), default=0.0) or 1.0
    for label, value, text in rows:
        table.add_row(
            label, ProgressBar(total=top, completed=value, complete_style="blue", finished_style="blue"), text
        )
    return Panel(table, title=title, title_align="left", border_style="dim")


def _phases(seconds: Mapping[str, float]) -> Panel:
    """Return bars of the share of the time that each phase took.

    Args:
        seconds: seconds by phase.
    """
    total = sum(seconds.values()) or 1.0
    usual = () if "step" in seconds else set(PHASES) - {"capture", "step", "attackers"}
    names = [name for name in PHASES if name in seconds or name in usual]
    rows = [(name, seconds.get(name, 0.0), f"{100 * seconds.get(name, 0.0) / total:.0f} %") for name in names]
    return _bars("time per phase", rows)


def _participation(counts: Sequence[int]) -> Panel:
    """Return bars of how many clients took part in how many rounds.

    Args:
        counts: numbers of clients that took part in 0, 1, 2, ... rounds.
    """
    rows = [
        (f"{label} round{'' if label == '1' else 's'}", float(count), f"{count:,}")
        for label, count in histogram(counts)
    ]
    return _bars("clients by rounds taken part in", rows)


def _devices(statuses: Sequence[DeviceStatus]) -> Panel:
    """Return a panel of presence, pace, bytes and times of at most `_DEVICES` real devices, those at work first."""
    table = Table.grid(expand=True, padding=(0, 1))
    for title in ("client", "", "steps", "a second", "up", "down", "compute", "network"):
        table.add_column(title, justify="left" if title in ("client", "") else "right", no_wrap=True)
    table.add_row(*(Text(str(column.header), style="dim") for column in table.columns))
    ordered = sorted(statuses, key=lambda status: list(_PRESENCE).index(status.presence))
    for status in ordered[:_DEVICES]:
        pace = status.step_seconds and 1 / status.step_seconds
        table.add_row(
            f"{status.client:,}",
            Text(status.presence, style=_PRESENCE[status.presence]),
            f"{status.steps:,}",
            number(pace, ".1f"),
            bytes_text(status.bytes_up),
            bytes_text(status.bytes_down),
            _milliseconds(status.compute_seconds),
            _milliseconds(status.network_seconds),
        )
    there = sum(status.presence != "away" for status in statuses)
    left_out = f", {len(statuses) - _DEVICES:,} not shown" if len(statuses) > _DEVICES else ""
    title = f"real devices: {there:,} of {len(statuses):,} there{left_out}"
    return Panel(table, title=title, title_align="left", border_style="dim")


def _milliseconds(seconds: float | None) -> str:
    """Format seconds as milliseconds; return a dash for None."""
    return number(seconds and 1000 * seconds, ".1f", " ms")


class LiveView:
    """The live view on a terminal's second screen, which prints its last picture when it ends.

    Args:
        config: fields of the run's `RunConfig`.
        history: the records, which the caller adds to.
        console: the terminal.
    """

    def __init__(self, config: Mapping[str, Any], history: History, console: Output):
        self.config, self.history, self.console = config, history, console
        self.live = Live(console=console, auto_refresh=False, screen=True)
        self.picture: RenderableType | None = None
        self.drawn = 0.0

    def __enter__(self) -> LiveView:
        self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.live.stop()
        if self.picture:
            self.console.print(self.picture)
        if found := collapse(spreads(self.config, self.history)):
            self.console.say((found[1], "yellow"))

    def due(self) -> bool:
        """Return whether `REFRESH_SECONDS` have passed since the last drawing."""
        return time.monotonic() - self.drawn >= REFRESH_SECONDS

    def show(self, status: Status | None) -> None:
        """Draw the view."""
        self.drawn = time.monotonic()
        self.picture = render(self.config, self.history, status)
        self.live.update(self.picture, refresh=True)


class PlainView:
    """A view that prints one line per round.

    Args:
        config: fields of the run's `RunConfig`.
        history: the records, which the caller adds to; rounds that it holds already are not printed.
        console: where to print.
    """

    def __init__(self, config: Mapping[str, Any], history: History, console: Output):
        self.config, self.history, self.console = config, history, console
        self.printed = len(history.rounds)

    def __enter__(self) -> PlainView:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def due(self) -> bool:
        """Return whether a round has ended since the last line."""
        return len(self.history.rounds) > self.printed

    def show(self, status: Status | None) -> None:
        """Print the rounds that are not printed yet."""
        if status is None:
            return
        found = spreads(self.config, self.history)
        knn = {record["round"]: f"  kNN {record['knn_top1']:.2f} %" for record in self.history.evaluations}
        knn |= {spread.round: f"{knn[spread.round]}  spread {spread.percent:.1f} %" for spread in found}
        clock = {record["round"]: f"  fleet {time_text(record['clock'])}" for record in self.history.fleet}
        collapsed_in, warning = collapse(found) or (None, "")
        left, now = time_left(status), filling(status)
        for record in self.history.rounds[self.printed :]:
            self.console.say(
                f"round {record['round']}/{self.config['rounds']}  loss {record['loss']:.4f}  "
                f"contrast {record['contrast_top1']:.2f} %{knn.get(record['round'], '')}"
                f"{clock.get(record['round'], '')}  "
                f"{now + '  ' if now and record['round'] == status.round else ''}"
                f"{'' if record['communication'] == 'A' else 'state ' + record['communication'] + '  '}"
                f"{number(status.client_steps_per_second, ',.0f')} clients/s  "
                f"{'-' if left is None else time_text(left)} left"
            )
            if record["round"] == collapsed_in:
                self.console.say((warning, "yellow"))
        self.printed = len(self.history.rounds)
