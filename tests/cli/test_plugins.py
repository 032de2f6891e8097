"""Plugins that are loaded, changed, missing or wrong, and the flags of options."""

import hashlib
import json
import re
import sys
from dataclasses import dataclass
from importlib import metadata
from types import SimpleNamespace
from unittest.mock import patch

import pytest

import simsfl
from simsfl import Simulation, extend
from simsfl.cli import run
from simsfl.cli.report import program as report
from simsfl.config import RunConfig, plugins
from simsfl.config.catalogue import DOORS
from simsfl.rounds.callback import Callback
from simsfl.runs import checkpoint
from simsfl.runs.directory import RunDirectory
from simsfl.runs.records import identity_in
from tests.conftest import TINY, flags
from tests.runs.changing import killed

OBJECTIVE = """
from dataclasses import dataclass
from simsfl import extend


@extend.objective("apart", targets=extend.Targets.ONLINE)
@dataclass(frozen=True)
class Apart(extend.Objective):
    \"\"\"The squared distance of two views.\"\"\"

    weight: float = extend.option(1.0, "Weight.", within=(0, 10))
    squared: bool = extend.option(True, "Square it.")
    most: int | None = extend.option(None, "Most.")

    @classmethod
    def of(cls, config):
        if config.tau == 0:
            raise ValueError("objective: apart needs a momentum; allowed: --tau above 0")
        return super().of(config)

    def loss(self, outputs, targets, memory):
        loss = self.weight * (outputs - targets).square().mean()
        return loss, loss.detach()
"""


@pytest.fixture(autouse=True)
def closed(monkeypatch):
    """Close the doors after each test, and forget plugins that it has named."""
    monkeypatch.setenv("SIMSFL_PLUGINS", "")
    monkeypatch.setattr(plugins, "_warned", set())
    for names in DOORS.values():
        patched = patch.dict(names)
        patched.start()
    yield
    patch.stopall()


@pytest.fixture
def file(tmp_path):
    """Return the path of a plugin."""
    path = tmp_path / "apart.py"
    path.write_text(OBJECTIVE)
    return path


@dataclass(frozen=True)
class Hiding(extend.Defence):
    """Has an option of another defence, with another default."""

    deviation: float = extend.option(0.5, "Noise.")

    def learn(self, gradient, draws):
        return gradient


def train(npz, out, *argv):
    """Train a tiny run with flags; return the exit code."""
    settings = {name: value for name, value in TINY.items() if name != "queue_length"} | {"rounds": 1, "eval_every": 0}
    return run.main([*flags(dataset=npz, out=out, dashboard="off", **settings), *map(str, argv)])


def test_options_have_types_limits_and_names(file, npz, tmp_path, capsys):
    chosen = ("--plugin", file, "--objective", "apart")
    for option, message in (
        (("--objective.weight", "heavy"), "objective.weight: 'heavy' is not of type float; allowed: a number"),
        (("--objective.weight=11",), "objective.weight: 11.0 is out of range; allowed: 0 to 10"),
        (("--objective.weight",), "objective.weight: expected one argument"),
        (
            ("--objective.squared", "perhaps"),
            "objective.squared: 'perhaps' is not of type bool; allowed: true or false",
        ),
        (("--objective.most", "1.5"), "objective.most: '1.5' is not of type int; allowed: a whole number"),
        (("--objective.wieght", "1"), "options: 'objective.wieght' is not known (did you mean objective.weight?); "),
        (("--aggregation.no", "1"), "options: 'aggregation.no' is not known; allowed: none, as the aggregation that "),
        (
            ("--aggregation.trim", "0.2"),
            "options: 'aggregation.trim' is no option of what is chosen; allowed with aggregation trimmed-mean\n",
        ),
        (("--objectiv.weight", "1"), "flag: '--objectiv.weight' is not known"),
        (("--no-symmetric",), "symmetric: has no effect where the objective has no momentum models"),
    ):
        assert train(npz, tmp_path / "out", *chosen, *option) == 2, option
        error = capsys.readouterr().err
        assert error.startswith(f"error: {message}")
        assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
    options = ("--objective.weight", "2", "--objective.squared=false", "--objective.most", "none")
    assert train(npz, tmp_path / "out", *chosen, *options) == 0
    recorded = json.loads((tmp_path / "out" / "config.json").read_text())
    assert recorded["config"]["options"] == {
        "objective.weight": 2.0,
        "objective.squared": False,
        "objective.most": None,
    }
    assert [plugin["name"] for plugin in recorded["plugins"]] == ["apart.py"]
    assert train(npz, tmp_path / "same", "--resume", tmp_path / "out") == 2  # as --out is another directory
    capsys.readouterr()
    assert run.main(["--resume", str(tmp_path / "out"), "--objective.weight", "2.0", "--dashboard", "off"]) == 0
    assert run.main(["--resume", str(tmp_path / "out"), "--objective.weight", "3"]) == 2
    assert "objective.weight: 3.0 contradicts the run in " in capsys.readouterr().err


