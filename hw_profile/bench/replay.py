"""A client's work, replayed from a trace and measured, as the content of ``result.json``."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from simsfl.hw_profile.bench.findings import operations, session, with_charge
from simsfl.hw_profile.bench.flags import TOLERANCES
from simsfl.hw_profile.bench.measuring import IDLE_SECONDS, THREADS, Measurement, Watch, measure
from simsfl.hw_profile.meters import Log, Meter, Record, absent, account
from simsfl.hw_profile.meters.board import SINCE_BOOT, Machine, board, temperature
from simsfl.hw_profile.meters.cores import usable_cores
from simsfl.runs.client_trace import Trace
from simsfl.system.messages import count_text

log = logging.getLogger(__name__)

_POINTS = 2000
"""Largest number of readings that are kept for the plot of the power."""


def opened(file: Path) -> Trace:
    """Return the trace in a file; raise a ValueError if it cannot be read or has no steps."""
    try:
        trace = Trace(file)
    except OSError as error:
        raise ValueError(f"replay: {file} cannot be read ({error.strerror}); allowed: a trace") from error
    if not trace.visits:
        raise trace.wrong("has no steps")
    return trace


def job_of(arguments: Any, trace: Trace, machine: Machine, seconds: float, dtype: str | None = None) -> dict[str, Any]:
    """Return what `measure` is to do.

    Args:
        arguments: the flags.
        trace: the trace to replay.
        machine: access to the system.
        seconds: seconds of timed work.
        dtype: precision of the forward passes; None for that of the flags, or else of the trace.
    """
    return {
        "trace": str(trace.path),
        "runtime": arguments.runtime,
        "threads": arguments.threads or _default_threads(machine),
        "dtype": dtype or arguments.dtype or trace.about["optimiser"]["precision"],
        "compile": arguments.compile,
        "seconds": seconds,
    }


def replayed(
    trace: Trace, job: Mapping[str, Any], arguments: Any, meter: Meter | Log | None, machine: Machine, watch: Watch
) -> dict[str, Any]:
    """Replay a trace, and return the content of ``result.json``.

    Args:
        trace: the trace.
        job: what `job_of` returns.
        arguments: the flags, of which ``meter`` and ``tolerance`` count.
        meter: what they choose.
        machine: access to the system.
        watch: called with each stage and its progress.

    Raises:
        ValueError: the work cannot be done.
        RuntimeError: the measured process failed.
    """
    idle_seconds = 0.0 if arguments.meter == "none" else IDLE_SECONDS
    seen = measure(job, meter, machine, watch, idle_seconds)
    result = _figures(job, trace, seen, machine)
    recorded = trace.about["optimiser"]["precision"]
    tolerance = arguments.tolerance or max(TOLERANCES[job["dtype"]], TOLERANCES[recorded])
    result["verified"] = {name: seen.verified[name] for name in ("activations", "weights")} | {"tolerance": tolerance}
    try:
        result = with_energy(result, meter, seen.record)
        return result if meter else result | {"energy_note": _absent(arguments.meter, machine)}
    except ValueError as error:  # all other results are still valid
        return result | {"energy": None, "energy_note": str(error), "energy_failed": True, "readings": []}


def difference_of(result: Mapping[str, Any]) -> str | None:
    """Return what is wrong if the results differ from the trace's by more than is allowed; else None."""
    verified = result["verified"]
    apart = max(verified["activations"], verified["weights"])
    if apart <= verified["tolerance"]:
        return None
    return f"replay: what is computed here differs by {apart:.1e} from the trace; allowed: {verified['tolerance']:g}"


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


def with_energy(result: dict[str, Any], meter: Meter | Log | None, record: Record) -> dict[str, Any]:
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
