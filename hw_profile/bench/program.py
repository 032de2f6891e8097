"""Measure the work of a MocoSFL client on this machine: its time, memory and energy."""

from __future__ import annotations

import logging
import os
import signal
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from simsfl.hw_profile.bench.findings import operations, report, session, tables, with_charge
from simsfl.hw_profile.bench.measuring import IDLE_SECONDS, THREADS, Measurement, measure, standard_trace
from simsfl.hw_profile.bench.panel import LiveView, PlainView
from simsfl.hw_profile.bench.result import read_result
from simsfl.hw_profile.meters import Log, Meter, Record, absent, account, choose, label
from simsfl.hw_profile.meters.board import SINCE_BOOT, Machine, board, temperature
from simsfl.hw_profile.meters.cores import check_threads, usable_cores
from simsfl.hw_profile.runtimes.client_work import RUNTIMES
from simsfl.runs.client_trace import Trace
from simsfl.system.console import Output
from simsfl.system.files import claimed
from simsfl.system.messages import count_text
from simsfl.system.outputs import Outputs
from simsfl.system.signals import Stop
from simsfl.system.streams import print_error
from simsfl.ui.arguments import Parser, add_dashboard_flag, fail, one_of, path, value_of, whole_number

log = logging.getLogger(__name__)

_TOLERANCES = {"fp32": 1e-3, "bf16": 0.2, "fp16": 0.05}
"""Largest relative differences from the trace that are allowed, by the precisions of the forward passes that can be
asked for.

In fp32 sums are added in another order over a whole trace; bf16 and fp16 have 8 and 11 significant bits."""
_FILES = ("result.json", "report.md", "latency.svg", "memory.svg", "power.svg")
"""Names of all files that may be written into ``--out``."""
_LONGEST = 3600
"""Largest number of seconds of timed work."""
_POINTS = 2000
"""Largest number of readings that are kept for the plot of the power."""
_STANDARD = {"cut_layer": 1, "bottleneck": None, "batch_size": 1}
"""Settings of the standard trace, and their defaults."""


def parser() -> Parser:
    """Return the parser of this program's flags."""
    result = Parser(description=__doc__)
    what = result.add_argument_group("work")
    what.add_argument(
        "--replay",
        type=path,
        metavar="FILE",
        help="client trace to replay, as --record-trace of a run writes it (default: a standard trace)",
    )
    what.add_argument(
        "--cut-layer", type=whole_number, metavar="N", help="cut layer of the standard trace (default: 1)"
    )
    what.add_argument("--bottleneck", metavar="C4S2", help="bottleneck of the standard trace (default: none)")
    what.add_argument(
        "--batch-size", type=whole_number, metavar="N", help="images per step of the standard trace (default: 1)"
    )
    how = result.add_argument_group("computing")
    how.add_argument(
        "--runtime",
        type=one_of(RUNTIMES),
        default="torch",
        metavar="{torch,lean}",
        help="PyTorch, or NumPy alone (default: torch)",
    )
    how.add_argument(
        "--threads",
        type=whole_number,
        metavar="N",
        help="threads to compute with, at most the cores that this process may use (default: as the runtime chooses)",
    )
    how.add_argument(
        "--dtype",
        type=one_of(tuple(_TOLERANCES)),
        metavar="{" + ",".join(_TOLERANCES) + "}",
        help="precision of the forward passes (default: the trace's)",
    )
    how.add_argument(
        "--compile", action="store_true", help="compile the models with torch.compile, which needs a C++ compiler"
    )
    how.add_argument(
        "--seconds",
        type=value_of(float, "seconds"),
        default=10.0,
        metavar="S",
        help="seconds of timed work (default: 10); the idle machine is measured for eight more",
    )
    how.add_argument(
        "--tolerance",
        type=value_of(float, "a share"),
        metavar="X",
        help="largest relative difference from the trace that is allowed (default: by dtype)",
    )
    where = result.add_argument_group("measuring and output")
    where.add_argument(
        "--meter",
        default="auto",
        metavar="NAME",
        help="power meter: pmic, ina226[:ADDRESS[:OHM]], ina219[:ADDRESS[:OHM]], rapl, csv:FILE, model, none, or auto "
        "(default)",
    )
    where.add_argument(
        "--out", type=path, metavar="DIR", help="directory to write into (default: runs/<time>-pi_bench)"
    )
    where.add_argument(
        "--add-log",
        type=path,
        metavar="DIR",
        help="directory of an earlier result, to which the energy of --meter csv:FILE is added, a log that came later",
    )
    add_dashboard_flag(where)
    return result


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
        _check(arguments, machine)
        if arguments.add_log:
            result, outputs = _with_log(arguments, machine), Outputs(arguments.add_log, "add_log")
            outputs.adopt(_FILES)
            outputs.check(*_FILES)
            return _finish(console, arguments.add_log, result)
        meter = choose(arguments.meter, machine)
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


