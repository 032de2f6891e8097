"""The tables that ``bench.py`` prints: phases of a step by engine, and figures by number of clients or of ranks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from rich.table import Table

from simsfl.system.clock import PHASES
from simsfl.system.messages import count_text

_ORDER = [*({"step": "replay"}.get(phase, phase) for phase in PHASES), "the rest", "client phase", "step"]
"""Order of the rows of a table; every phase of every engine is among them."""
_PAPER_STEPS = 100_000
"""Steps of 200 epochs over 50,000 images, 50 on each of 1,000 clients, with 100 images in a step."""

_Json = dict[str, Any]


def tables(report: _Json) -> Iterator[Table]:
    """Yield tables of the figures in a report, as ``--json`` writes it."""
    machine = report["machine"]
    threads = count_text(machine["threads"], "thread")
    where = f"{machine['device']}, {machine['processor']}, {threads}, torch {machine['torch']}"
    config = report["config"]
    if "engines" in report:
        yield _engine_table(
            report, f"{config['arch']}, cut layer {config['cut_layer']}, {config['clients']:,} clients; {where}"
        )
    if "scale" in report:
        yield _scale_table(report["scale"], f"{config['arch']}, state on {config['client_state']}; {where}")
    if "ranks" in report:
        what = f"{config['arch']}, {config['clients']:,} clients"
        yield _ranks_table(report["ranks"], f"{what}; {machine['device']}, torch {machine['torch']}")
    if "start" in report:
        yield _start_table(report["start"], f"preset {config['preset']}; {where}")


def _engine_table(report: _Json, title: str) -> Table:
    """Return a table of the phases of a step, with a row for each phase and a column for each engine."""
    results = report["engines"]
    phases = {phase for run in results.values() for phase in run["seconds"]}
    caption = "times: median (quartiles); the ratios are of medians"
    if "the rest" in phases:  # which earlier versions did not write
        collected = ", for loop mostly the garbage collection that the published program does after every step"
        caption += f"; the rest: time of a step outside its phases{collected * ('loop' in results)}"
    table = Table(title=title, caption=caption)
    table.add_column("")
    for name in results:
        table.add_column(name, justify="right")
    for phase in sorted(phases, key=_ORDER.index):
        table.add_row(f"{phase} [ms]", *(_spread(run["seconds"].get(phase)) for run in results.values()))
    if "loop" in results:
        for phase in ("client phase", "step"):
            base = results["loop"]["seconds"][phase]["median"]
            own = [run["seconds"].get(phase) for run in results.values()]
            ratios = [f"{base / seconds['median']:.2f}" if seconds else "-" for seconds in own]
            table.add_row(f"{phase}, times as fast as loop", *ratios)
    table.add_row("peak memory [MB]", *(f"{run['peak_bytes'] / 1e6:,.0f}" for run in results.values()))
    work = sum(report["peaks"]["step_flops"].values())
    rates = {name: work / run["seconds"]["step"]["median"] for name, run in results.items()}
    table.add_row("speed [GFLOP/s]", *(f"{rate / 1e9:,.0f}" for rate in rates.values()))
    peaks = report["peaks"]
    shares = (rate / peaks[f"{name.partition('+')[2] or 'fp32'}_flops"] for name, rate in rates.items())
    table.add_row("share of a matrix product's [%]", *(f"{100 * share:.0f}" for share in shares))
    hours = (_PAPER_STEPS * run["seconds"]["step"]["median"] / 3600 for run in results.values())
    table.add_row(f"{_PAPER_STEPS:,} such steps [h]", *(f"{hour:,.1f}" for hour in hours))
    return table


def _scale_table(results: _Json, title: str) -> Table:
    """Return a table of step time and memory, with a row for each number of clients."""
    columns = (
        "clients",
        "step [ms]",
        "quartiles [ms]",
        "start [s]",
        "memory [MB]",
        "peak [MB]",
        "above the data [MB]",
        "a client [bytes]",
    )
    table = _table_of(columns, title, "resident memory, once every client has a state of its own")
    for clients, run in results.items():
        table.add_row(
            f"{int(clients):,}",
            f"{1000 * run['step']['median']:,.1f}",
            f"{1000 * run['step']['q1']:,.1f} to {1000 * run['step']['q3']:,.1f}",
            f"{run['start_seconds']:.1f}",
            f"{run['resident_bytes'] / 1e6:,.0f}",
            f"{run['peak_bytes'] / 1e6:,.0f}",
            f"{(run['resident_bytes'] - run['data_bytes']) / 1e6:,.0f}",
            f"{run['bytes_per_client']:,.0f}",
        )
    return table


def _ranks_table(results: _Json, title: str) -> Table:
    """Return a table of step time, exchange and memory, with a row for each number of ranks."""
    times = "median (quartiles) of the slowest rank, exchange included"
    caption = f"{times}; bytes that each sends; clients' state and memory of the rank with most"
    columns = (
        "ranks",
        "step [ms]",
        "exchange [ms]",
        "faster",
        "sent [MB]",
        "state [MB]",
        "peak [MB]",
    )
    table = _table_of(columns, title, caption)
    first = next(iter(results.values()))["step"]["median"]
    for size, run in results.items():
        table.add_row(
            size,
            _spread(run["step"]),
            _spread(run["told"]),
            f"{first / run['step']['median']:.2f}",
            f"{run['sent_bytes'] / 1e6:,.2f}",
            f"{run['kept_bytes'] / 1e6:,.0f}",
            f"{run['peak_bytes'] / 1e6:,.0f}",
        )
    return table


def _start_table(results: _Json, title: str) -> Table:
    """Return a table of the time to the first step, with a row for each number of clients."""
    caption = "median of three processes; data in the cache, or shapes where clients are more than its images"
    columns = ("clients", "import torch [s]", "ready to train [s]", "first step [s]", "beyond import torch [s]")
    table = _table_of(columns, title, caption)
    for clients, run in results.items():
        seconds = (run["import_torch"], run["ready"], run["first_step"], run["ready"] + run["first_step"])
        table.add_row(f"{int(clients):,}", *(f"{value:.2f}" for value in seconds))
    return table


def _table_of(columns: Iterable[str], title: str, caption: str) -> Table:
    """Return a table of numbers, without rows."""
    table = Table(title=title, caption=caption)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _spread(seconds: _Json | None) -> str:
    """Return median and quartiles in ms, such as ``2.5 (2.4-2.7)``; a dash for None."""
    if seconds is None:
        return "-"
    low, middle, high = (1000 * seconds[key] for key in ("q1", "median", "q3"))
    digits = 1 if middle < 100 else 0
    return f"{middle:,.{digits}f} ({low:,.{digits}f}-{high:,.{digits}f})"
