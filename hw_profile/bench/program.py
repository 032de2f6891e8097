"""A MocoSFL client's work on this machine: time, memory, energy."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from simsfl.hw_profile.bench.findings import operations, report, session, tables, with_charge
from simsfl.hw_profile.bench.measuring import IDLE_SECONDS, THREADS, Measurement, measure, standard_trace
from simsfl.hw_profile.bench.panel import LiveView, PlainView
from simsfl.hw_profile.meters import Log, Meter, account, choose, label, present
from simsfl.hw_profile.meters.board import Machine, board, temperature
from simsfl.hw_profile.runtimes.client_work import RUNTIMES
from simsfl.runs.client_trace import Trace
from simsfl.system.files import claimed
from simsfl.system.outputs import Outputs
from simsfl.system.signals import Stop
from simsfl.ui.arguments import Parser, add_dashboard_flag, fail, one_of, path, print_error, value_of, whole_number
from simsfl.ui.console import Output

_PRECISIONS = ("fp32", "bf16", "fp16")
"""Precisions of the forward passes that can be asked for."""
_TOLERANCES = {"fp32": 1e-3, "bf16": 0.2, "fp16": 0.05}
"""Largest relative differences from the trace that are allowed, by precision.

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
    what = result.add_argument_group("what to do")
    what.add_argument(
        "--replay", type=path, metavar="FILE", help="the trace of run.py --record-trace (default: a standard one)"
    )
    what.add_argument("--cut-layer", type=whole_number, metavar="N", help="of the standard trace (default: 1)")
    what.add_argument("--bottleneck", metavar="C4S2", help="of the standard trace (default: none)")
    what.add_argument("--batch-size", type=whole_number, metavar="N", help="of the standard trace (default: 1)")
    how = result.add_argument_group("how")
    how.add_argument(
        "--runtime", type=one_of(RUNTIMES), default="torch", metavar="{torch,lean}", help="(default: torch)"
    )
    how.add_argument("--threads", type=whole_number, metavar="N", help="(default: what the runtime takes)")
    how.add_argument(
        "--dtype", type=one_of(_PRECISIONS), metavar="{fp32,bf16,fp16}", help="of forward passes (default: the trace's)"
    )
    how.add_argument("--compile", action="store_true", help="with torch.compile, which needs a C++ compiler")
    how.add_argument(
        "--seconds",
        type=value_of(float, "seconds"),
        default=10.0,
        metavar="S",
        help="of work that is timed (default: 10); the idle machine is watched for eight more",
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
        help="pmic, ina226[:ADDRESS[:OHM]], ina219[:ADDRESS[:OHM]], rapl, csv:FILE, model, none, or auto (default)",
    )
    where.add_argument("--out", type=path, metavar="DIR", help="(default: runs/<time>-pi_bench)")
    where.add_argument(
        "--add-log",
        type=path,
        metavar="DIR",
        help="give an earlier result the energy of --meter csv:FILE, a log that came later",
    )
    add_dashboard_flag(where)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, show and write; return the exit code, which is 1 where the results differ from the trace's."""
    with Stop():
        return _run(argv)


def _run(argv: Sequence[str] | None) -> int:
    """Do what `main` does, while signals are caught."""
    console = Output()
    try:
        arguments = parser().parse(argv)
        _check(arguments)
        if arguments.add_log:
            result, outputs = _with_log(arguments), Outputs(arguments.add_log, "add_log")
            outputs.adopt(_FILES)
            outputs.check(*_FILES)
            return _finish(console, arguments.add_log, result)
        machine = Machine()
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
        return 130


def _check(arguments: Any) -> None:
    """Raise a ValueError if flags are out of range or do not go together."""
    if arguments.replay:
        for name in _STANDARD:
            if getattr(arguments, name) is not None:
                raise ValueError(f"{name}: is what the trace has; allowed: without --replay")
    if not 0.1 <= arguments.seconds <= _LONGEST:
        raise ValueError(f"seconds: {arguments.seconds:g} is out of range; allowed: 0.1 to {_LONGEST}")
    cores = os.cpu_count() or 1
    if arguments.threads and arguments.threads > cores:
        raise ValueError(f"threads: {arguments.threads} are more than the cores; allowed: 1 to {cores}")
    if arguments.tolerance is not None and not arguments.tolerance > 0:
        raise ValueError(f"tolerance: {arguments.tolerance:g} allows nothing; allowed: more than 0")
    if arguments.add_log:
        if not arguments.meter.startswith("csv:"):
            raise ValueError(f"add_log: needs the log; allowed: with --meter csv:FILE, not {arguments.meter}")
        usual = vars(parser().parse([]))
        for name, value in vars(arguments).items():
            if name not in ("add_log", "meter", "dashboard") and value != usual[name]:
                raise ValueError(f"{name}: has no effect on a result that there is; allowed: without --add-log")
    if arguments.runtime == "lean" and (arguments.compile or arguments.dtype not in (None, "fp32")):
        flag = "compile" if arguments.compile else "dtype"
        raise ValueError(f"{flag}: lean computes in fp32, and is not compiled; allowed: with --runtime torch")