def _check(arguments: Any, machine: Machine) -> None:
    """Raise a ValueError if flags are out of range or do not go together."""
    if arguments.replay:
        for name in _STANDARD:
            if getattr(arguments, name) is not None:
                raise ValueError(f"{name}: has no effect on a trace that is replayed; allowed: without --replay")
    if not 0.1 <= arguments.seconds <= _LONGEST:
        raise ValueError(f"seconds: {arguments.seconds:g} is out of range; allowed: 0.1 to {_LONGEST}")
    if arguments.threads:
        check_threads(arguments.threads, machine)
    if arguments.tolerance is not None and not arguments.tolerance > 0:
        raise ValueError(f"tolerance: {arguments.tolerance:g} allows nothing; allowed: more than 0")
    if arguments.add_log:
        if not arguments.meter.startswith("csv:"):
            raise ValueError(f"add_log: needs a log; allowed: with --meter csv:FILE, not {arguments.meter}")
        for name in arguments.given:
            if name not in ("add_log", "meter", "dashboard"):
                raise ValueError(f"{name}: has no effect on an earlier result; allowed: without --add-log")
    if arguments.runtime == "lean" and (arguments.compile or arguments.dtype not in (None, "fp32")):
        flag = "compile" if arguments.compile else "dtype"
        raise ValueError(f"{flag}: lean computes in fp32 and cannot be compiled; allowed: with --runtime torch")


def _measured(console: Output, arguments: Any, meter: Meter | Log | None, machine: Machine) -> dict[str, Any]:
    """Do the whole measurement, and return the content of ``result.json``."""
    with tempfile.TemporaryDirectory() as scratch:
        file = arguments.replay
        if file is None:
            file = Path(scratch) / "standard.trace"
            settings = {name: getattr(arguments, name) or usual for name, usual in _STANDARD.items()}
            with console.status("writing the standard trace"):
                standard_trace(file, settings)
        try:
            trace = Trace(file)
        except OSError as error:
            raise ValueError(f"replay: {file} cannot be read ({error.strerror}); allowed: a trace") from error
        if not trace.visits:
            raise trace.wrong("has no steps")
        job = {
            "trace": str(file),
            "runtime": arguments.runtime,
            "threads": arguments.threads or _default_threads(machine),
            "dtype": arguments.dtype or trace.about["optimiser"]["precision"],
            "compile": arguments.compile,
            "seconds": arguments.seconds,
        }
        this = board(machine)
        title = f"{this.model}: cut layer {trace.about['network']['cut_layer']}, {arguments.runtime}"
        idle_seconds = 0.0 if arguments.meter == "none" else IDLE_SECONDS
        kind = LiveView if console.live else PlainView
        with kind(console, title, arguments.seconds, _metered(meter)) as view:
            seen = measure(job, meter, machine, view.show, idle_seconds)
        result = _figures(job, trace, seen, machine)
        result["trace"]["file"] = str(arguments.replay) if arguments.replay else "standard"
    tolerance = arguments.tolerance or max(
        _TOLERANCES[job["dtype"]], _TOLERANCES[trace.about["optimiser"]["precision"]]
    )
    result["verified"] = {name: seen.verified[name] for name in ("activations", "weights")} | {"tolerance": tolerance}
    try:
        result = _with_energy(result, meter, seen.record)
        return result if meter else result | {"energy_note": _absent(arguments.meter, machine)}
    except ValueError as error:  # all other results are still valid
        return result | {"energy": None, "energy_note": str(error), "energy_failed": True, "readings": []}


def _absent(spec: str, machine: Machine) -> str:
    """Return why there is no power, and what the user could do to make a meter available."""
    if spec == "none":
        return "no meter was asked for"
    return absent(machine)


def _default_threads(machine: Machine) -> int | None:
    """Return the number of threads to set where none is asked for: the usable cores, if the machine has more of them.

    None leaves it to the runtime. Warn if an environment variable asks for more threads than there are usable cores.
    """
    cores, named = usable_cores(machine), _named_threads()
    if named is None:
        return cores if cores < (os.cpu_count() or 1) else None
    name, threads = named
    if threads > cores:
        usable = count_text(cores, "core")
        log.warning("%s sets %d threads, but this process may use %s, so threads take turns", name, threads, usable)
    return None