def test_a_default_may_be_repeated_where_a_run_goes_on(file, npz, tmp_path, capsys):
    out = tmp_path / "out"
    extend.defence("hiding")(Hiding)
    assert train(npz, out, "--plugin", file, "--objective", "apart", "--defence", "gaussian+hiding") == 0
    resume = ["--resume", str(out), "--dashboard", "off"]
    assert run.main([*resume, "--objective.weight", "1", "--objective.most", "none", "--defence.where=smashed"]) == 0
    for option, allowed in (
        ("objective.weight", "1.0, or "),
        ("objective.most", "None, or "),
        ("defence.deviation", ""),
    ):
        assert run.main([*resume, f"--{option}", "2"]) == 2
        assert capsys.readouterr().err.endswith(f"contradicts the run in {out}; allowed: {allowed}leave the flag out\n")


def test_a_plugin_that_was_changed_is_warned_of_once(file, npz, tmp_path, caplog):
    assert train(npz, tmp_path / "out", "--plugin", file, "--objective", "apart") == 0
    file.write_text(f"{OBJECTIVE}# another line")
    assert run.main(["--resume", str(tmp_path / "out"), "--dashboard", "off"]) == 0
    assert report.main([str(tmp_path / "out")]) == 0
    said = [line for line in caplog.messages if "apart.py" in line]
    assert said == ["the plugin apart.py is not the one that the run began with: its source has changed"]
    (row,) = [line for line in (tmp_path / "out" / "report.md").read_text().splitlines() if "plugins" in line]
    assert f"apart.py ({hashlib.sha256(OBJECTIVE.encode()).hexdigest()[:8]})" in row.replace("\\", "")


def test_a_run_goes_on_with_the_defaults_that_it_began_with(file, npz, tmp_path):
    """So do its report, and new runs from its config; a default that stayed is no option."""
    out = tmp_path / "out"
    assert train(npz, out, "--plugin", file, "--objective", "apart", "--objective.most", "3") == 0
    content = json.loads((out / "config.json").read_text())
    assert content["config"]["options"] == {"objective.most": 3}
    defaults = {name: value for name, value in content["defaults"].items() if name.startswith("objective")}
    assert defaults == {"objective.weight": 1.0, "objective.squared": True}
    first = RunDirectory(out).read_config()
    assert first.config.options == {"objective.most": 3}
    later = tmp_path / "later.py"
    later.write_text(OBJECTIVE.replace("option(1.0", "option(2.0"))
    del DOORS["objective"]["apart"]
    plugins.load(str(later))
    with patch.object(plugins, "check"):  # as if the plugin's file had been replaced
        second = RunDirectory(out).read_config()
        assert second.config.options == {"objective.most": 3, "objective.weight": 1.0}
        assert second.identity == first.identity
        assert Simulation.load(out).parts.hyper.objective.weight == 1.0
        assert RunConfig.load(out / "config.json").options == second.config.options


def test_a_default_whose_option_is_gone_is_refused(file, npz, tmp_path, capsys):
    """Only a file that was edited may choose something else, to which the default does not belong."""
    out, new = tmp_path / "out", ["--out", str(tmp_path / "new")]
    assert train(npz, out, "--plugin", file, "--objective", "apart") == 0
    later = tmp_path / "later" / "apart.py"
    later.parent.mkdir()
    later.write_text(OBJECTIVE.replace("weight", "share").replace("option(1.0", "option(0.1"))
    del DOORS["objective"]["apart"]
    plugins.load(str(later))
    gone = "options: 'objective.weight' is not known"
    blamed = f"plugin: {out}/config.json was written with apart.py, which has changed since ({gone}"
    for opened in (lambda: run.main(["--resume", str(out)]), lambda: report.main([str(out)])):
        assert opened() == 2
        assert blamed in capsys.readouterr().err
    config = out / "config.json"
    assert run.main(["--config", str(config), *new]) == 2
    assert capsys.readouterr().err.startswith(f"error: {gone}")
    config.write_text(config.read_text().replace('"objective": "apart"', '"objective": "simclr"'))
    assert RunConfig.load(config).options == {}