def _measured(console: Output, arguments: Any, meter: Meter | Log | None, machine: Machine) -> dict[str, Any]:
    """Do the whole measurement, and return the content of ``result.json``."""
    with tempfile.TemporaryDirectory() as scratch:
        file = arguments.replay
        if file is None:
            file = Path(scratch) / "standard.trace"
            settings = {name: getattr(arguments, name) or usual for name, usual in _STANDARD.items()}
            with console.status("making the standard trace"):
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
            "threads": arguments.threads,
            "dtype": arguments.dtype or trace.about["optimiser"]["precision"],
            "compile": arguments.compile,
            "seconds": arguments.seconds,
        }
        this = board(machine)
        title = f"{this.model}: cut layer {trace.about['network']['cut_layer']}, {arguments.runtime}"
        idle_seconds = 0.0 if arguments.meter == "none" else IDLE_SECONDS
        kind = LiveView if console.is_live(arguments.dashboard) else PlainView
        with kind(console, title, arguments.seconds, _metered(meter)) as view:
            seen = measure(job, meter, machine, view.show, idle_seconds)
        result = _figures(job, trace, seen, machine)
        result["trace"]["file"] = str(arguments.replay) if arguments.replay else "standard"
    tolerance = arguments.tolerance or max(
        _TOLERANCES[job["dtype"]], _TOLERANCES[trace.about["optimiser"]["precision"]]
    )
    result["verified"] = {name: seen.verified[name] for name in ("activations", "weights")} | {"tolerance": tolerance}
    try:
        result = _with_energy(result, meter, seen.readings, (seen.failures, seen.last_error))
        return result if meter else result | {"energy_note": _absent(arguments.meter, machine)}
    except ValueError as error:  # all other results are still valid
        return result | {"energy": None, "energy_note": str(error), "energy_failed": True, "readings": []}


def _absent(spec: str, machine: Machine) -> str:
    """Return why there is no power, including what would make further meters available, such as a package."""
    if spec == "none":
        return "no meter asked for"
    reasons = [reason for reason in present(machine)[1].values() if " not here" not in reason]
    return "; ".join(["no meter found", *reasons])


def _usual_threads() -> int:
    """Return the number of threads that NumPy uses by default."""
    named = next((os.environ[name] for name in THREADS if os.environ.get(name, "").isdecimal()), None)
    return int(named or os.cpu_count() or 1)


def _metered(meter: Meter | Log | None) -> str:
    """Return the text that is shown beside a meter's readings as they come in."""
    return "" if meter is None or isinstance(meter, Log) else label(meter)


def _new_flags(seen: Measurement) -> list[str] | None:
    """Return what limited the board in this run, without what it reported before the work already."""
    if seen.throttling is None:
        return None
    return [flag for flag in seen.throttling if flag not in (seen.throttling_before or [])]


def _figures(job: Mapping[str, Any], trace: Trace, seen: Measurement, machine: Machine) -> dict[str, Any]:
    """Return all entries of the result but the energy."""
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
        "threads": job["threads"] or seen.verified["versions"].get("threads", _usual_threads()),
        "compile": job["compile"],
        "trace": {
            "client": about["client"],
            "steps": trace.steps,
            "batch_size": batch_size,
            "paper": paper and not network["bottleneck"] and batch_size == 1,
            **network,
        },
        "steps": seen.worked["steps"],
        "spans": {"idle before": seen.before, "work": seen.work, "idle after": seen.after},
        "latency": latency,
        "operations": operations(about, batch_size, latency, seen.done),
        "memory": {
            "process_idle": seen.worked["memory"]["idle"],
            "process_above_idle": seen.worked["memory"]["above_idle"],
            "tensors": seen.done["tensor_bytes"],
            "tensors_source": f"measured by {'tracemalloc' if lean else 'PyTorch'}, with the gradient that comes in",
            "reckoned": sum(categories.values()),
            "by_category": categories,
        },
        "session": session(about, latency["step"]["mean"]),
        "temperature": {"first": temperatures[0], "highest": max(temperatures)} if temperatures else None,
        "throttling": _new_flags(seen),
    }


def _with_energy(
    result: dict[str, Any], meter: Meter | Log | None, readings: Sequence[Sequence[float]], failures: tuple[int, str]
) -> dict[str, Any]:
    """Return the result with the energy that a meter has measured, if there is a meter.

    Raises:
        ValueError: the meter has too few readings, or the idle machine was not watched.
    """
    spans = [tuple(span) for span in result["spans"].values()]
    before, _, after = spans
    if meter is not None and not before[0] < before[1]:
        raise ValueError("add_log: the idle machine was not watched, by --meter none; allowed: results without that")
    found = None
    if meter is not None:
        found, readings = account(meter, readings, spans, failures)
        result["session"] = with_charge(result["session"], found["mean_watts"], found["label"])
    shown = [(at, watts) for at, watts in readings if before[0] <= at <= after[1]]
    shown = shown[:: 1 + len(shown) // _POINTS]
    return result | {"energy": found, "energy_note": "", "energy_failed": False, "readings": shown}


def _with_log(arguments: Any) -> dict[str, Any]:
    """Return an earlier result with the energy from a log that was copied later.

    Raises:
        ValueError: there is no such result, or the log cannot be used.
    """
    file = arguments.add_log / _FILES[0]
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
        return _with_energy(result, choose(arguments.meter, Machine()), [], (0, ""))
    except (OSError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"add_log: {file} is no result ({error}); allowed: what --out was") from error


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
    written = f"wrote {out / 'report.md'} and {out / 'result.json'}"
    console.print(written, markup=False, highlight=False, soft_wrap=True)
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
