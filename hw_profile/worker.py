"""The measured process: a client's work on one runtime, and nothing else.

``pi_bench.py`` starts it with a job as JSON, reads what it says as JSON lines, and writes a line whenever it is to go
on: so that nothing of the measuring is in its memory or on its threads.
"""

from __future__ import annotations

import ctypes
import json
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

import checkout  # noqa: F401  (first of all)
from client_work import PHASES, Comparison, import_runtime, make_client, perform, state_of
from simsfl.arguments import fail
from simsfl.trace import Trace, Visit

REPORT_SECONDS = 0.1
"""How often progress is told."""
FEW = 3
"""Steps in which memory has been as high as it gets."""
SQUARE, TRIES = 768, 5
"""Matrices whose product shows the machine's peak; the best of so many."""


class Stopwatch:
    """Seconds of each phase, step by step, and of all together."""

    def __init__(self) -> None:
        self.total = 0.0
        self.seconds: dict[str, list[float]] = {phase: [] for phase in PHASES}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Time the block."""
        begin = time.perf_counter()
        yield
        took = time.perf_counter() - begin
        self.seconds[phase].append(took)
        self.total += took


def untimed(phase: str) -> nullcontext[None]:
    """The clock of those who do not ask."""
    return nullcontext()


def say(event: str, **what: Any) -> None:
    """Tell the parent."""
    print(json.dumps({"event": event, **what}), flush=True)


def wait() -> None:
    """Until the parent says to go on; end where it has gone."""
    if not sys.stdin.readline():
        raise SystemExit(1)


def resident() -> int | None:
    """Bytes of memory of this process, less what is mapped from files; None where the system does not tell."""
    found = status()
    return found.get("RssAnon")


def peak() -> int | None:
    """The most it has been since `forget_peak`; on macOS, with mapped files, since the start."""
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = status()
    return found["VmHWM"] - found["RssFile"] if {"VmHWM", "RssFile"} <= found.keys() else None


def status() -> dict[str, int]:
    """The sizes in /proc/self/status, in bytes."""
    with suppress(OSError):
        lines = [line.split() for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines()]
        return {line[0].rstrip(":"): 1024 * int(line[1]) for line in lines if line[-1] == "kB"}
    return {}


def forget_peak() -> None:
    """Give free memory back, so that taking it again counts, and start anew, where the system lets us."""
    with suppress(AttributeError, OSError):  # the C library of Linux has it
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def first_steps(trace: Trace, job: dict[str, Any]) -> tuple[Any, dict[str, int | None]]:
    """Make the client and let it do a few steps; and what that took of the process's memory."""
    visit = trace.visits[0]
    _ = visit.pixels, visit.views, visit.lr, visit.begin, visit.checksums, visit.syncs  # in memory before it counts
    import_runtime(job["runtime"])
    forget_peak()
    before = resident() or peak()
    client = make_client(trace.about, job["runtime"], precision=job["dtype"], compile=job["compile"])
    for step in perform(client, trace, visit, untimed, None):
        if step == FEW - 1:
            break
    after = peak()
    return client, {"idle": before, "above_idle": after - before if after and before else None}


def verify(client: Any, trace: Trace) -> Comparison:
    """Do all of it once, and compare."""
    compare, done = Comparison(), 0
    told = time.monotonic()
    for visit in trace.visits:
        for _ in perform(client, trace, visit, untimed, compare):
            done += 1
            if time.monotonic() - told > REPORT_SECONDS:
                told = time.monotonic()
                say("verifying", done=done, of=trace.steps)
    return compare


def work(client: Any, trace: Trace, seconds: float) -> dict[str, Any]:
    """Do it over and over for so long; when, how many steps, and how long they and their phases took."""
    watch = Stopwatch()
    steps: list[float] = []
    started, before = time.time(), 0.0
    begin = told = time.monotonic()
    for visit in cycle(trace.visits):
        for _ in perform(client, trace, visit, watch, None):
            now = time.monotonic()
            steps.append(watch.total - before)
            before = watch.total
            if now - told > REPORT_SECONDS:
                told = now
                latest = {phase: own[-1] for phase, own in watch.seconds.items() if own}
                say("working", steps=len(steps), seconds=now - begin, latest=latest)
            if now - begin >= seconds:
                break
        if time.monotonic() - begin >= seconds:
            break
    return {
        "begin": started,
        "end": time.time(),
        "steps": len(steps),
        "latency": {name: spread(own) for name, own in {"step": steps, **watch.seconds}.items() if own},
    }


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Mean, and percentiles that people ask for, in seconds."""
    at = np.percentile(seconds, (5, 50, 95))
    return {
        "count": len(seconds),
        "mean": float(np.mean(seconds)),
        **dict(zip(("p5", "median", "p95"), at.tolist(), strict=True)),
    }


def tensor_bytes(client: Any, trace: Trace, runtime: str) -> int:
    """The most that arrays or tensors took in a few steps, with what the client keeps between them."""
    visit: Visit = trace.visits[0]
    state = sum(array.nbytes for array in state_of(client).values())

    def steps() -> None:
        for step in perform(client, trace, visit, untimed, None):
            if step == FEW - 1:
                break

    if runtime == "lean":
        import tracemalloc  # noqa: PLC0415  (it slows down whatever comes after)

        steps()
        tracemalloc.start()
        steps()
        return state + tracemalloc.get_traced_memory()[1]
    from simsfl.footprint import peak_tensor_bytes  # noqa: PLC0415  (of one runtime)

    return state + peak_tensor_bytes(steps)


def peak_flops(runtime: str) -> float:
    """Floating-point operations a second of a large matrix product, the most that this machine does."""
    if runtime == "torch":
        import torch  # noqa: PLC0415  (of one runtime)

        one, product = torch.ones(SQUARE, SQUARE), torch.mm
    else:
        one, product = np.ones((SQUARE, SQUARE), dtype=np.float32), np.matmul
    best = float("inf")
    for _ in range(TRIES + 1):
        begin = time.perf_counter()
        product(one, one)
        best = min(best, time.perf_counter() - begin)
    return 2 * SQUARE**3 / best


def carry_out(job: dict[str, Any]) -> None:
    """The whole of it: see the events."""
    if job["runtime"] == "torch" and job["threads"]:
        import torch  # noqa: PLC0415  (of one runtime)

        torch.set_num_threads(job["threads"])
    trace = Trace(job["trace"])
    client, memory = first_steps(trace, job)
    compare = verify(client, trace)
    say("verified", activations=compare.activations, weights=compare.weights, versions=versions(job["runtime"]))
    wait()
    say("worked", memory=memory, **work(client, trace, job["seconds"]))
    wait()
    say("done", tensor_bytes=tensor_bytes(client, trace, job["runtime"]), peak_flops=peak_flops(job["runtime"]))


def versions(runtime: str) -> dict[str, Any]:
    """Of what computes, and on how many threads."""
    found: dict[str, Any] = {"numpy": np.__version__}
    if runtime == "torch":
        import torch  # noqa: PLC0415  (of one runtime)

        found |= {"torch": torch.__version__, "threads": torch.get_num_threads()}
    return found


def main(argv: Sequence[str]) -> int:
    """A job as JSON; the exit code."""
    try:
        carry_out(json.loads(argv[0]))
    except (ValueError, OSError, ImportError) as error:
        return fail(error)
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
