"""What a user has put where a program writes is neither replaced nor deleted."""

import errno
import io
import json
import os

import pytest
import torch

from simsfl.cli import export_checkpoint, import_checkpoint, run, watch
from simsfl.cli.attack import program as attack
from simsfl.cli.bench import program as bench
from simsfl.cli.cost import program as cost
from simsfl.cli.report import program as report
from simsfl.cli.table import program as table
from simsfl.system import files
from tests.conftest import TINY, flags

SHORT = TINY | {"rounds": 1, "eval_every": 0, "dashboard": "off"}
MINE = b"mine\n"


@pytest.fixture(scope="module")
def trained(npz, tmp_path_factory):
    """The directory of a finished run, which tests only read."""
    out = tmp_path_factory.mktemp("trained") / "run"
    assert run.main(flags(dataset=npz, out=out, **SHORT)) == 0
    return out


def put(*paths):
    """Make files of a user."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(MINE)


def contents(path):
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def refused(code, capfd, *words):
    error = capfd.readouterr().err
    assert code == 2, error
    assert error.startswith("error: ")
    assert error.count("\n") == 1, error
    for word in words:
        assert str(word) in error


def test_overwriting_replaces_the_run_alone(npz, tmp_path, capfd):
    out = tmp_path / "out"
    assert run.main(flags(dataset=npz, out=out, **SHORT)) == 0
    assert report.main([str(out)]) == 0
    mine = [out / name for name in ("notes.txt", "checkpoints/best-so-far.safetensors", "attacks/sheet.png")]
    put(*mine, out / "figures" / "mine.png")
    assert run.main([*flags(dataset=npz, out=out, **SHORT, seed=5), "--overwrite"]) == 0
    assert json.loads((out / "config.json").read_text())["config"]["seed"] == 5
    assert all(file.read_bytes() == MINE for file in mine)
    assert os.listdir(out / "figures") == ["mine.png"]  # noqa: PTH208
    assert not (out / "report.md").exists()


def test_a_report_that_a_user_has_edited_outlives_its_run(npz, tmp_path):
    out = tmp_path / "out"
    assert run.main(flags(dataset=npz, out=out, **SHORT)) == 0
    assert report.main([str(out)]) == 0
    put(out / "report.md")
    assert run.main([*flags(dataset=npz, out=out, **SHORT), "--overwrite"]) == 0
    assert (out / "report.md").read_bytes() == MINE
    assert not (out / "figures").exists()


def test_a_run_replaces_a_report_of_others_only_if_asked(trained, npz, tmp_path, capfd):
    out = tmp_path / "out"
    assert report.main([str(trained), "--out", str(out)]) == 0
    put(out / "notes.txt")
    before = contents(out)
    argv = flags(dataset=npz, out=out, **SHORT)
    refused(run.main(argv), capfd, f"out: {out} holds ", " of other runs; allowed: another directory, or --overwrite")
    assert contents(out) == before
    assert run.main([*argv, "--overwrite"]) == 0
    assert not {"report.md", "figures"} & set(os.listdir(out))  # noqa: PTH208
    assert (out / "notes.txt").read_bytes() == MINE


@pytest.mark.parametrize("name", ["figures/mine.png", "attacks/mine.json", "report.md", "checkpoints/mine.safetensors"])
@pytest.mark.parametrize("overwrite", [True, False])
def test_a_directory_that_holds_no_run_keeps_what_it_holds(name, overwrite, npz, tmp_path):
    put(tmp_path / "out" / name)
    argv = [*flags(dataset=npz, out=tmp_path / "out", **SHORT), *["--overwrite"] * overwrite]
    assert run.main(argv) == 0
    assert (tmp_path / "out" / name).read_bytes() == MINE
    assert (tmp_path / "out" / "summary.json").exists()


@pytest.mark.parametrize(
    ("main", "flags", "message"),
    [
        (report.main, [], "{file} is a file; allowed: the directory of a run"),
        (attack.main, [], "{file} is a file; allowed: the directory of a run"),
        (watch.main, [], "{file} is a file; allowed: the directory of a run"),
        (run.main, ["--resume"], "resume: {file} is a file; allowed: the directory of a run"),
        (export_checkpoint.main, ["--out", "exported"], "source: {file} is no file of weights (damaged"),
    ],
)
def test_a_file_of_a_run_is_not_its_directory(main, flags, message, trained, capfd):
    file = trained / "config.json"
    refused(main([*flags, str(file)]), capfd, f"error: {message.format(file=file)}")


RUNS = ["config.json", "metrics.jsonl", "live.json", "summary.json", "start.safetensors", "trace.json", "devices.log"]


@pytest.mark.parametrize("name", [*RUNS, "checkpoints/manifest.json"])
@pytest.mark.parametrize("overwrite", [True, False])
def test_files_that_a_run_would_replace_are_not_those_of_a_run(name, overwrite, npz, tmp_path, capfd):
    put(tmp_path / "out" / name)
    before = contents(tmp_path)
    argv = [*flags(dataset=npz, out=tmp_path / "out", **SHORT), *["--overwrite"] * overwrite]
    refused(run.main(argv), capfd, f"holds {name.split('/')[-1]}, but no run of simsfl")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("beside_a_run", [True, False])
def test_a_file_that_is_called_as_a_checkpoint_is(beside_a_run, npz, tmp_path, capfd):
    out = tmp_path / "out"
    argv = [*flags(dataset=npz, out=out, **SHORT), "--overwrite"]
    if beside_a_run:
        assert run.main(argv) == 0
    put(out / "checkpoints/round-000002-step-000000.safetensors")
    before = contents(out)
    refused(run.main(argv), capfd, "round-000002-step-000000.safetensors is called as a checkpoint is")
    assert contents(out) == before


@pytest.mark.parametrize("name", ["trace.json", "summary.json"])
def test_files_of_a_user_that_are_called_as_those_of_a_run(name, npz, tmp_path, capfd):
    """A user's files stay, and a program that would replace them is refused before it does anything."""
    out = tmp_path / "out"
    argv = flags(dataset=npz, out=out, **SHORT)
    assert run.main(argv) == 0
    put(out / name)
    before = contents(out)
    refused(run.main([*argv, "--overwrite"]), capfd, out / name, "was not written by simsfl")
    newest = max((out / "checkpoints").glob("*.safetensors"))
    newest.write_bytes(b"damaged")
    before[f"checkpoints/{newest.name}"] = b"damaged"
    profile = ["--profile", "1"] if name == "trace.json" else []
    refused(run.main(["--resume", str(out), *profile]), capfd, out / name, "was not written by simsfl")
    assert contents(out) == before


