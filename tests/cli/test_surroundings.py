"""Programs in odd surroundings: strange names, a stdout that cannot be written, signals that are ignored."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from simsfl.cli.main import main
from simsfl.runs.directory import RunDirectory
from tests.conftest import TINY, flags
from tests.streams import FULL, stdout_to, stdout_without_a_reader

NAME = os.fsdecode(b"[bold]d :smile:\xff\x1b]0;title\x07\nnext\xe2\x80\xae")
"""Name with markup, an emoji's name, a byte that is no character, an escape sequence, a line break and a direction."""
SHOWN = r"[bold]d :smile:\udcff\x1b]0;title\x07\nnext\u202e"
SHORT = {**TINY, "rounds": 1, "dashboard": "off"}


@pytest.fixture(autouse=True)
def arguments_of_before(monkeypatch):
    """Give the process its arguments back after each test."""
    monkeypatch.setattr(sys, "argv", sys.argv)


@pytest.fixture(scope="module")
def finished(npz, tmp_path_factory):
    """Return the directory of a finished run."""
    out = tmp_path_factory.mktemp("finished") / "run"
    assert main(["run", *flags(dataset=npz, out=out, **SHORT)]) == 0
    return out


@pytest.mark.slow
def test_every_program_works_with_any_name_and_prints_it_in_one_piece(npz, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    odd = Path(NAME)
    odd.mkdir()
    (odd / "data.npz").write_bytes(npz.read_bytes())
    run, trace = odd / NAME, odd / "a.trace"
    argv = flags(dataset=odd / "data.npz", out=run, record_trace=trace, profile=1, **SHORT)
    for words in (
        ["run", *argv],
        ["run", "--resume", str(run)],
        ["run", *flags(dataset=odd / "data.npz", out=odd / "other", init_client=run, **SHORT)],
        ["attack", str(run), "--attack-epochs", "1", "--attacker-data", "0.5"],
        ["report", str(run), str(odd / "other"), "--out", str(odd / "report")],
        ["watch", str(run), "--once"],
        ["watch", str(run), "--svg", str(odd / "view.svg")],
        ["export-checkpoint", str(run), "--out", str(odd / "exported")],
        ["pi-bench", *flags(replay=trace, runtime="lean", seconds=0.1, meter="none", out=odd / "measured")],
    ):
        assert main(words) == 0, words
        printed = capfd.readouterr()
        text = printed.out + printed.err
        assert all(character.isprintable() for character in text.replace("\n", "")), words
        assert words[0] == "watch" or SHOWN in text, words
    assert main(["run", "--resume", str(odd / "none")]) == 2
    assert capfd.readouterr().err.startswith(f"error: resume: {SHOWN}/none is not the directory of a run: ")
    page = (odd / "report" / "report.md").read_text(encoding="utf-8")
    assert all(character.isprintable() for character in page.replace("\n", ""))


@pytest.mark.parametrize("stream", ["always", "never"])
def test_pictures_may_have_any_name(stream, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for split, count in (("train", 16), ("test", 4)):
        for label in ("a", NAME):
            directory = Path("pictures", split, label)
            directory.mkdir(parents=True)
            for index in range(count):
                with (directory / f"{index}{NAME}.png").open("wb") as file:
                    Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(file, "PNG")
    argv = ["run", *flags(dataset="pictures", stream=stream, image_size=8, **SHORT)]
    assert main([*argv, "--out", "out"]) == main(["report", "out"]) == main(["run", "--resume", "out"]) == 0
    Path("pictures", "train", "a", f"0{NAME}.png").write_bytes(b"no picture")
    capfd.readouterr()
    assert main([*argv, "--out", "other"]) == 2
    error = capfd.readouterr().err
    assert f"pictures/train/a/0{SHOWN}.png is not a readable image" in error
    assert error.count("\n") == 1


@FULL
@pytest.mark.parametrize("words", ["--help", "--version", "run --help", "run --list", "report RUN", "watch RUN"])
def test_a_stdout_that_cannot_be_written(words, finished, nothing_lost, capsys):
    words = words.replace("RUN", str(finished)).split()
    with stdout_to("/dev/full"):
        assert main(words) == 1
    assert capsys.readouterr().err == (
        "error: output: stdout cannot be written (No space left on device); allowed: a file or pipe with room\n"
    )
    nothing_lost.clear()
    with stdout_without_a_reader():
        assert main(words) == 128 + signal.SIGPIPE
    assert capsys.readouterr().err == ""


@FULL
def test_a_run_whose_stdout_cannot_be_written_is_saved(npz, nothing_lost, tmp_path, capsys):
    out = tmp_path / "run"
    with stdout_to("/dev/full"):
        assert main(["run", *flags(dataset=npz, out=out, **SHORT)]) == 1
    error = capsys.readouterr().err
    assert error == (
        f"error: output: stdout cannot be written (No space left on device); resume with: simsfl run --resume {out}\n"
    )
    assert not RunDirectory(out).summary.exists()
    nothing_lost.clear()
    assert main(["run", "--resume", str(out), "--dashboard", "off"]) == 0
    assert RunDirectory(out).summary.exists()


@pytest.mark.slow
def test_a_run_outlives_signals_that_were_ignored_when_it_began(npz, tmp_path):
    """With ``nohup``, and as a job of a script in the background."""
    argv = [
        sys.executable,
        "-m",
        "simsfl",
        "run",
        *flags(dataset=npz, out=tmp_path / "run", **{**SHORT, "rounds": 5000}),
    ]
    shell = ["sh", "-c", 'trap "" HUP INT; exec "$@"', "sh", *argv]
    with subprocess.Popen(shell, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for line in process.stdout:
            if line.startswith("round 1/"):
                process.send_signal(signal.SIGHUP)
                process.send_signal(signal.SIGINT)
            if line.startswith("round 4/"):
                process.send_signal(signal.SIGTERM)
                break
        output = process.stdout.read()
    assert process.returncode == 128 + signal.SIGTERM, output
    assert f"stopped by SIGTERM; resume with:\nsimsfl run --resume {tmp_path / 'run'}\n" in output