def test_defaults_are_kept_that_defences_no_longer_share():
    extend.defence("hiding")(Hiding)
    config = RunConfig(defence="gaussian+hiding")
    assert "defence.deviation" not in config.defaults
    assert config.keeping({"defence.deviation": 0.1}).options == {"defence.deviation": 0.1}


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


@pytest.mark.parametrize("before", [True, False])
def test_help_shows_what_plugins_have_wherever_they_stand(before, file, tmp_path, capsys):
    (tmp_path / "settings.py").write_text(SETTINGS)
    words = ["--plugin", str(file), f"--plugin={tmp_path / 'settings.py'}"]
    with pytest.raises(SystemExit):
        run.main([*words, "--help"] if before else ["--help", *words])
    text = capsys.readouterr().out
    for name in ("apart (apart.py)", "crowd (settings.py)", "{loud (settings.py)}", "stripes (settings.py),FILE.npz"):
        assert name in text
    assert "--objective.temperature 0.2; --list shows them all" in text


def test_a_plugin_flag_without_a_value_takes_none_of_the_others(capsys):
    assert run.main(["--plugin", "--list"]) == 2
    assert capsys.readouterr().err == "error: plugin: expected one argument; allowed: a value behind the flag\n"


def test_the_list_shows_options_with_all_that_is_known_of_them(file, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert run.main(["--list", "--plugin", str(file)]) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    text = " ".join(printed.split())
    assert (
        "apart The squared distance of two views. from the plugin apart.py --objective.weight 1.0 Weight. (0 to 10) "
        "--objective.squared true Square it. (true or false) --objective.most none Most. (a whole number)"
    ) in text
    assert "--sampler.file none File with a line for each client: the spans of seconds" in text
    assert "--defence.where smashed What the noise or clipping is applied to. (smashed, gradient, update)" in text
    assert "--objective.temperature 0.5 Temperature of NT-Xent. (1e-06 to 1,000,000)" in text


def test_the_list_has_networks_that_cannot_be_made_for_small_images(tmp_path, capsys):
    source = "from simsfl import extend\n@extend.architecture('picky', width=8)\ndef picky(width, image_size, style):\n"
    (tmp_path / "picky.py").write_text(f"{source}    raise ValueError('arch: too small')\n")
    assert run.main(["--list", "--plugin", str(tmp_path / "picky.py")]) == 0
    assert "picky cannot be made for images of 32x32: arch: too small" in " ".join(capsys.readouterr().out.split())


SETTINGS = """
from dataclasses import dataclass
from simsfl import extend


@extend.optimizer("plain")
@dataclass(frozen=True)
class Plain(extend.Optimiser):
    def size(self, parameters):
        return 0

    def step_(self, model, weights, gradient, memory, lr):
        weights -= lr * gradient


@extend.optimizer("decaying", settings=("weight_decay",), exact=True)
@dataclass(frozen=True)
class Decaying(extend.Optimiser):
    def size(self, parameters):
        return 0

    def step_(self, model, weights, gradient, memory, lr):
        weights -= lr * gradient


@extend.sampler("choosy", absences=True)
@dataclass(frozen=True)
class Choosy(extend.Sampler):
    def draw(self, clients, count, round_index, images, rng):
        return super().draw(clients, count, round_index, images, rng)


@extend.defence("crowd", images=5)
@dataclass(frozen=True)
class Crowd(extend.Defence):
    def learn(self, gradient, draws):
        return gradient


@extend.partition("mine", settings=("alpha",))
class Mine(extend.Partitioner):
    def deal(self, labels, weights, rng):
        return extend.Partition.of([])


@extend.partition("owned")
class Owned(extend.Partitioner):
    fixed = True

    def deal(self, labels, weights, rng):
        return extend.Partition.of([])


@extend.callback("loud")
@dataclass(frozen=True)
class Loud(extend.Callback):
    def on_start(self, simulation):
        pass


@extend.dataset("stripes", "stripes", images=None, test_images=None, image_size=32, classes=2)
def stripes(request):
    raise NotImplementedError
"""


def test_settings_have_an_effect_where_a_plugin_says_so(tmp_path):
    (tmp_path / "settings.py").write_text(SETTINGS)
    plugins.load(str(tmp_path / "settings.py"))
    for fields in (
        {"optimizer": "decaying", "weight_decay": 0.1},
        {"sampler": "choosy", "clients": 5, "cohort": 5},
        {"partition": "mine", "alpha": 0.1},
    ):
        RunConfig(**fields).check_effect(fields)
    for fields, message in (
        ({"optimizer": "plain", "momentum": 0.5}, "momentum: has no effect where optimizer is plain; allowed with "),
        ({"optimizer": "decaying", "momentum": 0.5}, "momentum: has no effect where optimizer is decaying; allowed wi"),
        ({"optimizer": "plain", "weight_decay": 0.1}, "weight_decay: has no effect where optimizer is plain; allowed"),
        ({"partition": "mine", "classes_per_client": 3}, "classes_per_client: has no effect where partition is mine;"),
        ({"optimizer": "decaying", "client_state_dtype": "bf16"}, "client_state_dtype: bf16 cannot count the steps of"),
        ({"defence": "clip+crowd", "batch_size": 4}, r"batch_size: 4 is too few images for defence clip\+crowd; allo"),
        ({"partition": "owned", "unequal": "0.2_0.8|16|0.8_0.2"}, "unequal: .* is not for partition owned, in which"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            RunConfig(**fields).check_effect(fields)


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


def test_a_setting_of_queues_names_the_plugins_that_have_one():
    class Queued(extend.Objective):
        """Has a queue."""

        def loss(self, outputs, targets, memory):
            raise NotImplementedError

    extend.objective("queued", queue=True)(Queued)
    with pytest.raises(ValueError, match=r"^queue_length: has no effect .*; allowed with objective moco or queued$"):
        RunConfig(objective="simclr", queue_length=50).check_effect(["queue_length"])


def test_a_plugin_that_has_lost_an_option_is_blamed(file, npz, tmp_path, capsys):
    out = tmp_path / "out"
    assert train(npz, out, "--plugin", file, "--objective", "apart", "--objective.weight", "0.5") == 0

    @dataclass(frozen=True)
    class Apart(extend.Objective):
        """Has no option any more."""

        def loss(self, outputs, targets, memory):
            raise NotImplementedError

    Apart.__module__ = DOORS["objective"].pop("apart").code.registered.__module__
    extend.objective("apart", targets=extend.Targets.ONLINE)(Apart)
    assert run.main(["--resume", str(out)]) == 2
    assert re.search(
        r"plugin: \S+ was written with apart.py, which has changed since .*'objective.weight'", capsys.readouterr().err
    )
    assert train(npz, out, "--overwrite") == 0


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


@pytest.mark.slow
def test_a_file_that_an_option_names_belongs_to_the_run(npz, tmp_path, monkeypatch, caplog):
    """The run finds the file from anywhere, and a warning tells that it has changed."""
    times, out = tmp_path / "times.txt", tmp_path / "out"
    times.write_text("0-60\n" * 8)
    monkeypatch.chdir(tmp_path)
    assert train(npz, out, "--sampler", "availability", "--sampler.file", times.name, "--rounds", "2") == 0
    content = json.loads((out / "config.json").read_text())
    assert content["config"]["options"] == {"sampler.file": str(times)}
    assert content["files"] == {"sampler.file": hashlib.sha256(times.read_bytes()).hexdigest()}
    monkeypatch.chdir("/")
    assert report.main([str(out)]) == 0
    assert not caplog.messages
    times.write_text("0-120\n" * 8)
    assert report.main([str(out)]) == 0
    assert caplog.messages == [f"sampler.file: {times} has changed since the run in {out} began"]
    (out / "summary.json").unlink()
    assert run.main(["--resume", str(out), "--dashboard", "off"]) == 0
    assert report.main([str(out)]) == 0
    became = hashlib.sha256(times.read_bytes()).hexdigest()[:8]
    assert f"| went on with | sampler.file ({became}) after round 2 |" in (out / "report.md").read_text()


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