def test_an_empty_directory_keeps_its_rights(npz, tmp_path):
    out, link = tmp_path / "out", tmp_path / "link"
    out.mkdir(mode=0o750)
    link.symlink_to(out)
    assert run.main(flags(dataset=npz, out=link, **SHORT)) == 0
    assert link.is_symlink()
    assert out.stat().st_mode & 0o777 == 0o750
    assert (out / "summary.json").exists()


def test_an_empty_directory_stays_if_the_run_cannot_begin(npz, tmp_path, capfd, monkeypatch):
    (tmp_path / "out").mkdir()

    def full(path, *arguments):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("simsfl.runs.checkpoint.write_tensors", full)
    refused(run.main(flags(dataset=npz, out=tmp_path / "out", **SHORT)), capfd, "No space left on device: ")
    assert contents(tmp_path) == {}
    assert (tmp_path / "out").is_dir()


@pytest.mark.parametrize("name", ["report.md", "report.html", "figures/partition.png"])
def test_a_report_replaces_its_own_files_alone(name, trained, tmp_path, capfd):
    out = tmp_path / "page"
    put(out / name)
    refused(report.main([str(trained), "--out", str(out)]), capfd, f"out: {out / name} was not written by simsfl")
    assert contents(out) == {name: MINE}
    (out / name).unlink()
    for _ in range(2):
        assert report.main([str(trained), "--out", str(out)]) == 0
    put(out / name)
    before = contents(out)
    refused(report.main([str(trained), "--out", str(out)]), capfd, "has been changed since")
    assert contents(out) == before


def test_an_attack_replaces_its_own_files_alone(npz, tmp_path, capfd, monkeypatch):
    out = tmp_path / "out"
    assert run.main(flags(dataset=npz, out=out, **SHORT)) == 0
    argv = [str(out), "--decoder", "conv_normN0C4", "--attack-epochs", "1", "--attacker-data", "0.2", "--device", "cpu"]
    for _ in range(2):
        assert attack.main(argv) == 0
    put(out / "attacks" / "conv_normN0C4-curves.png")
    before = contents(out)
    monkeypatch.setattr("simsfl.cli.attack.program.attack", None)  # it is refused before it begins
    refused(attack.main(argv), capfd, "run: ", "conv_normN0C4-curves.png was not written by simsfl")
    assert contents(out) == before


