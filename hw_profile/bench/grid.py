"""A device profile: a client's work at several cut layers, batch sizes and precisions, each measured several times."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from rich.box import SIMPLE
from rich.progress import TaskProgressColumn, TimeRemainingColumn
from rich.table import Table

from simsfl.fleet.profile_files import FORMAT, network_of
from simsfl.fleet.profiles import MEASURED
from simsfl.hw_profile.bench.findings import duration
from simsfl.hw_profile.bench.flags import POINT_SECONDS, REPEATS, grid_of, settings_of
from simsfl.hw_profile.bench.measuring import IDLE_SECONDS, standard_trace
from simsfl.hw_profile.bench.replay import difference_of, job_of, opened, replayed
from simsfl.hw_profile.meters import Log, Meter
from simsfl.hw_profile.meters.board import Machine
from simsfl.runs.client_trace import Trace
from simsfl.system.console import Output
from simsfl.system.messages import blaming, count_text
from simsfl.system.progress import bar

_Point = tuple[int, int, str]
"""Cut layer, images of a batch, and precision."""


def measured_profile(console: Output, arguments: Any, meter: Meter | Log | None, machine: Machine) -> dict[str, Any]:
    """Measure all points, in turn as often as asked for, and return the content of the profile's file.

    Points take turns, so that what changes meanwhile, such as the temperature, meets all of them.

    Args:
        console: where progress is shown.
        arguments: the flags.
        meter: what power is read from.
        machine: access to the system.

    Raises:
        ValueError: a point cannot be measured.
        RuntimeError: a measured process failed, or its results differ from the trace's.
    """
    grid, repeats = grid_of(arguments), arguments.repeats or REPEATS
    points = list(product(grid["cuts"], grid["batches"], grid["dtypes"]))
    seconds = arguments.seconds or POINT_SECONDS
    with tempfile.TemporaryDirectory() as scratch:
        begin, traces = time.monotonic(), _traces(console, arguments, points, Path(scratch))
        started = (time.monotonic() - begin) / len(traces)  # about what the start of a measured process takes, too
        each = started + seconds + (0 if arguments.meter == "none" else 2 * IDLE_SECONDS)
        what = f"{count_text(len(points), 'point')}, {count_text(repeats, 'time')} each"
        console.say(f"{what}: about {duration(each * len(points) * repeats)}")
        results: dict[_Point, list[dict[str, Any]]] = {point: [] for point in points}
        with bar(TaskProgressColumn(), TimeRemainingColumn()) as progress:
            task = progress.add_task("measuring", total=len(points) * repeats)
            for _, point in product(range(repeats), points):
                progress.update(task, description=_named(point))
                trace = traces[point[:2]]
                job = job_of(arguments, trace, machine, seconds, point[2])
                result = replayed(trace, job, arguments, meter, machine, lambda stage, **what: None)
                if apart := difference_of(result):
                    raise RuntimeError(f"{_named(point)}: {apart}")
                results[point].append(result)
                progress.advance(task)
    return _profile(results, seconds)


def _traces(console: Output, arguments: Any, points: Sequence[_Point], folder: Path) -> dict[tuple[int, int], Trace]:
    """Return the standard traces of all points, by cut layer and batch size, written into a folder."""
    traces = {}
    with console.status("writing the standard traces"):
        for cut, batch in dict.fromkeys(point[:2] for point in points):
            file = folder / f"{cut}-{batch}.trace"
            with blaming("cuts", for_="cut_layer"), blaming("batches", for_="batch_size"):
                standard_trace(file, settings_of(arguments, cut, batch))
            traces[cut, batch] = opened(file)
    return traces


def _named(point: _Point) -> str:
    """Return a point's name for people."""
    cut, batch, dtype = point
    return f"cut layer {cut}, batch {batch}, {dtype}"


def _profile(results: Mapping[_Point, Sequence[Mapping[str, Any]]], seconds: float) -> dict[str, Any]:
    """Return the content of a profile's file, given the results of each point, one for each time."""
    every = [result for own in results.values() for result in own]
    first, repeats = every[0], len(next(iter(results.values())))
    metered = [result["energy"] for result in every if result["energy"]]
    return {
        "profile": FORMAT,
        "source": MEASURED,
        "device": first["board"]["model"],
        "runtime": first["runtime"],
        "threads": first["threads"],
        "compile": first["compile"],
        "date": time.strftime("%Y-%m-%d"),
        "how": f"pi_bench.py: {count_text(len(results), 'point')} in turn, {count_text(repeats, 'time')} each, "
        f"{seconds:g} s of work every time; seconds are medians over the steps, and of these the median, the lowest "
        "and the highest over the times",
        "meter": metered[0]["label"] if metered else first["energy_note"],
        "energy_failed": any(result["energy_failed"] for result in every),
        "versions": first["versions"],
        "board": first["board"],
        "points": [_measured_point(own) for own in results.values()],
    }


def _measured_point(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a point of a profile, given its results."""
    trace, phases = results[0]["trace"], results[0]["latency"]
    power = [result["energy"] for result in results if result["energy"] and not result["energy"]["below_zero"]]
    idle = [(own["idle_before"] + own["idle_after"]) / 2 for own in power]
    return {
        "network": network_of(trace),
        "batch_size": trace["batch_size"],
        "dtype": results[0]["dtype"],
        "steps": sum(result["steps"] for result in results),
        "seconds": {phase: _spread([result["latency"][phase]["median"] for result in results]) for phase in phases},
        "idle_watts": median(idle) if idle else None,
        "busy_watts": median(own["mean_watts"] for own in power) if power else None,
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    """Return the median, the lowest and the highest of some values."""
    return {"median": median(values), "lowest": min(values), "highest": max(values)}


def points_table(profile: Mapping[str, Any]) -> Table:
    """Return a table with a row for each point of a profile: the time of its step, and the energy."""
    table = Table(title=f"{profile['device']}, {profile['runtime']}", caption=profile["meter"], box=SIMPLE)
    for column in ("cut layer", "batch", "precision", "ms a step", "lowest to highest", "averaging", "mJ a step"):
        table.add_column(column, justify="right")
    for own in profile["points"]:
        step, watts = own["seconds"]["step"], own["busy_watts"]
        table.add_row(
            str(own["network"]["cut_layer"]),
            str(own["batch_size"]),
            own["dtype"],
            f"{1000 * step['median']:.2f}",
            f"{1000 * step['lowest']:.2f} to {1000 * step['highest']:.2f}",
            f"{1000 * own['seconds']['sync']['median']:.3f}",
            "-" if watts is None else f"{1000 * watts * step['median']:.1f}",
        )
    return table
