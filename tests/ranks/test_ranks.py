"""Several ranks train a run as one process does; they are real processes, which ``torchrun`` starts."""

import json
import os
import platform
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

import simsfl
from simsfl import Simulation
from simsfl.cli import run
from simsfl.cli.ranks import stops_after
from simsfl.config.catalogue import AGGREGATIONS, DEFENCES, OBJECTIVES
from simsfl.runs.metrics import RoundRecord
from simsfl.system.world import RankLostError, World
from simsfl.testing import _images
from tests.conftest import flags
from tests.fleet.conftest import SERVER, group
from tests.ranks.cases import CASES, FEW, config_of
from tests.ranks.worker import whole

ROOT = Path(__file__).parents[2]
SMALL = {
    "preset": "laptop",
    "dataset": "shapes",
    "clients": 8,
    "batch_size": 2,
    "local_epochs": 0.01,
    "width": 4,
    "knn_bank": 100,
    "knn_test": 100,
    "dashboard": "off",
}
"""Flags of a small run."""


def torchrun(size, *argv):
    """Return the command that starts so many ranks of a program."""
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(size),
        *map(str, argv),
    ]


ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "RANK"} | {
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(ROOT),
}
"""Environment of ranks, which share the cores."""


def ranks(size, *argv):
    """Run so many ranks of a program to their end, and return the process."""
    return subprocess.run(
        torchrun(size, *argv), env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )


@contextmanager
def running(words, **streams):
    """Return a context with a process, which is ended with its ranks if a test fails inside."""
    with subprocess.Popen(words, env=ENVIRONMENT, cwd=ROOT, text=True, **streams) as process:
        try:
            yield process
        except BaseException:
            process.terminate()  # torchrun kills ranks that do not end
            raise


def lines_of(text):
    """Return the lines that simsfl has written, among those of ``torchrun``."""
    return [line for line in text.splitlines() if line.startswith(("error:", "stopped by"))]


@pytest.mark.parametrize(
    ("size", "cases"),
    [
        (2, FEW),
        pytest.param(3, FEW, marks=pytest.mark.slow),
        pytest.param(4, tuple(CASES), marks=pytest.mark.slow),
    ],
    ids=["2", "3", "4"],
)
def test_all_ranks_together_compute_what_one_process_does(size, cases, tmp_path):
    done = ranks(size, "-m", "tests.ranks.worker", "agree", tmp_path / "apart.json", *cases)
    assert done.returncode == 0, done.stderr[-3000:]
    apart = json.loads((tmp_path / "apart.json").read_text())
    assert set(apart) == set(cases)
    assert {case: value for case, value in apart.items() if not value < 1e-10} == {}


def test_cases_have_all_that_is_built_in():
    configs = [config_of(case) for case in CASES]
    assert [name for name, kind in OBJECTIVES.items() if not any(config.goal is kind for config in configs)] == []
    assert set(AGGREGATIONS) == {config.aggregation for config in configs}
    assert set(DEFENCES) == {name for config in configs for name in config.defences}


@pytest.mark.slow
def test_a_run_goes_on_with_other_numbers_of_ranks(tmp_path):
    out, alone = tmp_path / "run", Simulation(config_of("own queues"), _images())
    assert ranks(4, "-m", "tests.ranks.worker", "save", out).returncode == 0
    saved, loaded = torch.load(f"{out}.save.pt"), Simulation.load(out, _images())
    for name, tensor in whole(loaded).items():
        assert torch.equal(tensor, saved[name]), name
    next(loaded.round())
    loaded.save(out)
    assert ranks(2, "-m", "tests.ranks.worker", "finish", out).returncode == 0
    list(alone.rounds())
    finished = torch.load(f"{out}.finish.pt")
    for name, tensor in whole(alone).items():
        torch.testing.assert_close(finished[name], tensor, rtol=1e-3, atol=1e-4)


