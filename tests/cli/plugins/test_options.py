"""Options of plugins: their flags, defaults and lists, and the settings that plugins say have an effect."""

import hashlib
import json
import re
from dataclasses import dataclass
from unittest.mock import patch

import pytest

from simsfl import Simulation, extend
from simsfl.cli import run
from simsfl.cli.report import program as report
from simsfl.config import RunConfig, plugins
from simsfl.config.catalogue import DOORS
from simsfl.runs.directory import RunDirectory
from tests.cli.plugins.conftest import OBJECTIVE, train


@dataclass(frozen=True)
class Hiding(extend.Defence):
    """Has an option of another defence, with another default."""

    deviation: float = extend.option(0.5, "Noise.")

    def learn(self, gradient, draws):
        return gradient


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
