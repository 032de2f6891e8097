"""Plugins that are loaded, changed, moved, missing or wrong."""

import hashlib
import json
import sys
from importlib import metadata
from types import SimpleNamespace

import pytest

import simsfl
from simsfl.cli import run
from simsfl.cli.report import program as report
from simsfl.config import RunConfig, plugins
from simsfl.config.catalogue import DOORS
from simsfl.rounds.callback import Callback
from simsfl.runs import checkpoint
from simsfl.runs.directory import RunDirectory
from simsfl.runs.records import identity_in
from tests.cli.plugins.conftest import OBJECTIVE, train
from tests.conftest import TINY, flags
from tests.runs.changing import killed


def test_a_plugin_that_was_changed_is_warned_of_once(file, npz, tmp_path, caplog):
    assert train(npz, tmp_path / "out", "--plugin", file, "--objective", "apart") == 0
    file.write_text(f"{OBJECTIVE}# another line")
    assert run.main(["--resume", str(tmp_path / "out"), "--dashboard", "off"]) == 0
    assert report.main([str(tmp_path / "out")]) == 0
    said = [line for line in caplog.messages if "apart.py" in line]
    assert said == ["the plugin apart.py is not the one that the run began with: its source has changed"]
    (row,) = [line for line in (tmp_path / "out" / "report.md").read_text().splitlines() if "plugins" in line]
    assert f"apart.py ({hashlib.sha256(OBJECTIVE.encode()).hexdigest()[:8]})" in row.replace("\\", "")


