"""The recipes of docs/extending.md are executed as they stand there, and add what they say."""

import json
import os
import re
import subprocess
import sys
import time
from contextlib import ExitStack
from importlib import import_module
from types import ModuleType
from unittest.mock import patch

import pytest

from docs.generate import ROOT, modules
from simsfl.cli import run
from simsfl.cli.report import program as report
from simsfl.cli.table import cells
from simsfl.cli.table import program as table
from simsfl.config import plugins
from simsfl.config.catalogue import DOORS
from simsfl.config.registry import code_of
from simsfl.hw_profile import meters
from simsfl.testing import check
from tests.conftest import TINY, flags

PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
RECIPES = dict(section.split("\n", 1) for section in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:])
"""Text of each recipe by its title."""
BLOCK = re.compile(r"^```python\n# (\S+\.py)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
"""A block of a recipe: the path of the file that it belongs to, and the code."""
REGISTRIES = (meters.METERS, cells.TABLES)


@pytest.fixture
def follow(monkeypatch):
    """Return a function that follows a recipe, given its title; at the end of the test, everything is as before."""

    def follow(title):
        for path, code in re.findall(BLOCK, RECIPES[title]):
            execute(path, code, monkeypatch)

    with ExitStack() as stack:
        for registry in REGISTRIES:
            stack.enter_context(patch.dict(registry))
        yield follow


def execute(path, code, monkeypatch):
    """Execute code as an addition to a file of the library, or as a new file of it."""
    known = {file: name for _, name, file in modules()}
    if ROOT / path in known:
        names = dict(vars(import_module(known[ROOT / path])))
    else:
        name = ".".join(("simsfl", *path.removeprefix("simsfl/").removesuffix(".py").split("/")))
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
        names = vars(sys.modules[name])
    exec(compile(code, path, "exec"), names)


def test_every_block_of_the_page_is_executed():
    assert PAGE.count("```python") == sum(len(re.findall(BLOCK, recipe)) for recipe in RECIPES.values())


def test_the_readme_links_to_every_recipe():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"docs/extending\.md#([\w-]+)", readme) == [title.lower().replace(" ", "-") for title in RECIPES]


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Write the recipes' plugins into a package outside the repository; return its path. Doors close afterwards."""
    package = tmp_path / "lab"
    package.mkdir()
    (package / "__init__.py").write_text('__version__ = "1.2"\n')
    for recipe in RECIPES.values():
        for path, code in re.findall(BLOCK, recipe):
            if "/" not in path:
                (package / path).write_text(code)
    monkeypatch.setenv("SIMSFL_PLUGINS", "")
    with ExitStack() as stack:
        for names in DOORS.values():
            stack.enter_context(patch.dict(names))
        yield package


PLUGINS = {
    "align": ("objective", "align-uniform", {"objective.weight": 0.5}),
    "clipped": ("aggregation", "clipped", {"aggregation.norm": 0.01}),
    "thin": ("defence", "thin", {"defence.share": 0.7}),
    "loyal": ("sampler", "loyal", {"sampler.rounds": 3}),
    "lion": ("optimizer", "lion", {"optimizer.beta2": 0.9}),
    "norms": ("callback", "norms", {"callback.order": 1.0}),
    "toy": ("arch", "toy", {"arch.kernel": 5}),
    "narrow": ("head", "narrow", {}),
    "noise": ("dataset", "noise", {"dataset.brightest": 100}),
    "alternating": ("partition", "alternating", {"partition.hand": 2}),
}
"""Where the plugin in each file is chosen, under which name, and options that it has."""


def test_every_plugin_of_the_page_is_tried():
    files = [path for recipe in RECIPES.values() for path, _ in re.findall(BLOCK, recipe) if "/" not in path]
    assert files == [f"{name}.py" for name in PLUGINS]


