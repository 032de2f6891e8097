"""Compare ``simsfl fleet`` with a real run on this machine: ``python benchmarks/fleet_against_devices.py [FLAGS]``.

Three processes are the devices of `server.py`, over loopback. The prediction has one group of three, whose profile is
measured while three of them compute at once, as in the run. `server.py` simulates the clients that are devices, too,
while it waits for them, so its own part of a step is the mean time of a step without devices, times the share that the
server has of it in `bench.py`. All is measured one after the other, so that other load is about the same.
The real time is that of training, without the first round, in which everything starts. Nothing is asserted; both are
printed, with the load of the machine. ``--lean`` has the devices compute without PyTorch.
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
_RUN = (*_RUN, "--local-epochs", "0.01", "--lean")
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
_SECONDS = 8.0
"""Seconds of a device's timed work."""
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
    runtime = "lean" if "--lean" in (flags or _RUN) else "torch"
    own, load = [flag for flag in flags or _RUN if flag != "--lean"], os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        simulated, steps = _trained(folder / "alone", "run", *own, "--record-trace", folder / "client.trace")
        _done("bench", *own, "--engines", "fused", "--steps", 20, "--json", folder / "bench.json")
        parts: Any = json.loads((folder / "bench.json").read_text())["engines"]["fused"]["seconds"]
        step_ms = 1000 * simulated / steps * parts["server"]["median"] / parts["step"]["median"]
        _measure_devices(folder, runtime)
        (folder / "fleet.toml").write_text(_FLEET.format(step_ms=step_ms))
        _done("fleet", folder / "alone", "--fleet", folder / "fleet.toml", "--out", folder / "told")
        told = json.loads((folder / "told" / "fleet.json").read_text())
        real, _ = _with_devices(folder, own, runtime)
    predicted, device = 3600 * told["hours"] / _ROUNDS, told["groups"][0]["step_seconds"]
    print(f"load of the machine: {load:.1f} before, {os.getloadavg()[0]:.1f} after; devices: {runtime}")
    print(f"a device's step: {1000 * device:.1f} ms; the server's: {step_ms:.1f} ms; {steps} steps a round")
    print(f"predicted: {predicted:.2f} s a round; real: {real:.2f} s; {predicted / real - 1:+.0%}")
    return 0


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


def _measure_devices(folder: Path, runtime: str) -> None:
    """Measure three devices at once, and write the result of the one in the middle as ``result.json``."""
    outs = [folder / f"device-{number}" for number in range(_DEVICES)]
    what = ("--replay", folder / "client.trace", "--seconds", _SECONDS, "--meter", "none", "--threads", 1)
    what = (*what, "--runtime", runtime)
    for process in [_start("pi-bench", *what, "--out", out) for out in outs]:
        process.communicate()
    results = [json.loads((out / "result.json").read_text()) for out in outs]
    middle = sorted(results, key=lambda result: result["latency"]["step"]["mean"])[_DEVICES // 2]
    (folder / "result.json").write_text(json.dumps(middle))


def _with_devices(folder: Path, flags: Sequence[str], runtime: str) -> tuple[float, int]:
    """Return what `_trained` returns of a run whose three clients are devices."""
    at = f"127.0.0.1:{_PORT}"
    what = ("--server", at, "--insecure", "--runtime", runtime)
    outs = [folder / f"client-{number}" for number in range(_DEVICES)]
    clients = [_start("client", *what, "--out", out, log=out.with_suffix(".log")) for out in outs]
    try:
        what = ("--devices", _DEVICES, "--insecure", "--listen", at)
        return _trained(folder / "run", "server", *flags, *what, clients=clients)
    finally:
        for client in clients:
            client.kill()
            client.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