@pytest.mark.slow
def test_a_run_says_from_when_on_a_plugin_was_another(file, npz, tmp_path, monkeypatch):
    """A change counts once for all sessions, and is lost with its rounds; nothing else differs from the whole run."""
    begin = [*flags(**TINY | {"dataset": npz, "eval_every": 0}), "--plugin", str(file), "--objective", "apart"]
    begin = [word for word in begin if word not in ("--queue-length", str(TINY["queue_length"]))]
    out, other = tmp_path / "out", f"{OBJECTIVE}# another line"
    assert run.main([*begin, "--dashboard", "off", "--out", str(tmp_path / "whole")]) == 0
    whole = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
    ends = [n for n, line in enumerate(whole, start=1) if json.loads(line)["event"] == "round"]
    resume = ["--resume", str(out), "--dashboard", "off"]
    killed(monkeypatch, ends[0], [*begin, "--dashboard", "off", "--out", str(out)])
    file.write_text(other)
    killed(monkeypatch, 3, resume)
    killed(monkeypatch, 1 + ends[1] - ends[0], resume)
    killed(monkeypatch, 2, resume)
    file.write_text(OBJECTIVE)
    assert run.main(resume) == 0
    lines = (out / "metrics.jsonl").read_text().splitlines()
    changes = [json.loads(line) for line in lines if '"change"' in line]
    sums = [hashlib.sha256(text.encode()).hexdigest() for text in (OBJECTIVE, other)]
    assert [(one["round"], one["step"], one["plugins"]) for one in changes] == [
        (after, 0, [{"name": "apart.py", "version": None, "sha256": sha256}])
        for after, sha256 in ((1, sums[1]), (2, sums[0]))
    ]
    assert [line for line in lines if '"change"' not in line] == whole
    assert report.main([str(out)]) == 0
    page = (out / "report.md").read_text().replace("\\", "")
    was, became = (f"apart.py ({sha256[:8]})" for sha256 in sums)
    assert f"| went on with | {became} after round 1; {was} after round 2 |" in page


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "import nothing_of_this_name",
            "cannot be imported (ModuleNotFoundError: No module named 'nothing_of_this_name', ",
        ),
        (
            "x = 1\n\n1 / 0",
            "cannot be imported (ZeroDivisionError: division by zero, in line 3); allowed: one that can be",
        ),
        ("def f(:", "cannot be imported (SyntaxError: "),
        (
            OBJECTIVE.replace('"apart"', '"moco"'),
            "objective: 'moco' is there already, from simsfl; allowed: another name",
        ),
        ("raise SystemExit(3)", "cannot be imported (SystemExit: 3, in line 1)"),
    ],
    ids=["missing package", "error", "syntax", "taken name", "exit"],
)
def test_plugins_that_are_wrong(source, message, npz, tmp_path, capsys):
    (tmp_path / "wrong.py").write_text(source)
    assert train(npz, tmp_path / "out", "--plugin", tmp_path / "wrong.py") == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith(f"error: plugin: {tmp_path / 'wrong.py'}")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_plugins_that_are_not_there(file, npz, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, message in (
        ("none.py", "there is no file none.py; allowed: a module, or the path of its file"),
        (".", "there is no module .; allowed: a module, or the path of its file"),
        ("no/such", "there is no file no/such; allowed: a module, or the path of its file"),
        ("nowhere.at.all", "there is no module nowhere.at.all; allowed: a module, or the path of its file"),
        ("apart", "there is no module apart; allowed: a module, or the path of its file, such as apart.py"),
        ("", "is empty; allowed: a module, or the path of its file"),
    ):
        assert train(npz, tmp_path / "out", "--plugin", name) == 2, name
        assert capsys.readouterr().err == f"error: plugin: {message}\n"


def test_two_plugins_of_one_name(file, npz, tmp_path, capsys):
    other = tmp_path / "other" / "apart.py"
    other.parent.mkdir()
    other.write_text(OBJECTIVE)
    assert train(npz, tmp_path / "out", "--plugin", file, "--plugin", other) == 2
    expected = f"error: plugin: {other}: objective: 'apart' is there already, from {file}; allowed: another name\n"
    assert capsys.readouterr().err == expected


def test_a_plugin_flag_without_a_value_takes_none_of_the_others(capsys):
    assert run.main(["--plugin", "--list"]) == 2
    assert capsys.readouterr().err == "error: plugin: expected one argument; allowed: a value behind the flag\n"


def test_a_run_whose_plugin_is_not_loaded_can_be_replaced(file, npz, tmp_path, capsys):
    out = tmp_path / "out"
    assert train(npz, out, "--plugin", file, "--objective", "apart") == 0
    identity = RunDirectory(out).read_config().identity
    del DOORS["objective"]["apart"]
    known_without = identity_in(out / "config.json")
    assert train(npz, out) == 2
    assert "holds another run; allowed: another directory, --overwrite to replace it" in capsys.readouterr().err
    (out / "notes.txt").write_text("of the user")
    assert train(npz, out, "--overwrite") == 0
    new = identity_in(out / "config.json")
    assert known_without == identity != new
    assert not checkpoint.others(out / "checkpoints", new)
    assert (out / "notes.txt").exists()


def test_all_plugins_that_are_missing_are_named():
    missing = [plugins.Plugin("lab", "1.2", ""), plugins.Plugin("apart.py", None, "")]
    with pytest.raises(
        ValueError, match=r"^plugin: the run uses lab 1.2 and apart.py, which are not loaded; allowed: "
    ):
        plugins.check(missing)


def test_a_plugin_may_be_moved_and_renamed(file, npz, tmp_path, caplog):
    out, moved = tmp_path / "out", tmp_path / "moved.py"
    assert train(npz, out, "--plugin", file, "--objective", "apart") == 0
    del DOORS["objective"]["apart"]
    file.rename(moved)
    plugins.load(str(moved))
    assert RunDirectory(out).read_config().plugins[0].name == "apart.py"
    assert not caplog.messages


@pytest.mark.parametrize("field", ["aggregation", "defence", "callback", "dataset", "arch"])
def test_an_unknown_name_at_a_door_leads_to_plugins(field, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run.main([f"--{field}", "geomedian", "--dashboard", "off"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {field}: 'geomedian' is not known")
    assert error.endswith("those of a --plugin\n")


def test_the_config_of_a_run_whose_plugin_is_missing_says_so(file, npz, tmp_path, capsys):
    out = tmp_path / "out"
    assert train(npz, out, "--plugin", file, "--objective", "apart") == 0
    del DOORS["objective"]["apart"]
    capsys.readouterr()
    assert run.main(["--config", str(out / "config.json"), "--out", str(tmp_path / "new")]) == 2
    message = "plugin: the run uses apart.py, which is not loaded; allowed: after --plugin with its module or file\n"
    assert capsys.readouterr().err.endswith(message)


def test_plugins_of_the_same_name_are_told_apart(tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        text = OBJECTIVE.replace('"apart"', f'"{name}"')
        (tmp_path / name / "apart.py").write_text(text)
        plugins.load(str(tmp_path / name / "apart.py"))
    first, second = (RunConfig(objective=name).plugins[0] for name in ("one", "other"))
    assert (first.name, second.name) == ("apart.py", "apart.py")
    assert first.sha256 != second.sha256
    plugins.check([first, second])
    codes = [RunConfig(objective=name).goal.code for name in ("one", "other")]
    assert plugins.plugins_of(codes) == sorted([first, second], key=lambda plugin: plugin.sha256)


def test_callbacks_hear_of_checkpoints_after_the_start(npz, tmp_path):
    class Follower(Callback):
        """Remembers what it hears of."""

        def on_start(self, simulation):
            self.heard = ["start"]

        def on_checkpoint(self, path):
            self.heard.append(path.name)

    follower = Follower()
    config = RunConfig(**TINY | {"dataset": str(npz), "rounds": 2, "eval_every": 0})
    simsfl.run(config, tmp_path / "run", callbacks=[follower])
    assert follower.heard == ["start", "run", "run"]


def test_the_package_that_names_a_plugin_is_named(monkeypatch):
    point = metadata.EntryPoint("lab", "nosuchlab.things", "simsfl.plugins")
    monkeypatch.setattr(plugins.metadata, "entry_points", lambda group: [point._for(SimpleNamespace(name="lab-tools"))])
    with pytest.raises(ValueError, match=r"^plugin: there is no module nosuchlab.things; .* package lab-tools\)$"):
        plugins.load_all()


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Return the directory of an installed package ``labkit``, whose distribution is called lab-tools."""
    labkit, about = tmp_path / "labkit", tmp_path / "lab_tools-1.2.dist-info"
    for path, text in (
        (labkit / "__init__.py", ""),
        (labkit / "apart.py", OBJECTIVE),
        (about / "METADATA", "Metadata-Version: 2.1\nName: lab-tools\nVersion: 1.2\n"),
        (about / "RECORD", "labkit/__init__.py,,\nlabkit/apart.py,,\n"),
    ):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield labkit
    for name in [name for name in sys.modules if name.partition(".")[0] == "labkit"]:
        del sys.modules[name]


def test_the_version_is_that_of_the_distribution_whatever_its_name(package):
    plugins.load("labkit.apart")
    (plugin,) = RunConfig(objective="apart").plugins
    assert (plugin.name, plugin.version) == ("labkit", "1.2")


@pytest.mark.parametrize("name", ["labkit.inner", "labkit"])
def test_an_error_in_a_package_has_its_file_and_line(name, package, capsys):
    place = package / ("inner.py" if "." in name else "__init__.py")
    place.write_text("import json\n\njson.loads('{')\n")
    with pytest.raises(
        ValueError, match=rf"^plugin: {name} cannot be imported \(JSONDecodeError: .*, in {place}:3\); "
    ):
        plugins.load(name)
    (package / "__init__.py").write_text("\n1 / 0\n")
    sys.modules.pop("labkit", None)
    with pytest.raises(
        ValueError, match=rf"cannot be imported \(ZeroDivisionError: .*, in {package}/__init__.py:2\); "
    ):
        plugins.load(name)
