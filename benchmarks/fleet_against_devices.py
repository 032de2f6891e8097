"""Compare ``simsfl fleet`` with a real run on this machine: ``python benchmarks/fleet_against_devices.py [FLAGS]``.

Three processes are the devices of `server.py`, over loopback. The prediction has one group of three, whose profile is
measured while three of them compute at once, as in the run; the time of the server's step is that of `bench.py`. Both
sides are measured one after the other, so that other load on the machine is about the same. The second figure is the
wall time of training, without the first round, in which everything starts. Nothing is asserted; the comparison is
printed, with the load of the machine.
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
_RUN = ("--preset", "laptop", "--dataset", "shapes", "--clients", "3", "--local-epochs", "0.02", "--precision", "fp32")
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
    with tempfile.TemporaryDirectory() as scratch:
        folder, own = Path(scratch), list(flags or _RUN)
        _done("run", *own, *_TRAINING, "1", "--out", folder / "recorded", "--record-trace", folder / "client.trace")
        load = os.getloadavg()[0]
        step_ms = _server_ms(folder, own)
        _measure_devices(folder)
        predicted = _predicted(folder, own, step_ms)
        real = _real_run(folder, own)
    steps = predicted["steps"]
    print(f"load of the machine: {load:.1f} before, {os.getloadavg()[0]:.1f} after")
    print(
        f"a device's step: {1000 * predicted['device']:.1f} ms; the server's: {step_ms:.1f} ms; {steps} steps a round"
    )
    print(
        f"predicted: {predicted['seconds']:.2f} s a round; real: {real:.2f} s; {predicted['seconds'] / real - 1:+.0%}"
    )
    return 0


def _start(program: str, *arguments: object, log: Path | None = None) -> subprocess.Popen[str]:
    """Start a program on one thread; it writes into a log, or what it prints can be read."""
    output = log.open("w") if log else subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, _ROOT / door(program), *map(str, arguments)],
        env=environment() | {"OMP_NUM_THREADS": "1"},
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


def _server_ms(folder: Path, flags: Sequence[str]) -> float:
    """Return the milliseconds of the server's part of a step."""
    skipped = ("--precision", "fp32")  # that of the engine, by default
    own = [flag for flag in flags if flag not in skipped]
    _done("bench", *own, "--engines", "fused", "--steps", 20, "--json", folder / "bench.json")
    content: Any = json.loads((folder / "bench.json").read_text())
    return 1000 * content["engines"]["fused"]["seconds"]["server"]["median"]


def _measure_devices(folder: Path) -> None:
    """Measure three devices at once, and write the result of the one in the middle as ``result.json``."""
    outs = [folder / f"device-{number}" for number in range(_DEVICES)]
    what = ("--replay", folder / "client.trace", "--seconds", _SECONDS, "--meter", "none", "--threads", 1)
    for process in [_start("pi-bench", *what, "--out", out) for out in outs]:
        process.communicate()
    results = [json.loads((out / "result.json").read_text()) for out in outs]
    middle = sorted(results, key=lambda result: result["latency"]["step"]["mean"])[_DEVICES // 2]
    (folder / "result.json").write_text(json.dumps(middle))


def _predicted(folder: Path, flags: Sequence[str], step_ms: float) -> dict[str, float]:
    """Return what the fleet's clock says of a round: its seconds, and its steps, and the seconds of a device's step."""
    (folder / "fleet.toml").write_text(_FLEET.format(step_ms=step_ms))
    _done("fleet", folder / "recorded", "--fleet", folder / "fleet.toml", "--out", folder / "told")
    told = json.loads((folder / "told" / "fleet.json").read_text())
    steps = sum(
        json.loads(line)["event"] == "step" for line in (folder / "recorded" / "metrics.jsonl").read_text().splitlines()
    )
    return {"seconds": 3600 * told["hours"], "steps": steps, "device": told["groups"][0]["step_seconds"]}


def _real_run(folder: Path, flags: Sequence[str]) -> float:
    """Return the mean seconds of a round of a run with real devices, without its first round."""
    out, at = folder / "run", f"127.0.0.1:{_PORT}"
    device = ("--devices", _DEVICES, "--insecure", "--listen", at)
    server = _start("server", *flags, *_TRAINING, _ROUNDS, "--out", out, *device, log=folder / "server.log")
    clients = [
        _start(
            "client",
            "--server",
            at,
            "--insecure",
            "--threads",
            1,
            "--out",
            folder / f"client-{number}",
            log=folder / f"client-{number}.log",
        )
        for number in range(_DEVICES)
    ]
    ends: list[float] = []
    while server.poll() is None and len(ends) < _ROUNDS:
        done = (out / "metrics.jsonl").read_text().count('"event": "round"') if (out / "metrics.jsonl").exists() else 0
        ends += [time.monotonic()] * (done - len(ends))
        time.sleep(0.02)
    for process in (server, *clients):
        process.wait()
    if server.returncode:
        raise RuntimeError(f"server failed: {(folder / 'server.log').read_text()}")
    return (ends[-1] - ends[0]) / (len(ends) - 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
