"""A client's work in a process of its own, watched from this one: its pace, its memory, and the power it takes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simsfl.hw_profile.meters import Log, Meter, Record, Sampler, Span
from simsfl.hw_profile.meters.board import Machine, temperature, throttling
from simsfl.system.programs import environment

IDLE_SECONDS = 4.0
"""Seconds for which the idle machine is measured before the work, and again after it."""
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
"""Environment variables that set the number of threads of NumPy's libraries."""

Watch = Callable[..., None]
"""Function that is called with the name of a stage, and keyword arguments with what is known of its progress."""


@dataclass(frozen=True)
class Measurement:
    """Everything that was observed of the work, the machine and the meter."""

    verified: Mapping[str, Any]
    """Report of the worker after the comparison with the trace."""
    worked: Mapping[str, Any]
    """Report of the worker after the timed work."""
    done: Mapping[str, Any]
    """Report of the worker at its end."""
    spans: Mapping[str, Span]
    """Spans of the idle machine before the work, of the timed work, and of the idle machine after it, by name and in
    this order, in unix seconds."""
    record: Record
    """What the meter showed."""
    temperatures: Sequence[float]
    """Temperatures of the processor in degrees Celsius, in order of time."""
    throttling_before: Sequence[str] | None
    """What limited the board's speed before the work (`board.throttling`)."""
    throttling: Sequence[str] | None
    """What limited the board's speed after the work; None where the board does not report it."""


class _Worker:
    """A process of ``worker.py`` that does a job.

    Args:
        job: what to do; see `measure`.
    """

    def __init__(self, job: Mapping[str, Any]):
        self._errors = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115  (closed in `__exit__`)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "simsfl.hw_profile.bench.worker", json.dumps(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=_environment(job["threads"]),
            text=True,
        )

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def until(self, event: str, watch: Watch) -> dict[str, Any]:
        """Return what the worker reports with an event; `watch` is called with each event before it.

        Raises:
            ValueError: the worker ended with an error in what the user asked for.
            RuntimeError: the worker ended otherwise.
        """
        for line in self._process.stdout:
            if not line.startswith('{"event"'):  # a line that a library printed
                continue
            said = json.loads(line)
            name = said.pop("event")
            if name == event:
                return said
            watch(name, **said)
        raise self._failure()

    def go_on(self) -> None:
        """Let the worker continue; raise the errors of `until` if it has ended."""
        try:
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failure() from None

    def _failure(self) -> Exception:
        code = self._process.wait()
        self._errors.seek(0)
        return _failure(self._errors.read(), code)


def _environment(threads: int | None) -> dict[str, str]:
    """Return the environment of a process that imports `simsfl`; `threads` sets the number of NumPy's threads."""
    return {**environment(), **(dict.fromkeys(THREADS, str(threads)) if threads else {})}


def _failure(errors: str, code: int) -> Exception:
    """Return the exception for a program that ended with this error output and this exit code."""
    if code < 0:
        hint = " (the system may have run out of memory)" if code == -signal.SIGKILL else ""
        return RuntimeError(f"the measured process was ended by {signal.Signals(-code).name}{hint}")
    last = (errors.strip().splitlines() or [f"no message, exit code {code}"])[-1]
    if code == 2:
        return ValueError(last.removeprefix("error: "))
    return RuntimeError(f"the measured process failed: {last}")


def standard_trace(path: Path, settings: Mapping[str, Any]) -> None:
    """Write the standard trace in a process of its own.

    Args:
        path: the file to write.
        settings: ``cut_layer``, ``bottleneck``, ``batch_size``, and also ``arch`` and ``width``.

    Raises:
        ValueError: there is no such network, or torch is not installed.
        RuntimeError: the process failed.
    """
    program = [sys.executable, "-m", "simsfl.hw_profile.bench.standard", str(path), json.dumps(settings)]
    done = subprocess.run(program, env=_environment(None), capture_output=True, text=True, check=False)
    if "ModuleNotFoundError" in done.stderr:
        raise ValueError("replay: the standard trace needs torch, which is not installed; allowed: --replay FILE")
    if done.returncode:
        raise _failure(done.stderr, done.returncode)


def measure(
    job: Mapping[str, Any], meter: Meter | Log | None, machine: Machine, watch: Watch, idle_seconds: float
) -> Measurement:
    """Measure a client's work: do it once and verify it, then repeat and time it between two spans of the idle machine.

    Args:
        job: the work of ``worker.py``: ``trace`` (its file), ``runtime``, ``threads``, ``dtype``, ``compile`` and
            ``seconds``.
        meter: the meter that power is read from; None, or a `Log`, which is read later, to read none now.
        machine: access to the system.
        watch: called with each stage, the meter's latest readings, and the temperature.
        idle_seconds: seconds for which the idle machine is measured before the timed work, and again after it.

    Raises:
        ValueError: the job cannot be done.
        RuntimeError: the worker failed.
    """
    temperatures: list[float] = []

    def also() -> None:
        found = temperature(machine)
        if found is not None:
            temperatures.append(found)

    before_work = throttling(machine)
    sampled = None if isinstance(meter, Log) else meter
    with Sampler(sampled, also) as sampler, _Worker(job) as worker:

        def show(stage: str, **what: Any) -> None:
            watch(stage, watts=sampler.latest, temperature=temperatures[-1] if temperatures else None, **what)

        show("starting")
        verified = worker.until("verified", show)
        before = idle(idle_seconds, show)
        worker.go_on()
        worked = worker.until("worked", show)
        after = idle(idle_seconds, show)
        worker.go_on()
        show("memory and peak")
        done = worker.until("done", show)
    record, work = sampler.record(), (worked["begin"], worked["end"])
    spans = {"idle before": before, "work": work, "idle after": after}
    return Measurement(
        verified,
        worked,
        done,
        {name: record.in_unix(span) for name, span in spans.items()},
        record,
        temperatures,
        before_work,
        throttling(machine),
    )


def idle(seconds: float, watch: Watch) -> Span:
    """Wait for some seconds, so that a meter sees the idle machine, and return their span on the monotonic clock."""
    begin = time.monotonic()
    while (waited := time.monotonic() - begin) < seconds:
        watch("idle", seconds=waited, of=seconds)
        time.sleep(min(0.1, seconds))
    return begin, time.monotonic()
