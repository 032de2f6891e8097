"""The measured process: a client's work on one runtime, and nothing else.

`measuring` starts it with a job as JSON, reads its events as lines of JSON, and writes a line whenever it may continue.
So nothing of the measuring is in its memory or on its threads.
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

_REPORT_SECONDS = 0.1
"""Seconds between two reports of progress."""
_FEW = 3
"""Number of steps after which memory has reached its peak."""
_SQUARE, _TRIES = 768, 5
"""Side of the square matrices whose product measures the machine's peak, and how often that is tried."""


def _untimed(phase: str) -> nullcontext[None]:
    """Return a context manager that does nothing: the clock of work that is not timed."""
    return nullcontext()


def _say(event: str, **what: Any) -> None:
    """Print an event for the parent process, as a line of JSON."""
    print(json.dumps({"event": event, **what}), flush=True)


def _wait() -> None:
    """Wait until the parent process writes a line; exit if it has ended."""
    if not sys.stdin.readline():
        raise SystemExit(1)


def _resident() -> int | None:
    """Return the bytes of this process's memory without mapped files; None if the system does not report them."""
    found = _status()
    return found.get("RssAnon")


def _peak() -> int | None:
    """Return the most bytes of memory since `_forget_peak` without mapped files; None if not reported."""
    found = _status()
    return found["VmHWM"] - found["RssFile"] if {"VmHWM", "RssFile"} <= found.keys() else None


def _status() -> dict[str, int]:
    """Return the sizes in /proc/self/status, in bytes by name; empty where there is no such file."""
    with suppress(OSError):
        lines = [line.split() for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines()]
        return {line[0].rstrip(":"): 1024 * int(line[1]) for line in lines if line[-1] == "kB"}
    return {}


def _forget_peak() -> bool:
    """Return free memory to the system, so that taking it again counts, and reset the peak.

    The result is whether the peak could be reset, which only Linux allows.
    """
    with suppress(AttributeError, OSError):  # only the C library of Linux has it
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _first_steps(trace: Trace, job: dict[str, Any]) -> tuple[Any, dict[str, int | None]]:
    """Return a client that has done a few steps, and the memory of the process before it and that it added."""
    visit = trace.visits[0]
    _ = visit.pixels, visit.views, visit.lr, visit.begin, visit.checksums, visit.syncs  # read now, so not counted
    import_runtime(job["runtime"])
    is_reset = _forget_peak()
    before = _resident()
    client = make_client(trace.about, job["runtime"], precision=job["dtype"], compile=job["compile"])
    for step in perform(client, trace, visit, _untimed, None):
        if step == _FEW - 1:
            break
    after = _peak()
    return client, {"idle": before, "above_idle": after - before if is_reset and after and before else None}


def _verify(client: Any, trace: Trace) -> Comparison:
    """Do all steps of the trace once, and return the comparison with what is recorded."""
    compare, done = Comparison(), 0
    reported = time.monotonic()
    for visit in trace.visits:
        for _ in perform(client, trace, visit, _untimed, compare):
            done += 1
            if time.monotonic() - reported > _REPORT_SECONDS:
                reported = time.monotonic()
                _say("verifying", done=done, of=trace.steps)
    return compare


def _work(client: Any, trace: Trace, seconds: float) -> dict[str, Any]:
    """Repeat the trace for some seconds, timed.

    Returns:
        Begin and end on the monotonic clock, which all processes of a machine share, the number of steps, and the times
        of the step and of each phase.
    """
    watch, steps, before = Stopwatch(), Times(), 0.0
    begin = reported = time.monotonic()
    for visit in cycle(trace.visits):
        for _ in perform(client, trace, visit, watch, None):
            now = time.monotonic()
            steps.add(watch.total - before)
            before = watch.total
            if now - reported > _REPORT_SECONDS:
                reported = now
                _say("working", steps=steps.count, seconds=now - begin, latest=watch.latest())
            if now - begin >= seconds:
                break
        if time.monotonic() - begin >= seconds:
            break
    return {
        "begin": begin,
        "end": time.monotonic(),
        "steps": steps.count,
        "latency": {name: own.spread() for name, own in {"step": steps, **watch.phases}.items()},
    }


def tensor_bytes(client: Any, trace: Trace, runtime: str) -> int:
    """Return the most bytes that arrays or tensors take in a few steps.

    They include the client's state and the gradient that comes in.
    """
    visit: Visit = trace.visits[0]
    kept = state_of(client)
    if not visit.learns:
        kept.pop("velocity")
    state = sum(array.nbytes for array in kept.values())

    def steps() -> None:
        for step in perform(client, trace, visit, _untimed, None):
            if step == _FEW - 1:
                break

    if runtime == "lean":
        import tracemalloc  # noqa: PLC0415  (only this runtime needs it)

        steps()
        tracemalloc.start()
        steps()
        arrays = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return state + client.gradient.nbytes * visit.learns + arrays
    from simsfl.cost.measured import peak_tensor_bytes  # noqa: PLC0415  (only this runtime needs it)

    incoming = visit.gradient(0).nbytes if visit.learns else 0  # a NumPy array, which PyTorch does not count
    return state + incoming + peak_tensor_bytes(steps)


def _peak_flops(runtime: str) -> float:
    """Return the floating-point operations per second of a large matrix product, the best of several."""
    if runtime == "torch":
        import torch  # noqa: PLC0415  (only this runtime needs it)

        one, product = torch.ones(_SQUARE, _SQUARE), torch.mm
    else:
        one, product = np.ones((_SQUARE, _SQUARE), dtype=np.float32), np.matmul
    best = float("inf")
    for _ in range(_TRIES + 1):
        begin = time.perf_counter()
        product(one, one)
        best = min(best, time.perf_counter() - begin)
    return 2 * _SQUARE**3 / best


def _carry_out(job: dict[str, Any]) -> None:
    """Do a job: verify, time and measure the work, with an event after each of them.

    Raises:
        ValueError: the runtime, the compiler or the trace cannot be used.
        OSError: the trace cannot be read.
    """
    if job["runtime"] == "torch" and job["threads"]:
        import torch  # noqa: PLC0415  (only this runtime needs it)

        torch.set_num_threads(job["threads"])
    trace = Trace(job["trace"])
    try:
        client, memory = _first_steps(trace, job)
    except (ValueError, OSError):
        raise
    except Exception as error:  # TorchInductor's and those from an odd trace are of any kind
        what = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        if job["compile"]:
            raise ValueError(f"compile: {what}; allowed: with a C++ compiler (g++), or without --compile") from error
        raise trace.wrong(f"cannot be replayed ({what})") from error
    compare = _verify(client, trace)
    _say("verified", activations=compare.activations, weights=compare.weights, versions=versions(job["runtime"]))
    _wait()
    _say("worked", memory=memory, **_work(client, trace, job["seconds"]))
    _wait()
    _say("done", tensor_bytes=tensor_bytes(client, trace, job["runtime"]), peak_flops=_peak_flops(job["runtime"]))


def main(argv: Sequence[str]) -> int:
    """Do the job that `argv` holds as JSON, and return the exit code."""
    try:
        _carry_out(json.loads(argv[0]))
    except (ValueError, OSError, ImportError) as error:
        return fail(error)
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