def process_of(rank, parent):
    """Return the number of the process of a rank, given that of ``torchrun``."""
    for file in Path("/proc").glob("[0-9]*/environ"):
        try:
            variables = file.read_bytes().split(b"\0")
        except OSError:  # of somebody else, or gone
            continue
        of_rank = f"RANK={rank}".encode() in variables and f"PYTHONPATH={ROOT}".encode() in variables
        if of_rank and int((file.parent / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
            return int(file.parent.name)
    raise AssertionError(f"there is no rank {rank}")


@pytest.mark.slow
def test_a_rank_that_ends_is_named_and_the_checkpoint_stays(tmp_path):
    out = tmp_path / "run"
    argv = [ROOT / "experiments" / "run.py", *flags(**SMALL, rounds=1000, checkpoint_every=1, out=out)]
    with running(torchrun(3, *argv), stderr=subprocess.PIPE) as started:
        metrics = out / "metrics.jsonl"
        while not (metrics.exists() and '"round": 2' in metrics.read_text()):
            time.sleep(0.2)
        begun = time.monotonic()
        os.kill(process_of(2, started.pid), signal.SIGKILL)
        _, errors = started.communicate(timeout=60)
    assert time.monotonic() - begun < 60
    (line,) = lines_of(errors)
    assert line.startswith("error: ranks: rank 2 ended, and the others cannot go on without it; --resume goes on from")
    assert Simulation.load(out).progress.round_index >= 1


def test_a_rank_that_is_silent_because_it_waits_is_not_taken_for_one_that_ended(monkeypatch):
    monkeypatch.setattr("simsfl.system.world._NOTE_SECONDS", 0.2)
    store, ended = dist.HashStore(), subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for rank, process in ((0, os.getpid()), (2, ended.pid)):
        store.set(f"process/{rank}", f"{platform.node()} {process}")

    def lost():
        raise RuntimeError("connection closed by peer")

    with pytest.raises(RankLostError, match=r"^rank 2 ended, and the others cannot go on without it$") as found:
        World(1, 3, store)._told(0, lost)
    assert not found.value.first


def test_a_signal_that_comes_while_ranks_agree_counts_the_next_time():
    """Otherwise one rank would save what it has while the others go on, and all would wait for each other."""
    stop = SimpleNamespace(received=None)

    def largest(number):
        stop.received = signal.SIGTERM
        return number

    simulation = SimpleNamespace(parts=SimpleNamespace(world=SimpleNamespace(largest=largest)))
    record = RoundRecord(1, 0.5, 50.0, 0.1, 0, 0, "A", 0)
    assert not stops_after(simulation, record, stop)
    assert stops_after(simulation, record, stop)


@pytest.mark.slow
@pytest.mark.parametrize("to_all", [True, False])
def test_a_signal_saves_once_and_the_run_goes_on_alone(to_all, tmp_path):
    out = tmp_path / "run"
    argv = [ROOT / "experiments" / "run.py", *flags(**SMALL, rounds=3, out=out, track="csv")]
    with running(torchrun(2, *argv), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as started:
        metrics = out / "metrics.jsonl"
        while not (metrics.exists() and '"step": 3' in metrics.read_text()):
            time.sleep(0.05)
        os.kill(started.pid if to_all else process_of(1, started.pid), signal.SIGTERM)
        output, errors = started.communicate(timeout=60)
    assert "simsfl/cli/launch.py" not in errors  # no traceback
    assert "2 ranks, 1 thread each" in output
    assert lines_of(output) == ["stopped by SIGTERM; resume with:"]
    standing = Simulation.load(out).progress
    assert (standing.round_index, standing.step_index) > (0, 0)
    assert run.main(["--resume", str(out), "--dashboard", "off"]) == 0
    first, *tracked = (out / "csv" / "step.csv").read_text().splitlines()
    assert first == "steps,round,loss,contrast_top1"
    assert [int(line.partition(",")[0]) for line in tracked] == [*range(1, 3 * standing.steps + 1)]  # of one rank
    records = map(json.loads, metrics.read_text().splitlines())
    assert [record["round"] for record in records if record["event"] == "round"] == [1, 2, 3]


WRONG = {
    "cohort": (["--clients", "1"], "ranks: 2 are more than the cohort's 1 client; allowed: 1 to 1"),
    "engine": (["--engine", "loop"], "engine: loop is not for a run on 2 ranks; allowed: fused or vmap, or one rank"),
    "trace": (["--record-trace", "a.trace"], "record_trace: a run on several ranks is not recorded; allowed: on one"),
    "flag": (["--lrr", "1"], "flag: '--lrr' is not known (did you mean --lr?)"),
    "one of them": (["--lr", "0.0$RANK"], "ranks: rank 1 has lr 0.01, and rank 0 0.0; allowed: the same on all"),
}
"""Flags that cannot be, and how the error begins."""


@pytest.mark.slow
@pytest.mark.parametrize(("given", "message"), WRONG.values(), ids=WRONG)
def test_what_ranks_cannot_do_is_refused_by_one_of_them(given, message, tmp_path):
    argv = [*flags(**SMALL | {"rounds": 1}, out=tmp_path / "run"), *given]
    shell = f'exec "{sys.executable}" "{ROOT}/experiments/run.py" ' + " ".join(f'"{one}"' for one in argv)
    done = ranks(2, "--no-python", "bash", "-c", shell)
    (line,) = lines_of(done.stderr)
    assert line.startswith(f"error: {message}")
    assert "exitcode  : 2" in done.stderr
    assert not (tmp_path / "run").exists()


def _refused(tmp_path, *given):
    """Return what two ranks say that begin a run with these flags in different directories, `tmp_path` / $RANK."""
    argv = flags(**SMALL | {"rounds": 1}, out=tmp_path / "run")
    words = " ".join(f'"{word}"' for word in [*argv, *given])
    shell = f'cd "{tmp_path}/$RANK" && exec "{sys.executable}" "{ROOT}/experiments/run.py" {words}'
    (line,) = lines_of(ranks(2, "--no-python", "bash", "-c", shell).stderr)
    assert not (tmp_path / "run").exists()
    return line


@pytest.mark.slow
def test_ranks_whose_files_differ_are_refused(tmp_path):
    for rank in (0, 1):
        own = tmp_path / str(rank)
        own.mkdir()
        (own / "field.toml").write_text(SERVER + group(device='"epyc-torch"', slowdown=1.0 + rank))
        assert run.main(flags(**SMALL, rounds=1, seed=rank, out=own / "expert")) == 0
    assert _refused(tmp_path, "--fleet", "field.toml").startswith("error: ranks: rank 1 has file of fleet '")
    assert _refused(tmp_path, "--init-client", "expert").startswith("error: ranks: rank 1 has weights '")


@pytest.mark.slow
def test_a_rank_that_cannot_load_a_run_ends_all(tmp_path):
    out = tmp_path / "run"
    assert run.main(flags(**SMALL, rounds=2, out=out)) == 0
    (out / "summary.json").unlink()
    shell = f'[ $RANK = 0 ] || D="--dataset /nowhere"; exec "{sys.executable}" -m simsfl run --resume "{out}" $D'
    (line,) = lines_of(ranks(2, "--no-python", "bash", "-c", shell).stderr)
    assert line.startswith("error: rank 1: dataset: there is no file or directory /nowhere")


@pytest.mark.slow
def test_training_that_diverges_is_said_once(tmp_path):
    argv = flags(**SMALL | {"rounds": 2, "lr": 1e30, "client_lr": 1e30}, out=tmp_path / "run")
    done = ranks(2, ROOT / "experiments" / "run.py", *argv)
    (line,) = lines_of(done.stderr)
    assert "is not finite" in line or " is nan" in line
    assert "NonFiniteLossError" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("begun", [False, True], ids=["first", "later"])
def test_a_checkpoint_that_cannot_be_written_is_said_once(begun, tmp_path):
    argv = flags(**SMALL | {"rounds": 1, "checkpoint_every": 1, "no_feature_sharing": True})
    assert run.main([*argv, "--out", str(tmp_path / "alone")]) == 0
    most = max(file.stat().st_size for file in tmp_path.glob("alone/checkpoints/*.safetensors"))
    limit = most // 1024 if begun else 8  # KiB; the last checkpoint is the largest, because clients have taken part
    words = " ".join(f'"{word}"' for word in [*argv, "--out", tmp_path / "run"])
    shell = f'[ $RANK = 1 ] || ulimit -f {limit}; exec "{sys.executable}" "{ROOT}/experiments/run.py" {words}'
    done = ranks(2, "--no-python", "bash", "-c", shell)
    (line,) = lines_of(done.stderr)
    assert line.startswith("error: [Errno 27] File too large")
    assert "EnforceNotMet" not in done.stderr
    assert line.endswith(f"the last good checkpoint is kept in {tmp_path / 'run' / 'checkpoints'}") == begun
    assert len(list(tmp_path.glob("run/checkpoints/*.safetensors"))) == begun


FAILS = """
import os
from dataclasses import dataclass
from simsfl.extend import Callback, callback, option

@callback("fails")
@dataclass
class Fails(Callback):
    rank: int = option(0, "The rank that fails in the second round.")
    memory: bool = option(False, "Whether it has no memory left.")

    def on_record(self, record):
        if record.event == "round" and record.round == 2 and os.environ["RANK"] == str(self.rank):
            raise MemoryError("there is none") if self.memory else OSError("the disk is gone")

    def on_checkpoint(self, path):
        (path / os.environ["RANK"]).touch()
"""
"""A plugin whose callback fails on one rank, and leaves a file with the name of each rank beside checkpoints."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rank", "memory", "message"),
    [
        (0, False, "error: the disk is gone; the last good checkpoint is kept in "),
        (1, False, "error: ranks: rank 1: the disk is gone; --resume goes on from the last checkpoint"),
        (1, True, "error: ranks: rank 1: there is none; --resume goes on from the last checkpoint"),
    ],
)
def test_what_fails_on_one_rank_is_said_once(rank, memory, message, tmp_path):
    out, plugin = tmp_path / "run", tmp_path / "fails.py"
    plugin.write_text(FAILS)
    own = flags(plugin=plugin, callback="fails", **{"callback.rank": rank, "callback.memory": str(memory).lower()})
    argv = [*flags(**SMALL, rounds=3, checkpoint_every=1, out=out), *own]
    done = ranks(2, ROOT / "experiments" / "run.py", *argv)
    (line,) = lines_of(done.stderr)
    assert line.startswith(message)
    assert "simsfl/cli/launch.py" not in done.stderr  # no traceback
    assert (out / "checkpoints" / "round-000001-step-000000.safetensors").exists()
    assert {"0", "1"} <= {file.name for file in out.iterdir()}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"RANK": "x"}, "RANK is 'x'; allowed: a whole number, as torchrun sets it"),
        ({"RANK": "2"}, "RANK is 2, and WORLD_SIZE 2; allowed: ranks from 0 to WORLD_SIZE - 1"),
        ({"WORLD_SIZE": "0"}, "RANK is 1, and WORLD_SIZE 0; allowed: ranks from 0 to WORLD_SIZE - 1"),
        ({"MASTER_PORT": "99999"}, "MASTER_PORT is 99999; allowed: 1 to 65535"),
    ],
)
def test_numbers_of_ranks_that_cannot_be_are_refused(wrong, message, monkeypatch, capsys):
    usual = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9"}
    for name, value in (usual | wrong).items():
        monkeypatch.setenv(name, value)
    assert run.main([]) == 2
    assert capsys.readouterr().err == f"error: ranks: {message}\n"


@pytest.mark.slow
def test_a_rank_that_waits_for_the_others_can_be_stopped(tmp_path):
    lonely = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9"}
    argv = [sys.executable, ROOT / "experiments" / "run.py", *flags(**SMALL, rounds=1, out=tmp_path / "run")]
    how = {"env": ENVIRONMENT | lonely, "cwd": ROOT, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(argv, **how) as started:
        first = started.stderr.readline()
        started.terminate()
        _, errors = started.communicate(timeout=60)
    assert first == "warning: rank 1 waits for the others at 127.0.0.1:9\n"
    assert errors == "error: interrupted before training\n"
    assert started.returncode == 128 + signal.SIGTERM


def test_ranks_that_are_stopped_before_they_meet_say_it_once(monkeypatch, capsys):
    def stopped(argv, stop):
        stop.received = signal.SIGINT
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "_on_ranks", stopped)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a run of torchrun")
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert run.main([]) == 128 + signal.SIGINT
    assert capsys.readouterr().err == "error: interrupted before training\n"


def test_a_rank_without_a_rendezvous_is_refused(monkeypatch, capsys):
    for name in ("WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RANK", "0")
    assert run.main([]) == 2
    assert capsys.readouterr().err.startswith(
        "error: ranks: RANK is set, but not WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT; allowed: all of them, as "
    )


def test_training_from_python_is_for_one_rank(monkeypatch, tmp_path):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"ranks: simsfl\.run is for one rank, and there are 2; allowed: torchrun -m "):
        simsfl.run(config_of("symmetric"), tmp_path / "run")
    with pytest.raises(ValueError, match=r"ranks: simsfl\.resume is for one rank"):
        simsfl.resume(tmp_path / "run")
    assert not list(tmp_path.iterdir())
