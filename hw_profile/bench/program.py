"""Measure the work of a MocoSFL client on this machine: its time, memory and energy."""

from __future__ import annotations

import signal
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from simsfl.hw_profile.bench.findings import report, tables
from simsfl.hw_profile.bench.flags import SECONDS, check, parser, settings_of
from simsfl.hw_profile.bench.grid import measured_profile, points_table
from simsfl.hw_profile.bench.measuring import standard_trace
from simsfl.hw_profile.bench.panel import LiveView, PlainView
from simsfl.hw_profile.bench.replay import difference_of, job_of, opened, replayed, with_energy
from simsfl.hw_profile.bench.result import read_result
from simsfl.hw_profile.meters import Log, Meter, Record, choose, label
from simsfl.hw_profile.meters.board import Machine, model_of
from simsfl.system.console import Output
from simsfl.system.files import claimed
from simsfl.system.outputs import Outputs
from simsfl.system.signals import Stop
from simsfl.system.streams import print_error
from simsfl.ui.arguments import fail

_FILES = ("result.json", "report.md", "latency.svg", "memory.svg", "power.svg")
"""Names of all files that may be written into ``--out``."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, show and write; return the exit code, which is 1 where the results differ from the trace's."""
    with Stop() as stop:
        return _run(argv, stop)


def _run(argv: Sequence[str] | None, stop: Stop) -> int:
    """Do what `main` does, while `stop` catches signals."""
    try:
        arguments = parser().parse(argv)
        console = Output(arguments.dashboard)
        machine = Machine()
        check(arguments, machine)
        if arguments.add_log:
            result, outputs = _with_log(arguments, machine), Outputs(arguments.add_log, "add_log")
            outputs.adopt(_FILES)
            outputs.check(*_FILES)
            return _finish(console, arguments.add_log, result)
        meter = choose(arguments.meter, machine)
        if arguments.profile_out:
            return _profiled(console, arguments, meter, machine)
        out = arguments.out or Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-pi_bench"
        with claimed(out, *_FILES):
            result = _measured(console, arguments, meter, machine)
        return _finish(console, out, result)
    except (ValueError, OSError) as error:
        return fail(error)
    except RuntimeError as error:
        print_error(str(error))
        return 1
    except KeyboardInterrupt:
        print_error("interrupted; nothing was written")
        return 128 + (stop.received or signal.SIGINT)


def _measured(console: Output, arguments: Any, meter: Meter | Log | None, machine: Machine) -> dict[str, Any]:
    """Do the whole measurement, and return the content of ``result.json``."""
    with tempfile.TemporaryDirectory() as scratch:
        file = arguments.replay
        if file is None:
            file = Path(scratch) / "standard.trace"
            with console.status("writing the standard trace"):
                standard_trace(file, settings_of(arguments, arguments.cut_layer or 1, arguments.batch_size or 1))
        trace, seconds = opened(file), arguments.seconds or SECONDS
        job = job_of(arguments, trace, machine, seconds)
        title = f"{model_of(machine)}: cut layer {trace.about['network']['cut_layer']}, {arguments.runtime}"
        kind = LiveView if console.live else PlainView
        with kind(console, title, seconds, _metered(meter)) as view:
            result = replayed(trace, job, arguments, meter, machine, view.show)
        result["trace"]["file"] = str(arguments.replay) if arguments.replay else "standard"
    return result


def _metered(meter: Meter | Log | None) -> str:
    """Return the text that is shown beside a meter's readings during the measurement."""
    return "" if meter is None or isinstance(meter, Log) else label(meter)


def _profiled(console: Output, arguments: Any, meter: Meter | Log | None, machine: Machine) -> int:
    """Measure, write and show a device profile; return the exit code."""
    outputs = Outputs.of(arguments.profile_out, "profile_out")
    profile = measured_profile(console, arguments, meter, machine)
    outputs.write_json(arguments.profile_out.name, profile)
    console.print(points_table(profile))
    console.say(f"wrote {arguments.profile_out}")
    if profile["energy_failed"]:
        print_error(f"{profile['meter']}; the times are written")
        return 2
    return 0


def _with_log(arguments: Any, machine: Machine) -> dict[str, Any]:
    """Return an earlier result with the energy from a log that was copied later.

    Raises:
        ValueError: there is no such result, or the log cannot be used.
    """
    file = arguments.add_log / _FILES[0]
    try:
        result = read_result(file)
    except ValueError as error:
        what = str(error).removeprefix(f"{file} ")
        raise ValueError(f"add_log: {file} is no result ({what}); allowed: what --out was") from error
    return with_energy(result, choose(arguments.meter, machine), Record(clock_moved=result["clock_moved"]))


def _finish(console: Output, out: Path, result: dict[str, Any]) -> int:
    """Write and show the result, and return the exit code."""
    text, plots = report(result)
    outputs = Outputs(out)
    try:
        outputs.write_json("result.json", result)
        for name, content in {"report.md": text, **plots}.items():
            outputs.write_text(name, content)
    finally:
        for table in tables(result):
            console.print(table)
    console.say(f"wrote {out / 'report.md'} and {out / 'result.json'}")
    if result["energy_failed"]:
        print_error(f"{result['energy_note']}; the rest is written, and --add-log adds a log")
        return 2
    if apart := difference_of(result):
        print_error(apart)
        return 1
    return 0