def _named_threads() -> tuple[str, int] | None:
    """Return the first environment variable that sets a number of threads, and that number."""
    return next(((name, int(os.environ[name])) for name in THREADS if os.environ.get(name, "").isdecimal()), None)


def _numpy_threads(machine: Machine) -> int:
    """Return the number of threads that NumPy uses by default."""
    named = _named_threads()
    return named[1] if named else usable_cores(machine)


def _metered(meter: Meter | Log | None) -> str:
    """Return the text that is shown beside a meter's readings during the measurement."""
    return "" if meter is None or isinstance(meter, Log) else label(meter)


def _new_flags(seen: Measurement) -> list[str] | None:
    """Return what limited the board at the start or the end of the measurement, or once in between.

    What has been so since boot counts only where the board did not report it before the measurement.
    """
    if seen.throttling is None:
        return None
    before = seen.throttling_before or []
    new = [flag for flag in seen.throttling if flag not in before or not flag.endswith(SINCE_BOOT)]
    return list(dict.fromkeys([flag for flag in before if not flag.endswith(SINCE_BOOT)] + new))


def _figures(job: Mapping[str, Any], trace: Trace, seen: Measurement, machine: Machine) -> dict[str, Any]:
    """Return all entries of the result except the energy."""
    about, network = trace.about, trace.about["network"]
    batch_size = trace.visits[0].batch_size
    latency, categories = seen.worked["latency"], about["cost"]["memory"]
    temperatures = seen.temperatures or [found for found in [temperature(machine)] if found is not None]
    paper = network["arch"] == "resnet18" and network["width"] == 64 and network["image_size"] == 32
    lean = job["runtime"] == "lean"
    return {
        "board": asdict(board(machine)),
        "versions": seen.verified["versions"],
        "runtime": job["runtime"],
        "dtype": job["dtype"],
        "threads": job["threads"] or seen.verified["versions"].get("threads", _numpy_threads(machine)),
        "compile": job["compile"],
        "trace": {
            "client": about["client"],
            "steps": trace.steps,
            "batch_size": batch_size,
            "paper": paper and not network["bottleneck"] and batch_size == 1,
            **network,
        },
        "steps": seen.worked["steps"],
        "spans": seen.spans,
        "clock_moved": seen.record.clock_moved,
        "latency": latency,
        "operations": operations(about, batch_size, latency, seen.done),
        "memory": {
            "process_idle": seen.worked["memory"]["idle"],
            "process_above_idle": seen.worked["memory"]["above_idle"],
            "tensors": seen.done["tensor_bytes"],
            "tensors_source": f"measured by {'tracemalloc' if lean else 'PyTorch'}, with the gradient that is received",
            "estimated": sum(categories.values()),
            "by_category": categories,
        },
        "session": session(about, latency["step"]["mean"]),
        "temperature": {"first": temperatures[0], "highest": max(temperatures)} if temperatures else None,
        "throttling": _new_flags(seen),
    }


def _with_energy(result: dict[str, Any], meter: Meter | Log | None, record: Record) -> dict[str, Any]:
    """Return the result with the energy that a meter has measured, if there is a meter.

    Raises:
        ValueError: the meter has too few valid readings, or the idle machine was not measured.
    """
    spans = [tuple(span) for span in result["spans"].values()]
    before, _, after = spans
    if meter is not None and not before[0] < before[1]:
        raise ValueError("add_log: the idle machine was not measured; allowed: results without --meter none")
    found, readings = None, record.readings
    if meter is not None:
        found, readings = account(meter, record, spans)
        watts = None if found["below_zero"] else found["mean_watts"]
        result["session"] = with_charge(result["session"], watts, found["label"])
    shown = [(at, watts) for at, watts in readings if before[0] <= at <= after[1]]
    shown = shown[:: 1 + len(shown) // _POINTS]
    return result | {"energy": found, "energy_note": "", "energy_failed": False, "readings": shown}


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
    return _with_energy(result, choose(arguments.meter, machine), Record(clock_moved=result["clock_moved"]))


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
    verified = result["verified"]
    apart = max(verified["activations"], verified["weights"])
    if apart > verified["tolerance"]:
        print_error(
            f"replay: what is computed here differs by {apart:.1e} from the trace; allowed: {verified['tolerance']:g}"
        )
        return 1
    return 0
