"""Where the runs of a sweep are carried out: each once, on its device, and on a cluster."""

import fcntl
import json

import pytest

from simsfl.cli.sweep import launchers
from simsfl.cli.sweep import program as sweep
from simsfl.cli.sweep.cells import Cell
from simsfl.cli.sweep.grid import Plan
from simsfl.config.presets import laptop
from simsfl.system.outputs import Outputs
from tests.cli.test_sweep import SHORT
from tests.conftest import flags


def plan(name):
    """Return a plan for a run of this name."""
    return Plan(Cell(name, name, {}), 0, laptop(), 0, 0.0)


def test_each_run_has_a_device_of_its_own(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(launchers.subprocess, "Popen", lambda words, **_: started.append(words) or Ended())
    local, outputs = launchers.Local(devices=["cuda:0", "cuda:1"]), Outputs(tmp_path)
    assert local.places == 2
    runs = [local.start(plan(name), name, outputs) for name in ("a", "b")]
    for run in runs:
        assert run.goes_on()
    assert [words[-2:] for words in started] == [["--device", "cuda:0"], ["--device", "cuda:1"]]
    (tmp_path / plan("b").name).mkdir()
    (tmp_path / plan("b").name / "summary.json").touch()
    assert not runs[1].goes_on()
    third = local.start(plan("c"), "c", outputs)
    assert third.goes_on()
    assert started[-1][-2:] == ["--device", "cuda:1"]


class Ended:
    """A process that has ended well."""

    def poll(self):
        return 0

    def terminate(self):
        """Do nothing."""

    wait = terminate


def test_nobody_starts_what_somebody_else_carries_out(tmp_path):
    log = tmp_path / f"{plan('a').name}.log"
    with log.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError):
            launchers.Local().start(plan("a"), "a", Outputs(tmp_path))
        launchers._carry_out(plan("a"), tmp_path)
    assert not log.read_text()
    launchers.Local().start(plan("a"), "a", Outputs(tmp_path))


WRONG = {
    "device": (["--devices", "cpu,cuda:99"], "devices: cuda:99 "),
    "both": (["--devices", "cpu", "--jobs", "2"], "jobs: cannot be given with --devices"),
    "devices of a cluster": (["--launcher", "submitit", "--devices", "cpu"], "devices: has no effect with --launcher"),
    "settings here": (["--job", "timeout_min=3"], "job: has no effect with --launcher local"),
    "no setting": (["--job", "timeout_min"], "job: 'timeout_min' is no setting; allowed: NAME=VALUE"),
    "no such setting": (["--launcher", "submitit", "--job", "wall=3"], "job: "),
    "launcher": (["--launcher", "slurm"], "launcher: 'slurm'"),
}
"""Flags that cannot be, and how the error begins."""


@pytest.mark.parametrize(("given", "message"), WRONG.values(), ids=WRONG)
def test_what_cannot_be(given, message, npz, tmp_path, capfd):
    argv = [*flags(out=tmp_path / "sweep", dataset=npz, **SHORT), "--lr", "0.02,0.06", "--budget", "0.01", *given]
    assert sweep.main(argv) == 2
    assert capfd.readouterr().err.splitlines()[-1].startswith(f"error: {message}")


@pytest.mark.slow
def test_jobs_of_a_cluster_do_what_processes_do(npz, tmp_path, monkeypatch, capsys):
    pytest.importorskip("submitit")
    tables = []
    for name, how in (("here", ["--jobs", "2"]), ("there", ["--launcher", "submitit", "--job", "timeout_min=5"])):
        argv = [*flags(out=tmp_path / name, dataset=npz, **SHORT), "--lr", "0.02,0.06", *how]
        assert sweep.main(argv) == 0
        tables.append(json.loads((tmp_path / name / "sweep.json").read_text()))
    capsys.readouterr()
    assert tables[0]["settings"] == tables[1]["settings"]
    assert len(list((tmp_path / "there" / launchers.JOBS).glob("*result.pkl"))) == 2
