"""The command `simsfl`: it finds programs by name, and says in one line what is wrong."""

import re
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement

from simsfl.cli import main as command
from simsfl.cli.main import PROGRAMS, Program
from simsfl.system.programs import door

ROOT = Path(__file__).parents[2]


@pytest.fixture
def started(monkeypatch):
    """Put a program in the place of `run`; return the list of arguments that it is started with."""
    calls = []
    monkeypatch.setitem(sys.modules, "a_program", SimpleNamespace(main=lambda argv: calls.append(argv) or 7))
    monkeypatch.setitem(PROGRAMS, "run", Program("a_program", "train"))
    monkeypatch.setitem(PROGRAMS, "pi-bench", Program("a_program", "measure"))
    monkeypatch.setattr(sys, "argv", ["simsfl"])
    return calls


@pytest.mark.parametrize("name", ["run", "pi-bench", "pi_bench"])
def test_programs_are_started_with_their_arguments(started, name):
    assert command.main([name, "--clients", "3"]) == 7
    assert started == [["--clients", "3"]]
    assert sys.argv[0] == f"simsfl {name.replace('_', '-')}"


def test_help_lists_every_program(capsys):
    assert command.main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(f"  {name} " in printed and program.purpose in printed for name, program in PROGRAMS.items())
    assert command.main([]) == 2  # nothing was asked for
    assert capsys.readouterr() == ("", printed)


def test_an_unknown_program_is_refused_with_the_nearest_name(capsys):
    assert command.main(["rnu"]) == 2
    assert capsys.readouterr().err.startswith("error: program: 'rnu' is not known (did you mean run?); allowed: run, ")


def test_a_missing_package_is_named(started, monkeypatch, capsys):
    monkeypatch.setitem(PROGRAMS, "run", Program("a_program", "train", needs={"no_such_module": "no-such-package"}))
    assert command.main(["run"]) == 2
    expected = "error: no-such-package: is not installed; allowed: pip install no-such-package\n"
    assert capsys.readouterr().err == expected
    assert not started


def test_an_interrupted_program_ends_in_one_line(started, monkeypatch, capsys):
    def interrupted(argv):
        raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "a_program", SimpleNamespace(main=interrupted))
    assert command.main(["run"]) == 130
    assert capsys.readouterr().err == "error: interrupted\n"


def test_the_version_is_printed(capsys):
    assert command.main(["--version"]) == 0
    assert re.fullmatch(r"simsfl \d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_a_board_without_rich_is_told_so():
    """In a process of its own: what names the missing package must not need it."""
    code = "import sys; sys.modules['rich'] = None; from simsfl.cli.main import start; sys.exit(start('pi-bench'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "error: rich: is not installed; allowed: pip install rich\n")


def test_every_file_that_starts_a_program_says_how_to_install_what_is_missing():
    """Without site-packages, Python finds neither simsfl nor the packages that it needs."""
    for name in PROGRAMS:
        argv = [sys.executable, "-I", "-S", ROOT / door(name)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        what = f"-e {ROOT}" if door(name).parts[0] == "experiments" else "numpy rich"
        said = rf"error: (torch|numpy): is not installed; allowed: pip install {what}.*\n"
        assert (done.returncode, done.stdout) == (2, ""), name
        assert re.fullmatch(said, done.stderr), done.stderr


def test_the_packages_that_programs_need_are_those_that_are_installed():
    wanted = [
        one for one in map(Requirement, requires("simsfl")) if not one.marker or one.marker.evaluate({"extra": ""})
    ]
    assert {one.name for one in wanted} == set(command._ALL)


def test_a_program_for_one_process_is_refused_on_several_ranks_by_the_first(started, monkeypatch, capsys):
    waited = []
    monkeypatch.setattr(command.time, "sleep", waited.append)
    for name in ("RANK", "LOCAL_RANK", "TORCHELASTIC_RUN_ID"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert command.main(["pi-bench"]) == 2
    assert capsys.readouterr().err == ""
    assert waited
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert command.main(["pi-bench"]) == 2
    assert capsys.readouterr().err == (
        "error: ranks: simsfl pi-bench is for one process, and torchrun has started 2; allowed: without torchrun, "
        "which is for simsfl run alone\n"
    )
    assert not started
    assert command.main(["run"]) == 7  # which knows of ranks itself
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert command.main(["pi-bench"]) == 7
