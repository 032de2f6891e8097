"""The server and its devices as programs with keys: the result is the simulation's, even if a device is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from simsfl.hw_profile.devices import keys
from tests.conftest import flags
from tests.hw_profile.serving import EVERYONE, LONG

PROGRAMS = Path(__file__).parents[2] / "hw_profile"


def start(program, *arguments, log):
    """Start a program of ``hw_profile/`` that writes into a log; return its process."""
    with log.open("w") as output:
        return subprocess.Popen(
            [sys.executable, PROGRAMS / program, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )


@contextmanager
def programs(npz, folder, **settings):
    """Start a server and three devices as programs, with keys; kill all of them when the context ends."""
    assert keys.main(["--devices", "3", "--out", str(folder / "keys")]) == 0
    argv = flags(
        dataset=npz, out=folder / "run", **settings, dashboard="off", device_clients="1,3,5", listen="127.0.0.1:0"
    )
    processes = {
        "server": start("server.py", *argv, "--key", folder / "keys" / "server.key", log=folder / "server.log")
    }

    def device(number, name):
        address = until(folder / "server.log", r"listening at").rpartition(" ")[2]
        key = folder / "keys" / f"device-{number}.key"
        extra = ["--server", address, "--key", key, "--out", folder / name, "--client-id", 2 * number - 1]
        processes[name] = start("client.py", *extra, log=folder / f"{name}.log")
        return processes[name]

    try:
        for number in (1, 2, 3):
            device(number, f"device-{number}")
        yield processes, device
    finally:
        for process in processes.values():
            process.kill()
            process.wait(LONG)


def until(log, text):
    """Wait for a line with this text in a log, and return the line."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        for line in log.read_text().splitlines() if log.exists() else ():
            if text in line:
                return line
        time.sleep(0.02)
    raise AssertionError(f"{text} is not in {log}: {log.read_text()}")


@pytest.mark.slow
def test_three_processes_give_the_simulations_metrics(npz, tmp_path):
    settings = {**EVERYONE, "engine": "loop", "rounds": 2}
    with programs(npz, tmp_path, **settings) as (processes, _):
        for name, process in processes.items():
            assert process.wait(90) == 0, (tmp_path / f"{name}.log").read_text()
    alone = flags(dataset=npz, out=tmp_path / "alone", **settings, dashboard="off")
    assert start("../experiments/run.py", *alone, log=tmp_path / "alone.log").wait(90) == 0
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == (tmp_path / "alone" / "metrics.jsonl").read_bytes()
    assert "0 frames refused, 0 answers missed" in (tmp_path / "server.log").read_text()
    for number in (1, 2, 3):
        result = json.loads((tmp_path / f"device-{number}" / "result.json").read_text())
        assert result["client"] == 2 * number - 1
        assert result["steps"] == 2 * 5
        assert set(result["step"]) == {"compute", "network", "server"}


@pytest.mark.slow
def test_a_run_goes_on_without_a_killed_process_until_another_takes_its_place(npz, tmp_path):
    settings = {**EVERYONE, "rounds": 60, "eval_every": 0, "checkpoint_every": 60, "device_timeout": 20}
    with programs(npz, tmp_path, **settings) as (processes, device):
        until(tmp_path / "server.log", "round 1/")
        processes["device-2"].send_signal(signal.SIGKILL)
        until(tmp_path / "run" / "devices.log", "client 3 is gone")
        device(2, "again")
        for name, process in processes.items():
            code = -signal.SIGKILL if name == "device-2" else 0
            assert process.wait(120) == code, (tmp_path / f"{name}.log").read_text()
    text = (tmp_path / "server.log").read_text()
    assert "round 60/60" in text
    assert "0 frames refused" in text
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    absences = [record for record in records if record["event"] == "absence"]
    assert absences[0]["clients"] == [3]
    last = max(record["round"] for record in absences)
    assert last < 60
    again = json.loads((tmp_path / "again" / "result.json").read_text())
    assert 0 < again["steps"] < 60 * 5
