"""A client's work in a process of its own, watched from this one: its pace, its memory, and the power it takes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import simsfl
from simsfl.hw_profile.meters import Log, Meter, Readings, Sampler, Span
from simsfl.hw_profile.meters.board import Machine, temperature, throttling

HOME = str(Path(simsfl.__file__).parents[1])
"""Directory that the package `simsfl` is imported from: a process of its own has to find it, too."""
IDLE_SECONDS = 4.0
"""For which the idle machine is measured, before and after."""
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")

Watch = Callable[..., None]
"""Told of a stage by name, with what is known of it."""


@dataclass(frozen=True)
class Measurement:
    """All that was seen."""

    verified: Mapping[str, Any]
    worked: Mapping[str, Any]
    done: Mapping[str, Any]
    before: Span
    after: Span
    readings: Readings
    failures: int
    """Of the meter's readings."""
    last_error: str
    temperatures: Sequence[float]
    throttling_before: Sequence[str] | None
    throttling: Sequence[str] | None
    """After it. None where the board does not say."""

    @property
    def work(self) -> Span:
        """When the client worked."""
        return self.worked["begin"], self.worked["end"]


class Worker:
    """``worker.py`` on a job, as a process.

    Args:
        job: see there.
    """

    def __init__(self, job: Mapping[str, Any]):
        self._errors = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115  (closed in `__exit__`)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "simsfl.hw_profile.bench.worker", json.dumps(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment(job["threads"]),
            text=True,
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def until(self, event: str, watch: Watch) -> dict[str, Any]:
        """What it says when it is so far; of what comes before, `watch` is told.

        Raises:
            ValueError: it ended with an error that is the user's.
            RuntimeError: it ended otherwise.
        """
        for line in self._process.stdout:
            if not line.startswith('{"event"'):  # a library had something to say
                continue
            said = json.loads(line)
            name = said.pop("event")
            if name == event:
                return said
            watch(name, **said)
        raise self._failure()

    def go_on(self) -> None:
        """Let it do its next part; errors as of `until`."""
        try:
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failure() from None

    def _failure(self) -> Exception:
        code = self._process.wait()
        self._errors.seek(0)
        return failure(self._errors.read(), code)


def environment(threads: int | None) -> dict[str, str]:
    """Return the environment of a process that imports `simsfl`, and computes on so many threads if that is given."""
    path = os.pathsep.join([HOME, *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, **(dict.fromkeys(THREADS, str(threads)) if threads else {})}


def failure(errors: str, code: int) -> Exception:
    """What to raise for a program that ended with these words and this code."""
    if code < 0:
        hint = " (systems without memory left do so)" if code == -signal.SIGKILL else ""
        return RuntimeError(f"the worker was ended by {signal.Signals(-code).name}{hint}")
    last = (errors.strip().splitlines() or [f"it said nothing, and ended with code {code}"])[-1]
    if code == 2:
        return ValueError(last.removeprefix("error: "))
    return RuntimeError(f"the worker ended: {last}")


def standard_trace(path: Path, settings: Mapping[str, Any]) -> None:
    """Have the standard trace written.

    Raises:
        ValueError: there is no such network.
        RuntimeError: it could not be.
    """
    program = [sys.executable, "-m", "simsfl.hw_profile.bench.standard", str(path), json.dumps(settings)]
    done = subprocess.run(program, env=environment(None), capture_output=True, text=True, check=False)
    if "ModuleNotFoundError" in done.stderr:
        raise ValueError(
            "replay: the standard trace is made with torch, which is not installed; allowed: --replay FILE"
        )
    if done.returncode:
        raise failure(done.stderr, done.returncode)


def measure(
    job: Mapping[str, Any], meter: Meter | Log | None, machine: Machine, watch: Watch, idle_seconds: float
) -> Measurement:
    """Have the work done and verified, then do it over and over; the idle machine before and after.

    Args:
        job: see ``worker.py``.
        watch: is told of each stage, of the meter's latest readings, and of the temperature.
        idle_seconds: for which the idle machine is watched, each time.

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
    with Sampler(sampled, also) as sampler, Worker(job) as worker:

        def tell(stage: str, **what: Any) -> None:
            watch(stage, watts=sampler.latest, temperature=temperatures[-1] if temperatures else None, **what)

        tell("starting")
        verified = worker.until("verified", tell)
        before = idle(idle_seconds, tell)
        worker.go_on()
        worked = worker.until("worked", tell)
        after = idle(idle_seconds, tell)
        worker.go_on()
        tell("memory and peak")
        done = worker.until("done", tell)
    return Measurement(
        verified,
        worked,
        done,
        before,
        after,
        sampler.readings,
        sampler.failures,
        sampler.last_error,
        temperatures,
        before_work,
        throttling(machine),
    )


def idle(seconds: float, tell: Watch) -> Span:
    """Wait, for a meter to see the machine idle."""
    started, begin = time.time(), time.monotonic()
    while (waited := time.monotonic() - begin) < seconds:
        tell("idle", seconds=waited, of=seconds)
        time.sleep(min(0.1, seconds))
    return started, time.time()
