"""The program that trains: its run directory, its profile, and what it does when a loss is not finite."""

import json
import re
import shlex
from dataclasses import replace

import pytest
import torch

from simsfl import RunConfig, Simulation
from simsfl.algorithm import step
from simsfl.cli import run
from simsfl.cli.report import program as report
from simsfl.runs.metrics_log import read_records
from tests.conftest import TINY, flags

SUMMARY_KEYS = [
    "preset",
    "method",
    "dataset",
    "clients",
    "cohort",
    "rounds",
    "steps",
    "loss",
    "contrast_top1",
    "knn_top1",
    "output_std",
    "linear_top1",
    "seconds",
    "client_steps_per_second",
    "images_per_second",
    "peak_memory_bytes",
    "bytes_up_per_client",
    "bytes_down_per_client",
    "client_flops_per_step",
]
"""Keys that ``summary.json`` must have."""


def test_run_directory(npz, tmp_path, capfd):
    out = tmp_path / "out"
    assert run.main([*flags(dataset=npz, out=out, **TINY), "--dashboard", "off", "--linear-probe"]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert set(SUMMARY_KEYS) <= summary.keys()
    assert summary["steps"] == 15
    assert 0 <= summary["linear_top1"] <= 100
    records = [record for record, _ in read_records(out / "metrics.jsonl")]
    assert {record["event"] for record in records} == {"step", "round", "evaluation", "probe"}
    assert records[-2]["loss"] == summary["loss"]
    recorded = json.loads((out / "config.json").read_text())
    config = RunConfig.load(out / "config.json")
    assert config.cohort == 3
    assert config.dataset == str(npz)
    assert recorded["versions"]["torch"] == torch.__version__
    assert len(recorded["dataset"]["sha256"]) == 64
    output = capfd.readouterr().out
    for word in ("preset", "dataset", "device", "engine", str(out / "summary.json")):
        assert word in output
    assert sum(line.startswith("round ") for line in output.splitlines()) == 3

    again = tmp_path / "again"
    assert run.main(["--config", str(out / "config.json"), "--out", str(again), "--dashboard", "off"]) == 0
    assert (again / "metrics.jsonl").read_bytes() == (out / "metrics.jsonl").read_bytes()


def test_the_work_of_clients_is_that_of_their_objective(npz, tmp_path):
    """MoCo takes two passes forward and one back, SimCLR two and two, and labels one and one."""
    work = {}
    for objective in ("moco", "simclr", "supervised"):
        settings = {**TINY, "rounds": 1, "eval_every": 0, "objective": objective}
        if objective != "moco":
            del settings["queue_length"]
        if objective == "supervised":
            del settings["key_dim"]
        out = tmp_path / objective
        assert run.main([*flags(dataset=npz, out=out, **settings), "--dashboard", "off"]) == 0
        work[objective] = json.loads((out / "summary.json").read_text())["client_flops_per_step"]
    assert 2 * work["supervised"] == work["simclr"] > work["moco"] > work["supervised"]


def test_commands_are_printed_on_lines_of_their_own_that_can_be_pasted(npz, tmp_path, monkeypatch, capfd):
    """In a terminal of 80 columns, whatever the run directory is called."""
    monkeypatch.setenv("COLUMNS", "80")
    out, trace = tmp_path / f"a run with a long name {'x' * 80}", tmp_path / "a trace"
    argv = flags(dataset=npz, out=out, record_trace=trace, **TINY | {"rounds": 1}, dashboard="off")
    assert run.main(argv) == 0
    lines = capfd.readouterr().out.splitlines()
    commands = [shlex.split(line) for line in lines if line.startswith("simsfl ")]
    assert commands == [["simsfl", "report", str(out)], ["simsfl", "pi-bench", "--replay", str(trace)]]
    assert report.main(commands[0][2:]) == 0


def test_why_the_batch_size_is_small_is_said_at_the_start_again_later_and_in_the_report(npz, tmp_path, capfd):
    out, settings = tmp_path / "out", {name: value for name, value in TINY.items() if name != "batch_size"}
    settings |= {"partition": "dirichlet", "alpha": 0.3, "clients": 4}
    assert run.main([*flags(dataset=npz, out=out, **settings), "--dashboard", "off"]) == 0
    (line,) = [line for line in capfd.readouterr().out.splitlines() if line.startswith("schedule")]
    reason = re.search(r"(\d+) images? per client and step \(by rule 25, but client \d holds only \1 images?\)", line)
    assert reason
    (out / "summary.json").unlink()
    assert run.main(["--resume", str(out), "--dashboard", "off"]) == 0
    assert reason[0] in capfd.readouterr().out
    assert report.main([str(out)]) == 0
    assert reason[0].split("step ")[1] in (out / "report.md").read_text()


def test_a_profile_names_the_phases(npz, tmp_path, capfd):
    out = tmp_path / "out"
    argv = [*flags(dataset=npz, out=out, **TINY), "--dashboard", "off", "--profile", "4"]
    assert run.main(argv) == 0
    names = [event.get("name") for event in json.loads((out / "trace.json").read_text())["traceEvents"]]
    assert [names.count(phase) for phase in ("client forward", "server", "client backward")] == [4] * 3
    assert names.count("data") >= 4  # drawing a round's plan is in this phase, too
    assert "trace.json" in capfd.readouterr().out


@pytest.mark.parametrize("poisoned", [0, 2])
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(npz, tmp_path, capfd, monkeypatch, poisoned):
    original, calls = step.train_step, []

    def train_step(*arguments):
        outcome = original(*arguments)
        calls.append(1)
        return replace(outcome, loss=outcome.loss * float("nan")) if len(calls) > 5 + poisoned else outcome

    monkeypatch.setattr(step, "train_step", train_step)
    out = tmp_path / "out"
    assert run.main([*flags(dataset=npz, out=out, **TINY), "--dashboard", "off"]) == 1
    error = capfd.readouterr().err
    assert error == (
        f"error: loss is nan in round 2, step {poisoned + 1}: training diverged with --lr 0.06; begin a new run with a "
        f"lower rate, such as --lr 0.006; the last good checkpoint is kept in {out / 'checkpoints'}\n"
    )
    manifest = json.loads((out / "checkpoints" / "manifest.json").read_text())
    assert manifest["checkpoints"][0]["meta"]["round"] == 1
    simulation = Simulation.load(out)
    assert simulation.progress.round_index == 1
    assert simulation.damaged == []
    assert json.loads((out / "live.json").read_text())["activity"] == "failed"
