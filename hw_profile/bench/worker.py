"""The measured process: a client's work on one runtime, and nothing else.

``pi_bench.py`` starts it with a job as JSON, reads what it says as JSON lines, and writes a line whenever it is to go
on: so that nothing of the measuring is in its memory or on its threads.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from simsfl.hw_profile.meters.stopwatch import Stopwatch, Times
from simsfl.hw_profile.runtimes.client_work import Comparison, import_runtime, make_client, perform, state_of, versions
from simsfl.runs.client_trace import Trace, Visit
from simsfl.ui.arguments import fail

REPORT_SECONDS = 0.1
"""How often progress is told."""
FEW = 3
"""Steps in which memory has been as high as it gets."""
SQUARE, TRIES = 768, 5
"""Matrices whose product shows the machine's peak; the best of so many."""


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
    """The most it has been since `forget_peak`."""
    found = status()
    return found["VmHWM"] - found["RssFile"] if {"VmHWM", "RssFile"} <= found.keys() else None


def status() -> dict[str, int]:
    """The sizes in /proc/self/status, in bytes."""
    with suppress(OSError):
        lines = [line.split() for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines()]
        return {line[0].rstrip(":"): 1024 * int(line[1]) for line in lines if line[-1] == "kB"}
    return {}


def forget_peak() -> bool:
    """Give free memory back, so that taking it again counts, and start anew; whether the system lets us (Linux)."""
    with suppress(AttributeError, OSError):  # the C library of Linux has it
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def first_steps(trace: Trace, job: dict[str, Any]) -> tuple[Any, dict[str, int | None]]:
    """Make the client and let it do a few steps; and what that took of the process's memory."""
    visit = trace.visits[0]
    _ = visit.pixels, visit.views, visit.lr, visit.begin, visit.checksums, visit.syncs  # in memory before it counts
    import_runtime(job["runtime"])
    told = forget_peak()
    before = resident()
    client = make_client(trace.about, job["runtime"], precision=job["dtype"], compile=job["compile"])
    for step in perform(client, trace, visit, untimed, None):
        if step == FEW - 1:
            break
    after = peak()
    return client, {"idle": before, "above_idle": after - before if told and after and before else None}


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
    watch, steps = Stopwatch(), Times()
    started, before = time.time(), 0.0
    begin = told = time.monotonic()
    for visit in cycle(trace.visits):
        for _ in perform(client, trace, visit, watch, None):
            now = time.monotonic()
            steps.add(watch.total - before)
            before = watch.total
            if now - told > REPORT_SECONDS:
                told = now
                say("working", steps=steps.count, seconds=now - begin, latest=watch.latest())
            if now - begin >= seconds:
                break
        if time.monotonic() - begin >= seconds:
            break
    return {
        "begin": started,
        "end": time.time(),
        "steps": steps.count,
        "latency": {name: own.spread() for name, own in {"step": steps, **watch.phases}.items()},
    }


def tensor_bytes(client: Any, trace: Trace, runtime: str) -> int:
    """The most that arrays or tensors took in a few steps, with what the client keeps, and with what comes in."""
    visit: Visit = trace.visits[0]
    kept = state_of(client)
    if not visit.learns:
        kept.pop("velocity")
    state = sum(array.nbytes for array in kept.values())

    def steps() -> None:
        for step in perform(client, trace, visit, untimed, None):
            if step == FEW - 1:
                break

    if runtime == "lean":
        import tracemalloc  # noqa: PLC0415  (of one runtime)

        steps()
        tracemalloc.start()
        steps()
        arrays = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return state + client.gradient.nbytes * visit.learns + arrays
    from simsfl.cost.measured import peak_tensor_bytes  # noqa: PLC0415  (of one runtime)

    incoming = visit.gradient(0).nbytes if visit.learns else 0  # an array, which PyTorch does not count
    return state + incoming + peak_tensor_bytes(steps)


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
    try:
        client, memory = first_steps(trace, job)
    except (ValueError, OSError):
        raise
    except Exception as error:  # of whatever kind TorchInductor's are, or what a strange trace leads to
        what = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        if job["compile"]:
            raise ValueError(f"compile: {what}; allowed: with a C++ compiler (g++), or without --compile") from error
        raise trace.wrong(f"cannot be replayed ({what})") from error
    compare = verify(client, trace)
    say("verified", activations=compare.activations, weights=compare.weights, versions=versions(job["runtime"]))
    wait()
    say("worked", memory=memory, **work(client, trace, job["seconds"]))
    wait()
    say("done", tensor_bytes=tensor_bytes(client, trace, job["runtime"]), peak_flops=peak_flops(job["runtime"]))


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