@pytest.mark.parametrize(
    "file",
    ["align", "toy", *(pytest.param(file, marks=pytest.mark.slow) for file in PLUGINS if file not in ("align", "toy"))],
)
def test_a_plugin_passes_the_check(file, written):
    plugins.load(str(written / f"{file}.py"))
    door, name, options = PLUGINS[file]
    code = code_of(DOORS[door][name])
    lr = {"lr": 0.001} if file == "lion" else {}
    assert "the whole cohort" in check(code.load(), options=options, rounds=1, **lr)
    assert plugins.name_of(code) == f"{file}.py"


def start(*argv, cwd):
    """Start ``simsfl run`` in a process of its own, in a directory."""
    return subprocess.Popen(
        [sys.executable, "-m", "simsfl", "run", *argv, "--dashboard", "off"],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(cwd)])},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_run_of_plugins_alone_is_killed_and_resumed(written, capfd, monkeypatch):
    here = written.parent
    loaded = [word for name in PLUGINS for word in ("--plugin", f"lab.{name}")]
    chosen = [word for door, name, _ in PLUGINS.values() for word in (f"--{door}", name)]
    options = [
        word for *_, own in PLUGINS.values() for name, value in own.items() for word in (f"--{name}", str(value))
    ]
    small = TINY | {"rounds": 16, "clients": 6, "width": 4, "eval_every": 0, "checkpoint_every": 2}
    small = {name: value for name, value in small.items() if name not in ("arch", "partition", "queue_length")}
    argv = [*loaded, *flags(**small), *chosen, *options]
    killed = start(*argv, "--out", "run", cwd=here)
    checkpoints = here / "run" / "checkpoints"
    while not list(checkpoints.glob("round-000006*")):
        assert killed.poll() is None, killed.stdout.read()
        time.sleep(0.005)
    killed.kill()
    killed.communicate()
    (recorded,) = json.loads((here / "run" / "config.json").read_text())["plugins"]
    assert (recorded["name"], recorded["version"]) == ("lab", "1.2")
    monkeypatch.chdir(here)
    monkeypatch.syspath_prepend(here)
    assert run.main(["--resume", "run"]) == 2
    missing = "plugin: the run uses lab 1.2, which is not loaded; allowed: after --plugin with its module or file"
    assert capfd.readouterr().err == f"error: resume: {missing}\n"
    assert report.main(["run"]) == 2
    assert missing in capfd.readouterr().err
    assert run.main([*loaded, "--resume", "run", "--dashboard", "off"]) == 0
    assert run.main([*argv, "--out", "whole", "--dashboard", "off"]) == 0
    metrics = [(here / name / "metrics.jsonl").read_bytes() for name in ("run", "whole")]
    assert metrics[0] == metrics[1]
    assert metrics[0].count(b'"added": {"client_norm": ') == small["rounds"]
    assert "report --plugin lab.align" in capfd.readouterr().out
    for name in list(sys.modules):
        if name.partition(".")[0] == "lab":
            del sys.modules[name]


def test_a_meter(follow, tmp_path):
    follow("Add a power meter")
    machine = meters.board.Machine(tmp_path)
    assert "hwmon" not in meters.present(machine)[0]
    sensor = tmp_path / "sys/class/hwmon/hwmon0/power1_input"
    sensor.parent.mkdir(parents=True)
    sensor.write_text("2260000\n")
    assert "hwmon" in meters.present(machine)[0]
    assert meters.choose("hwmon", machine).watts() == 2.26
    with pytest.raises(ValueError, match="hwmon takes nothing after a colon"):
        meters.choose("hwmon:1", machine)
    with pytest.raises(ValueError, match=r"'hwmom' is not known \(did you mean hwmon\?\)"):
        meters.choose("hwmom", machine)


def test_a_table(follow, npz, tmp_path, capsys):
    follow("Add a table")
    settings = TINY | {"dataset": npz, "rounds": 1, "device": "cpu"}
    assert table.main(["toy", "--dry-run", *flags(out=tmp_path / "out", **settings)]) == 0
    commands, forecast = capsys.readouterr()
    assert "Two temperatures" in forecast
    assert "--temperature 0.2" in commands
