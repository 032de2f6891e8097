"""Callbacks, and runs from Python."""

import json
from dataclasses import replace
from importlib.metadata import version

import pytest

import simsfl
from simsfl import RunConfig, Simulation
from simsfl.algorithm.observer import Observer
from simsfl.algorithm.wire import Wire
from simsfl.cli import run as program
from simsfl.config.presets import coffee
from simsfl.rounds.callback import Callback
from tests.conftest import TINY, flags


class Listening(Callback):
    """Keeps the kinds of records, and adds to records of steps."""

    def __init__(self):
        self.events, self.saves, self.began = [], 0, 0

    def on_start(self, simulation):
        self.began += 1
        self.simulation = simulation

    def on_record(self, record):
        self.events.append(record.event)
        return {"double": 2 * record.loss, "note": None} if record.event == "step" else None

    def on_checkpoint(self, path):
        assert (path / "checkpoints" / "manifest.json").is_file()
        self.saves += 1


def test_a_run_from_python_is_the_programs(npz, tmp_path, capsys):
    config = replace(coffee(), **TINY, dataset=str(npz))
    listening = Listening()
    summary = simsfl.run(config, tmp_path / "python", callbacks=[listening])
    assert program.main([*flags(dataset=npz, out=tmp_path / "program", **TINY), "--dashboard", "off"]) == 0
    mine, theirs = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("python", "program")
    )
    assert [record["event"] for record in mine] == listening.events
    for record, other in zip(mine, theirs, strict=True):
        added = record.pop("added", None)
        assert record == other
        assert added == ({"double": 2 * record["loss"], "note": None} if record["event"] == "step" else None)
    assert listening.began == 1
    assert listening.saves == TINY["rounds"]
    assert summary.knn_top1 == [record["knn_top1"] for record in mine if "knn_top1" in record][-1]
    assert json.loads((tmp_path / "python" / "summary.json").read_text())["knn_top1"] == summary.knn_top1
    assert simsfl.resume(tmp_path / "python") == summary
    with pytest.raises(ValueError, match=r"^out: .*python holds another run; allowed: another directory"):
        simsfl.run(config, tmp_path / "python")
    assert simsfl.run(config, str(tmp_path / "python"), overwrite=True).knn_top1 == summary.knn_top1


def test_a_run_that_was_saved_is_resumed_from_python(dataset, tmp_path):
    config = RunConfig(**TINY)
    whole = simsfl.run(config, tmp_path / "whole", dataset=dataset)
    simulation = Simulation(config, dataset)
    simulation.save(tmp_path / "run")
    listening = Listening()
    assert simsfl.resume(tmp_path / "run", dataset=dataset, callbacks=[listening]).knn_top1 == whole.knn_top1
    assert listening.events[-1] == "round"


def test_a_callback_that_is_missing_when_its_run_goes_on_is_warned_of(config, dataset, tmp_path, caplog):
    simulation = Simulation(config, dataset, callbacks=[Listening(), Callback(), Listening()])
    simulation.save(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["callbacks"] == [
        "Listening"
    ]  # what is simsfl's own is not recorded
    Simulation.load(tmp_path, dataset).evaluate()
    assert not caplog.messages  # nothing goes on
    loaded = Simulation.load(tmp_path, dataset, callbacks=[Callback()])
    next(loaded.rounds())
    next(loaded.rounds())
    assert caplog.messages == ["Listening was given to this run in Python when it began, and is not there now"]
    caplog.clear()
    next(Simulation.load(tmp_path, dataset, callbacks=[Callback(), Listening()]).rounds())
    assert not caplog.messages


@pytest.mark.parametrize("value", [float("nan"), [1], {"a": 1}], ids=repr)
def test_a_callback_adds_figures_alone(value, config, dataset):
    class Wrong(Callback):
        """Adds what is no figure."""

        def on_record(self, record):
            return {"odd": value}

    with pytest.raises(
        ValueError, match=r"^callback: Wrong adds .odd. = .*; allowed: a dict of finite numbers, texts, bo"
    ):
        next(Simulation(config, dataset, callbacks=[Wrong()]).train())


def test_names_of_callbacks_are_checked():
    with pytest.raises(ValueError, match=r"^callback: 'norms' is not known; allowed: those of a --plugin$"):
        RunConfig(callback="norms")


def test_rounds_are_followed_however_they_are_trained(config, dataset):
    listening = Listening()
    simulation = Simulation(config, dataset, callbacks=[listening])
    next(simulation.rounds())
    next(simulation.round())
    assert (listening.began, listening.events.count("round")) == (1, 1)
    assert listening.events.count("step") == simulation.parts.steps + 1
    list(simulation.rounds())
    assert listening.events.count("step") == TINY["rounds"] * simulation.parts.steps


def test_the_version_is_that_of_the_installation():
    assert simsfl.__version__ == version("simsfl")


class Quiet(Wire):
    """A wire of one's own."""


class Watching(Observer):
    """An observer of one's own."""


def test_a_wire_and_an_observer_that_are_missing_when_their_run_goes_on_are_warned_of(
    config, dataset, tmp_path, caplog
):
    simulation = Simulation(config, dataset)
    simulation.wire = Quiet()
    simulation.observers.append(Watching())
    simulation.save(tmp_path)
    loaded = Simulation.load(tmp_path, dataset)
    loaded.wire = Quiet()
    next(loaded.rounds())
    assert caplog.messages == ["Watching was given to this run in Python when it began, and is not there now"]


def test_a_field_without_effect_is_refused_from_python_as_from_the_command_line(tmp_path):
    with pytest.raises(ValueError, match=r"^temperature: has no effect where the objective has no key queue"):
        simsfl.run(RunConfig(**TINY | {"queue_length": 6000}, objective="byol", temperature=0.5), tmp_path / "run")
    with pytest.raises(ValueError, match=r"^epochs: has no effect where rounds is 2; allowed with rounds left to its"):
        simsfl.run(replace(coffee(), rounds=2, epochs=7), tmp_path / "run")
    assert not list(tmp_path.iterdir())
