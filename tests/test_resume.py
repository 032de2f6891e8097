"""A run that is killed, stopped or damaged and then resumed ends like one that never was."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import TINY, flags

import run

RUN = Path(run.__file__)
SLOW = TINY | {"rounds": 12, "eval_every": 3, "checkpoint_every": 2, "dashboard": "off"}


def start(*argv):
    """The program in a process of its own, as a user runs it."""
    return subprocess.Popen(
        [sys.executable, str(RUN), *map(str, argv)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def lines(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for(process, condition):
    while not condition():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.005)


def final(directory):
    """The metrics, and the final checkpoint's file name and checksum (of tensors alone)."""
    newest = json.loads((directory / "checkpoints" / "manifest.json").read_text())["checkpoints"][0]
    return (directory / "metrics.jsonl").read_bytes(), newest["file"], newest["sha256"]


@pytest.fixture(scope="module")
def uninterrupted(npz, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    process = start(*flags(dataset=npz, out=out, **SLOW))
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return final(out)


def test_killed_again_and_again(npz, tmp_path, uninterrupted):
    out = tmp_path / "run"
    argv = flags(dataset=npz, out=out, **SLOW)
    for lines_before_the_kill in (12, 35, 60):
        process = start(*argv)
        wait_for(process, lambda n=lines_before_the_kill: lines(out / "metrics.jsonl") >= n)
        process.kill()
        process.communicate()
        assert not (out / "summary.json").exists()
        argv = ["--resume", out]
    process = start(*argv)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert final(out) == uninterrupted
    assert (out / "summary.json").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_in_the_middle_of_a_round(number, npz, tmp_path, uninterrupted):
    out = tmp_path / "run"
    process = start(*flags(dataset=npz, out=out, **SLOW))
    wait_for(process, lambda: lines(out / "metrics.jsonl") >= 30)
    process.send_signal(number)
    output, _ = process.communicate()
    assert process.returncode == 128 + number, output
    assert f"--resume {out}" in output
    assert "Traceback" not in output
    assert json.loads((out / "live.json").read_text())["state"] == "stopped"
    process = start("--resume", out)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert final(out) == uninterrupted


def test_a_damaged_newest_checkpoint_is_reported_and_the_one_before_used(npz, tmp_path, uninterrupted):
    out = tmp_path / "run"
    process = start(*flags(dataset=npz, out=out, **SLOW))
    wait_for(process, lambda: len(list((out / "checkpoints").glob("round-00000[46]*"))) == 2)
    process.kill()
    process.communicate()
    newest = json.loads((out / "checkpoints" / "manifest.json").read_text())["checkpoints"][0]["file"]
    damaged = bytearray((out / "checkpoints" / newest).read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (out / "checkpoints" / newest).write_bytes(damaged)
    process = start("--resume", out)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert newest in output.replace("\n", "")
    assert "damaged" in output
    assert final(out) == uninterrupted


def test_resuming_a_finished_run_changes_nothing(npz, tmp_path):
    out = tmp_path / "run"
    assert run.main(flags(dataset=npz, out=out, **TINY, dashboard="off")) == 0
    before = final(out)
    summary = json.loads((out / "summary.json").read_text())
    assert run.main(["--resume", str(out), "--dashboard", "off"]) == 0
    assert final(out) == before
    assert json.loads((out / "summary.json").read_text())["knn_top1"] == summary["knn_top1"]
