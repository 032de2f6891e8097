"""A client's work in a process of its own, watched from this one: its pace, its memory, and the power it takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from board import Machine, temperature, throttling
from meters import Log, Meter, Readings, Sampler, Span

HERE = Path(__file__).parent
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
    throttling: Sequence[str] | None

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
            [sys.executable, str(HERE / "worker.py"), json.dumps(job)],
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
            said = json.loads(line)
            name = said.pop("event")
            if name == event:
                return said
            watch(name, **said)
        code = self._process.wait()
        self._errors.seek(0)
        raise failure(self._errors.read(), code)

    def go_on(self) -> None:
        """Let it do its next part."""
        self._process.stdin.write("\n")
        self._process.stdin.flush()


def environment(threads: int | None) -> dict[str, str]:
    """Of a process that computes on so many threads."""
    return {**os.environ, **(dict.fromkeys(THREADS, str(threads)) if threads else {})}


def failure(errors: str, code: int) -> Exception:
    """What to raise for a program that ended with these words and this code."""
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
    program = [sys.executable, str(HERE / "standard.py"), str(path), json.dumps(settings)]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    if done.returncode:
        raise failure(done.stderr, done.returncode)


def measure(job: Mapping[str, Any], meter: Meter | Log | None, machine: Machine, watch: Watch) -> Measurement:
    """Have the work done and verified, then do it over and over; the idle machine before and after.

    Raises:
        ValueError: the job cannot be done.
        RuntimeError: the worker failed.
    """
    temperatures: list[float] = []

    def also() -> None:
        found = temperature(machine)
        if found is not None:
            temperatures.append(found)

    sampled = None if isinstance(meter, Log) else meter
    with Sampler(sampled, also) as sampler, Worker(job) as worker:

        def tell(stage: str, **what: Any) -> None:
            watch(stage, watts=sampler.latest, temperature=temperatures[-1] if temperatures else None, **what)

        tell("starting")
        verified = worker.until("verified", tell)
        before = idle(meter, tell)
        worker.go_on()
        worked = worker.until("worked", tell)
        after = idle(meter, tell)
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
        throttling(machine),
    )


def idle(meter: Meter | Log | None, tell: Watch) -> Span:
    """Wait, for the meter to see the machine idle; not at all without one."""
    begin = time.time()
    wanted = 0.0 if meter is None else IDLE_SECONDS
    while (waited := time.time() - begin) < wanted:
        tell("idle", seconds=waited, of=wanted)
        time.sleep(0.1)
    return begin, time.time()
