"""A run that is killed, stopped or damaged and then resumed ends like one that never was."""

import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from simsfl import RunConfig, Simulation
from simsfl.cli import api, launch, run, watch
from simsfl.cli.report import program as report
from simsfl.cli.session import Session
from simsfl.rounds import saving
from simsfl.rounds.progress import NonFiniteLossError
from simsfl.runs import metrics_log
from simsfl.runs.checkpoint import SEAL
from simsfl.runs.directory import RunDirectory
from simsfl.runs.metrics import AbsenceCount
from simsfl.system.console import Output
from simsfl.system.signals import Stop
from tests.conftest import TINY, flags

RUN = Path(__file__).parents[2] / "experiments" / "run.py"
SLOW = TINY | {"rounds": 12, "eval_every": 3, "checkpoint_every": 2, "measure_divergence": True, "dashboard": "off"}


def start(*argv):
    """Start the program in a process of its own, as a user does."""
    return subprocess.Popen(
        [sys.executable, str(RUN), *map(str, argv)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def lines(path):
    """Return the number of lines in a file, 0 if there is none."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for(process, condition):
    """Wait until a condition holds, as long as the process runs."""
    while not condition():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.005)


def final(directory):
    """Return the bytes of the metrics, and name and bytes of the final checkpoint, which holds only tensors."""
    newest = json.loads((directory / "checkpoints" / "manifest.json").read_text())["checkpoints"][0]
    weights = (directory / "checkpoints" / newest["file"]).read_bytes()
    assert hashlib.sha256(weights).hexdigest() == newest["sha256"]
    return (directory / "metrics.jsonl").read_bytes(), newest["file"], weights


@pytest.fixture(scope="session")
def uninterrupted(npz, tmp_path_factory):
    """Return what `final` returns of a run that is not interrupted."""
    out = tmp_path_factory.mktemp("whole") / "run"
    process = start(*flags(dataset=npz, out=out, **SLOW))
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return final(out)


@pytest.mark.slow
def test_killed_again_and_again(npz, tmp_path, uninterrupted):
    out = tmp_path / "run"
    argv = flags(dataset=npz, out=out, **SLOW)
    for lines_before_the_kill in (12, 45):
        process = start(*argv)
        wait_for(process, lambda n=lines_before_the_kill: lines(out / "metrics.jsonl") >= n)
        process.kill()
        process.communicate()
        assert not (out / "summary.json").exists()
        argv = ["--resume", out]
    assert run.main(["--resume", str(out)]) == 0
    assert final(out) == uninterrupted
    assert (out / "summary.json").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_stopped_in_the_middle_of_a_round(number, npz, tmp_path, uninterrupted):
    out = tmp_path / "run"
    process = start(*flags(dataset=npz, out=out, **SLOW))
    wait_for(process, lambda: lines(out / "metrics.jsonl") >= 30)
    process.send_signal(number)
    output, _ = process.communicate()
    assert process.returncode == 128 + number, output
    assert f"--resume {out}" in output
    assert "Traceback" not in output
    assert json.loads((out / "live.json").read_text())["activity"] == "stopped"
    assert run.main(["--resume", str(out)]) == 0
    assert final(out) == uninterrupted


@pytest.mark.slow
def test_stopped_in_an_evaluation(npz, tmp_path, monkeypatch, capsys):
    """The run stops at once, without finishing the evaluation, and does it after resuming."""
    whole, out = tmp_path / "whole", tmp_path / "run"
    assert run.main(flags(dataset=npz, out=whole, **SLOW)) == 0
    honest = Session._watch

    def watch(self, title, items):
        if title == "kNN" and self.simulation.progress.finished_rounds == 3:
            self.stop.received = signal.SIGINT
        yield from honest(self, title, items)

    with monkeypatch.context() as patch:
        patch.setattr(Session, "_watch", watch)
        assert run.main(flags(dataset=npz, out=out, **SLOW)) == 130
    assert json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])["event"] == "step"
    assert run.main(["--resume", str(out)]) == 0
    assert "after round 2, step 5" in capsys.readouterr().out
    assert final(out) == final(whole)


@pytest.mark.slow
def test_a_run_of_a_version_that_recorded_no_spread_goes_on_and_is_shown(npz, tmp_path, monkeypatch, capsys):
    whole, out = tmp_path / "whole", tmp_path / "run"
    assert run.main(flags(dataset=npz, out=whole, **SLOW)) == 0
    honest, to_dict = Session._take, metrics_log.to_dict

    def older(record):
        return {name: value for name, value in to_dict(record).items() if name != "output_std"}

    def take(self, record):
        honest(self, record)
        if record.event == "step" and record.round == 5:
            self.stop.received = signal.SIGINT

    with monkeypatch.context() as patch:
        patch.setattr(metrics_log, "to_dict", older)
        patch.setattr(Session, "_take", take)
        assert run.main(flags(dataset=npz, out=out, **SLOW)) == 130
    assert "output_std" not in (out / "metrics.jsonl").read_text()
    for _ in ("stopped", "finished"):
        assert report.main([str(out)]) == 0
        assert watch.main([str(out), "--once"]) == 0
        assert run.main(["--resume", str(out)]) == 0
    lines, all_lines = ((path / "metrics.jsonl").read_text().splitlines() for path in (out, whole))
    assert [json.loads(line).get("output_std") for line in lines if "knn_top1" in line][:2] == [None, None]
    for line, expected in zip(lines, all_lines, strict=True):
        assert json.loads(expected) | json.loads(line) == json.loads(expected)
    weights, expected = (load(final(path)[2]) for path in (out, whole))
    for name in set(expected) - {SEAL}:  # which covers the metrics as well
        assert torch.equal(weights[name], expected[name]), name


def test_a_run_has_one_writer(npz, tmp_path, capfd):
    out = tmp_path / "run"
    process = start(*flags(dataset=npz, out=out, **SLOW | {"rounds": 500}))
    wait_for(process, lambda: lines(out / "metrics.jsonl") >= 30)
    for argv, message in (
        (["--resume", out], "resume: another process trains the run in"),
        (flags(dataset=npz, out=out, **TINY, overwrite="")[:-1], "being written to by another process"),
    ):
        capfd.readouterr()
        assert run.main([str(part) for part in argv]) == 2
        assert message in capfd.readouterr().err
    assert report.main([str(out)]) == 0
    process.send_signal(signal.SIGHUP)
    output, _ = process.communicate()
    assert process.returncode == 128 + signal.SIGHUP, output
    assert "Traceback" not in output


def test_a_run_that_is_trained_is_called_so_whatever_its_checkpoints_are_meanwhile(npz, tmp_path, capfd):
    out = tmp_path / "a run"
    Simulation(RunConfig(dataset=str(npz), **TINY)).save(out)
    for checkpoint in (out / "checkpoints").glob("*.safetensors"):
        checkpoint.unlink()  # as the other process does once it has written newer ones
    with metrics_log.MetricsLog(out / "metrics.jsonl"):
        assert run.main(["--resume", str(out)]) == 2
        with pytest.raises(ValueError, match=r"^resume: another process trains the run in"):
            api.resume(out)
    assert capfd.readouterr().err == (
        f"error: resume: another process trains the run in {out} at present; allowed: once that has ended, or simsfl "
        f"watch '{out}' to see it\n"
    )
    assert run.main(flags(dataset=npz, out=out, **TINY)) == 2
    assert f"or --resume '{out}' to go on with it" in capfd.readouterr().err  # as a shell takes it


def test_a_checkpoint_that_is_replaced_while_a_run_is_loaded_is_not_missed(npz, tmp_path, monkeypatch):
    out = tmp_path / "run"
    simulation = Simulation(RunConfig(dataset=str(npz), **TINY))
    simulation.save(out)
    honest, rounds = saving.load_images, simulation.rounds()

    def load_images(config, dataset):
        for _ in islice(rounds, 2):  # as many as are kept, by the process that trains the run
            simulation.save(out)
        return honest(config, dataset)

    monkeypatch.setattr(saving, "load_images", load_images)
    assert Simulation.load(out).progress.round_index == 2


def test_processes_that_ask_at_once_whether_a_run_is_trained_do_not_take_each_other_for_one(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.touch()
    with file.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_SH)  # as another rank does at the same moment
        assert not metrics_log.is_written(file)
    with metrics_log.MetricsLog(file):
        assert metrics_log.is_written(file)


@pytest.mark.slow
def test_a_reader_that_goes_away_stops_the_run_with_a_checkpoint(npz, tmp_path, uninterrupted, capfd):
    out = tmp_path / "run"
    process = start(*flags(dataset=npz, out=out, **SLOW))
    wait_for(process, lambda: process.stdout.readline().startswith("round 2/"))
    process.stdout.close()
    assert process.wait() == 128 + signal.SIGPIPE
    assert lines(out / "metrics.jsonl") < uninterrupted[0].count(b"\n")
    assert run.main(["--resume", str(out)]) == 0
    output = capfd.readouterr().out
    assert "after round" in output
    assert "after round 0, step 0" not in output
    assert final(out) == uninterrupted


def test_a_damaged_newest_checkpoint_is_reported_and_the_one_before_used(npz, tmp_path, uninterrupted, capfd):
    out = tmp_path / "run"
    process = start(*flags(dataset=npz, out=out, **SLOW))
    wait_for(process, lambda: len(list((out / "checkpoints").glob("round-00000[46]*"))) == 2)
    process.kill()
    process.communicate()
    newest = json.loads((out / "checkpoints" / "manifest.json").read_text())["checkpoints"][0]["file"]
    damaged = bytearray((out / "checkpoints" / newest).read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (out / "checkpoints" / newest).write_bytes(damaged)
    assert run.main(["--resume", str(out)]) == 0
    output = "".join(capfd.readouterr())
    assert newest in output.replace("\n", "")
    assert "damaged" in output
    assert final(out) == uninterrupted


def test_resuming_a_finished_run_changes_nothing(npz, tmp_path, capfd):
    out = tmp_path / "run"
    argv = flags(dataset=npz, out=out, **TINY, probe_epochs=1, dashboard="off")
    assert run.main([*argv, "--linear-probe"]) == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert run.main(["--resume", str(out), "--dashboard", "off"]) == 0
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    text = capfd.readouterr().out
    assert "/run is finished" in text
    assert text.count("linear probe") == 2


def test_a_damaged_final_checkpoint_is_made_again(npz, tmp_path, uninterrupted, capfd):
    out = tmp_path / "run"
    assert run.main(flags(dataset=npz, out=out, **TINY, dashboard="off")) == 0
    before = final(out)
    newest = max((out / "checkpoints").glob("*.safetensors"))
    newest.write_bytes(b"damaged")
    assert run.main(["--resume", str(out), "--dashboard", "off"]) == 0
    assert "damaged" in capfd.readouterr().out
    assert final(out) == before


def test_a_run_saved_in_python_is_resumed_by_the_program(npz, tmp_path, capfd):
    """A run that was saved in Python has no ``metrics.jsonl``, and is resumed all the same."""
    simulation = Simulation(RunConfig(**TINY, dataset=str(npz)))
    next(simulation.rounds())
    simulation.save(tmp_path / "run")
    assert run.main(["--resume", str(tmp_path / "run"), "--dashboard", "off"]) == 0
    assert "raw pixels -" in capfd.readouterr().out
    assert Simulation.load(tmp_path / "run").progress.round_index == TINY["rounds"]


def test_saving_over_another_run_is_refused(npz, tmp_path):
    Simulation(RunConfig(**TINY, dataset=str(npz))).save(tmp_path / "run")
    Simulation(RunConfig(**TINY, dataset=str(npz))).save(tmp_path / "run")  # the same run again
    with pytest.raises(ValueError, match=r"out: .* another run"):
        Simulation(RunConfig(**TINY, dataset=str(npz), seed=1)).save(tmp_path / "run")


def test_weights_that_are_not_finite_are_not_saved(npz, tmp_path):
    simulation = Simulation(RunConfig(**TINY, dataset=str(npz)))
    simulation.save(tmp_path / "run")
    next(simulation.rounds())
    simulation.state.clients.online[0] = float("inf")
    with pytest.raises(NonFiniteLossError, match="weights are not finite"):
        simulation.save(tmp_path / "run")
    assert Simulation.load(tmp_path / "run").progress.round_index == 0


def test_runs_of_the_same_second_have_directories_of_their_own(npz, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch.time, "strftime", lambda form: "now")
    for _ in range(3):
        assert run.main([*flags(dataset=npz, **TINY), "--rounds", "1", "--dashboard", "off"]) == 0
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["now-coffee", "now-coffee+2", "now-coffee+3"]


def test_resume_takes_flags_that_agree(npz, tmp_path, monkeypatch):
    out = tmp_path / "run"
    assert run.main(flags(dataset=npz, out=out, **TINY, dashboard="off")) == 0
    monkeypatch.chdir(npz.parent)
    agreeing = ["--dataset", npz.name, "--device", "auto", "--out", str(out), "--clients", "8"]
    assert run.main(["--resume", str(out), "--dashboard", "off", *agreeing]) == 0


def test_absences_are_recorded_once_wherever_a_round_is_interrupted(config, dataset, tmp_path):
    config = replace(config, dropout=0.4, straggler=0.5, straggler_factor=3.0, rounds=2, eval_every=0)
    records = list(Simulation(config, dataset).train())
    assert sum(record.event == "absence" for record in records) > 3
    for position, record in enumerate(records):
        if record.event != "step" or record.round != 2 or record.step > 3:
            continue
        stopped = Simulation(config, dataset)
        list(islice(stopped.train(), position + 1))
        assert stopped.progress.step_index == record.step
        stopped.save(tmp_path / f"{record.step}")
        loaded = Simulation.load(tmp_path / f"{record.step}", dataset)
        assert list(loaded.train()) == records[position + 1 :], record.step


@pytest.mark.parametrize("dropout", [0.0, 0.7])
def test_absences_that_were_not_counted_are_known_where_none_is_recorded(dropout, config, dataset, tmp_path):
    """A run of an earlier version, whose checkpoints say nothing of them, goes on."""
    api.run(replace(config, dropout=dropout, rounds=1, eval_every=0), tmp_path / "run", dataset=dataset)
    simulation = Simulation.load(tmp_path / "run", dataset)
    assert bool(simulation.progress.absent.rounds_missed) == bool(dropout)
    simulation.progress.absent = None
    with Stop() as stop:
        session = Session(simulation, RunDirectory(tmp_path / "run"), Output("off"), stop)
    with session.log:
        assert session.summary().absences == (None if dropout else AbsenceCount())