def test_tables_and_exports_replace_their_own_files_alone(trained, tmp_path, capfd):
    for name, main, argv in (
        ("table.md", table.main, ["1"]),
        ("client.tar", export_checkpoint.main, [str(trained)]),
    ):
        out = tmp_path / name
        for _ in range(2):
            assert main([*argv, "--out", str(out)]) == 0
        put(out / name)
        before = contents(out)
        refused(main([*argv, "--out", str(out)]), capfd, out / name, "was not written by simsfl")
        assert contents(out) == before


SINGLE = {
    "cost": (cost.main, ["--arch", "resnet8"], "json"),
    "bench": (bench.main, ["--engines", "vmap"], "json"),
    "watch": (watch.main, ["RUN"], "svg"),
    "import": (import_checkpoint.main, ["x.tar"], "out"),
    "record": (run.main, ["--dataset", "shapes"], "record_trace"),
}
"""Programs that write a file which a flag names."""


@pytest.mark.parametrize(("main", "argv", "flag"), SINGLE.values(), ids=SINGLE)
def test_a_file_that_a_flag_names_is_not_a_users(main, argv, flag, trained, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "mine")
    argv = [str(trained) if part == "RUN" else part for part in argv]
    problem = "exists already" if flag == "record_trace" else "was not written by simsfl"
    refused(main([*argv, f"--{flag.replace('_', '-')}", "mine"]), capfd, f"{flag}: mine {problem}")
    assert contents(tmp_path) == {"mine": MINE}


def test_importing_beside_the_file_replaces_nothing(tmp_path, capfd):
    put(tmp_path / "client.safetensors", tmp_path / "client.tar")
    refused(import_checkpoint.main([str(tmp_path / "client.tar")]), capfd, "client.safetensors was not written by")


def traced(npz, tmp_path):
    return [*flags(dataset=npz, out=tmp_path / "out", **SHORT), "--record-trace", str(tmp_path / "client.trace")]


@pytest.mark.parametrize("when", ["fsync", "rename", "mine"])
def test_a_client_trace_that_could_not_be_written_is_not_announced(when, npz, tmp_path, capfd, monkeypatch):
    honest = files.replacing

    class Failing:
        """Replace a file as `replacing` does, except that its last operation fails."""

        def __init__(self, path, **how):
            self.inner = honest(path, **how)

        def __enter__(self):
            return self.inner.__enter__()

        def __exit__(self, *error):
            if when == "mine":
                put(tmp_path / "client.trace")
                return self.inner.__exit__(*error)
            with monkeypatch.context() as patch:

                def fail(*arguments):
                    raise OSError(errno.EIO, os.strerror(errno.EIO))

                if when == "fsync":
                    patch.setattr(os, "fsync", fail)
                else:
                    patch.setattr("pathlib.Path.replace", fail)
                return self.inner.__exit__(*error)

    monkeypatch.setattr("simsfl.rounds.recorder.replacing", Failing)
    assert run.main(traced(npz, tmp_path)) == 1
    said = capfd.readouterr()
    assert said.err.count("\n") == 1
    assert f"record_trace: {tmp_path / 'client.trace'} could not be written" in said.err
    assert ("File exists" if when == "mine" else "Input/output error") in said.err
    assert "pi_bench" not in said.out
    assert (tmp_path / "client.trace").exists() == (when == "mine")
    assert (tmp_path / "out" / "summary.json").exists()


def test_a_disk_that_is_full_while_a_trace_is_recorded(npz, tmp_path, capfd, monkeypatch):
    """The run goes on, and the error is one line, whatever the zip file still wants to write at its end."""

    class Full:
        """A file on a disk that takes 10,000 bytes more."""

        def __init__(self, file):
            self.file, self.room = file, 10_000

        def write(self, content):
            self.room -= len(content)
            if self.room < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self.file.write(content)

        def __getattr__(self, name):
            return getattr(self.file, name)

    honest = io.open

    def opened(path, mode="r", *rest, **how):
        file = honest(path, mode, *rest, **how)
        return Full(file) if "w" in mode and str(path).endswith("client.trace") else file

    monkeypatch.setattr(io, "open", opened)
    assert run.main(traced(npz, tmp_path)) == 1
    error = capfd.readouterr().err
    assert error.count("\n") == 1, error
    assert "No space left on device" in error
    assert not (tmp_path / "client.trace").exists()
    assert torch.isfinite(torch.tensor(json.loads((tmp_path / "out" / "summary.json").read_text())["loss"]))
