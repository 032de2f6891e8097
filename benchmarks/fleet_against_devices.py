"""Compare ``simsfl fleet`` with a real run on this machine: ``python benchmarks/fleet_against_devices.py [FLAGS]``.

Three processes are the devices of `server.py`, over loopback. `simsfl fleet` predicts what a step takes one group of
three, twice: from a profile that is measured before, while three of them compute at once, and from the times that the
devices have measured in the run, which says how right the clock is by itself. `server.py` simulates the clients that
are devices, too, while it waits for them, so its own part of a step is the mean time of a step without devices, times
the share that the server has of it in `bench.py`. All is measured one after the other, so that other load is about the
same. The real time is that of training, without the first round, in which everything starts. Nothing is asserted; all
is printed, with the load of the machine. ``--lean`` has the devices compute without PyTorch, as they do where no flag
is given.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from simsfl.system.programs import door, environment

_ROOT = Path(__file__).parent.parent
_RUN = ("--preset", "laptop", "--cut-layer", "3", "--dataset", "shapes", "--clients", "3", "--batch-size", "16")
_RUN = (*_RUN, "--local-epochs", "0.01")
"""Flags of the run unless others are given."""
_TRAINING = (
    "--eval-every",
    "0",
    "--knn-bank",
    "1000",
    "--knn-test",
    "200",
    "--no-linear-probe",
    "--dashboard",
    "off",
    "--rounds",
)
_DEVICES, _ROUNDS, _PORT = 3, 5, 5599
_SECONDS, _PATIENCE = 8.0, 60.0
"""Seconds of a device's timed work, and those in which it has to end after the run."""
_FLEET = """
[server]
step_ms = {step_ms}

[[group]]
name = "this machine"
share = 1.0
device = "result.json"
up_mbit_s = 1e6
down_mbit_s = 1e6
"""


def main(flags: Sequence[str]) -> int:
    """Measure both, and print them; return the exit code."""
    own = [flag for flag in flags if flag != "--lean"] or _RUN
    runtime, load = "lean" if "--lean" in flags or not flags else "torch", os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        simulated, steps = _trained(folder / "alone", "run", *own, "--record-trace", folder / "client.trace")
        _done("bench", *own, "--engines", "fused", "--steps", 20, "--json", folder / "bench.json")
        parts: Any = json.loads((folder / "bench.json").read_text())["engines"]["fused"]["seconds"]
        step_ms = 1000 * simulated / steps * parts["server"]["median"] / parts["step"]["median"]
        profile = _middle([_result(own) for own in _measured_devices(folder, runtime)])
        real, clients = _with_devices(folder, own, runtime)
        latest = profile | {"latency": _middle([_result(out) for out in clients])["latency"]}
        print(f"load of the machine: {load:.1f} before, {os.getloadavg()[0]:.1f} after; devices: {runtime}")
        print(f"real: {1000 * real / steps:.0f} ms a step; the server's own part: {step_ms:.0f} ms")
        for which, result in (("before", profile), ("in the run", latest)):
            told = _told(folder, result, step_ms)
            seconds, device = 3600 * told["hours"] / _ROUNDS, told["groups"][0]["step_seconds"]
            predicted = f"{1000 * seconds / steps:.0f} ms a step, {seconds / real - 1:+.0%}"
            print(f"predicted from devices as measured {which} ({1000 * device:.0f} ms): {predicted}")
    return 0


def _told(folder: Path, result: Any, step_ms: float) -> Any:
    """Return what `simsfl fleet` tells of the run without devices, for devices with some result of `pi_bench.py`."""
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "fleet.toml").write_text(_FLEET.format(step_ms=step_ms))
    _done("fleet", folder / "alone", "--fleet", folder / "fleet.toml", "--out", folder / "told")
    return json.loads((folder / "told" / "fleet.json").read_text())


def _result(out: Path) -> Any:
    """Return the result in a directory."""
    return json.loads((out / "result.json").read_text())


def _middle(results: Sequence[Any]) -> Any:
    """Return the one of some results whose phases take neither the longest nor the shortest time."""
    return sorted(results, key=lambda one: sum(own["mean"] for own in one["latency"].values()))[len(results) // 2]


def _start(program: str, *arguments: object, log: Path | None = None) -> subprocess.Popen[str]:
    """Start a program on one thread; it writes into a log, or what it prints can be read."""
    output = log.open("w") if log else subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, _ROOT / door(program), *map(str, arguments)],
        env=environment() | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
        stdout=output,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _done(program: str, *arguments: object) -> None:
    """Run a program to its end; raise a RuntimeError with what it printed if it fails."""
    process = _start(program, *arguments)
    printed, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{program} failed: {printed}")


def _trained(
    out: Path, program: str, *arguments: object, clients: Sequence[subprocess.Popen[str]] = ()
) -> tuple[float, int]:
    """Train, and return the mean seconds of a round without the first, and the number of its steps.

    Raises:
        RuntimeError: the program failed, or one of the clients did.
    """
    process = _start(program, *arguments, *_TRAINING, _ROUNDS, "--out", out, log=(log := out.with_suffix(".log")))
    ends: list[float] = []
    while process.poll() is None:
        text = metrics.read_text() if (metrics := out / "metrics.jsonl").exists() else ""
        ends += [time.monotonic()] * (text.count('"event": "round"') - len(ends))
        if any(client.poll() for client in clients):
            process.kill()
        time.sleep(0.01)
    if process.returncode:
        raise RuntimeError(f"{program} failed: {log.read_text()}")
    return (ends[-1] - ends[0]) / (len(ends) - 1), text.count('"event": "step"') // _ROUNDS


def _measured_devices(folder: Path, runtime: str) -> list[Path]:
    """Measure three devices at once; return the directories of their results."""
    outs = [folder / f"device-{number}" for number in range(_DEVICES)]
    what = ("--replay", folder / "client.trace", "--seconds", _SECONDS, "--meter", "none", "--threads", 1)
    for process in [_start("pi-bench", *what, "--runtime", runtime, "--out", out) for out in outs]:
        process.communicate()
    return outs


def _with_devices(folder: Path, flags: Sequence[str], runtime: str) -> tuple[float, list[Path]]:
    """Return the mean seconds of a round whose clients are devices, and the directories of the devices' results."""
    at = f"127.0.0.1:{_PORT}"
    what = ("--server", at, "--insecure", "--runtime", runtime)
    outs = [folder / f"client-{number}" for number in range(_DEVICES)]
    clients = [_start("client", *what, "--out", out, log=out.with_suffix(".log")) for out in outs]
    try:
        what = ("--devices", _DEVICES, "--insecure", "--listen", at)
        seconds, _ = _trained(folder / "run", "server", *flags, *what, clients=clients)
        for client in clients:
            client.wait(_PATIENCE)
    finally:
        for client in clients:
            client.kill()
            client.wait()
    return seconds, outs


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except RuntimeError as failed:
        sys.exit(str(failed))
