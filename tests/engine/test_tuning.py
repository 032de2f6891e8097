"""Choices of operators that are made by measuring: kept for later, used again, and ignored on other machines."""

import json
import logging
import sys
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from simsfl import Simulation
from simsfl.algorithm import server
from simsfl.engine import tuning
from simsfl.kernels import CHOICES, CannotRunError, accelerated, choosing
from simsfl.runs.directory import RunDirectory
from simsfl.system.paths import cache_directory


@pytest.fixture(autouse=True)
def measured_quickly(monkeypatch):
    """Measure for a short time only."""
    monkeypatch.setattr(tuning, "SECONDS", 1e-9)
    monkeypatch.setattr(tuning, "_CHUNKS", (2, 1))


def kept():
    """Return the choices in the cache, by the machine and version that they were made on."""
    return json.loads((cache_directory() / "choices.json").read_text())


def test_choices_are_kept_for_the_next_process(config, dataset):
    first = Simulation(replace(config, engine="fused"), dataset)
    assert {key.split()[0] for key in first.parts.choices} == {"conv2d", "conv2d_backward", "chunk"}
    assert kept() == {tuning.where(): first.parts.choices}
    (chunk,) = (key for key in first.parts.choices if key.startswith("chunk"))
    other = dict.fromkeys(first.parts.choices, "grouped") | {chunk: "1" if first.parts.hyper.chunk == 2 else "2"}
    tuning._write_choices(other)
    CHOICES.clear()
    second = Simulation(replace(config, engine="fused"), dataset)
    assert second.parts.choices.items() <= other.items()
    assert str(second.parts.hyper.chunk) == other[chunk]


def test_those_of_another_version_or_machine_are_ignored_and_left(config, dataset, monkeypatch):
    Simulation(replace(config, engine="fused"), dataset)
    ours = kept()
    CHOICES.clear()
    monkeypatch.setattr(torch, "__version__", "0.1")
    Simulation(replace(config, engine="fused"), dataset)
    assert len(kept()) == 2
    assert ours.items() <= kept().items()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"a": 1}', '{"a": {"b": 1}}', "\x00"])
def test_a_damaged_file_is_replaced_with_a_warning(content, config, dataset, caplog):
    cache_directory().mkdir(parents=True, exist_ok=True)
    (cache_directory() / "choices.json").write_text(content)
    with caplog.at_level(logging.WARNING):
        simulation = Simulation(replace(config, engine="fused"), dataset)
    assert "choices.json is damaged" in caplog.text
    assert kept() == {tuning.where(): simulation.parts.choices}


def test_choices_are_made_without_a_cache_that_can_be_written(config, dataset, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SIMSFL_CACHE", str(tmp_path / "file" / "cache"))
    assert Simulation(replace(config, engine="fused"), dataset).parts.choices


def test_a_resumed_run_abides_by_its_own(config, dataset, tmp_path):
    simulation = Simulation(replace(config, engine="fused"), dataset)
    simulation.save(tmp_path / "run")
    path = RunDirectory(tmp_path / "run").config
    content = json.loads(path.read_text())
    del content["sha256"]  # which is that of the file as it was written
    assert content["choices"] == simulation.parts.choices
    content["choices"] = {key: "unfold" if key.startswith("conv2d") else "1" for key in content["choices"]}
    path.write_text(json.dumps(content))
    resumed = Simulation.load(tmp_path / "run", dataset)
    assert resumed.parts.choices.items() <= content["choices"].items()
    assert "unfold" in resumed.parts.choices.values()
    assert resumed.parts.hyper.chunk == 1


def test_every_shape_is_known_before_training_and_a_resumed_runs_choices_are_its_own(
    config, dataset, tmp_path, monkeypatch
):
    monkeypatch.setattr(tuning, "_CHUNKS", (3,))
    config = replace(config, engine="fused", cohort=8, rounds=1)
    simulation = Simulation(config, dataset)
    before = dict(simulation.parts.choices)
    assert sum(key.startswith("conv2d ") for key in before) == 2  # chunks of 3, and one of 2
    list(simulation.rounds())
    assert simulation.parts.choices == before
    simulation.save(tmp_path / "run")
    path = RunDirectory(tmp_path / "run").config
    content = json.loads(path.read_text())
    del content["sha256"]  # which is that of the file as it was written
    path.write_text(json.dumps(content | {"choices": dict.fromkeys(before, "unfold")}))
    held = kept()
    Simulation.load(tmp_path / "run", dataset)
    assert kept() == held
    assert Simulation(config, dataset).parts.choices == before


def test_the_servers_operators_are_called_before_training_too(config, dataset, monkeypatch):
    """The server is made to use them as on CUDA, since on a CPU it does not."""
    monkeypatch.setattr(server, "accelerated", lambda version: nullcontext())
    simulation = Simulation(replace(config, engine="fused", norm="batch"), dataset)
    central, smashed = simulation.model.server, torch.zeros(4, *simulation.model.smashed_shape)
    before = central.initial_statistics.clone()
    with accelerated(), choosing() as used:
        tuning.server_passes(central, simulation.parts.hyper, simulation.state.server.online, smashed)
    assert torch.equal(central.initial_statistics, before)
    shape = "x".join(map(str, smashed.shape))
    assert any(key.startswith(f"conv2d 1x{shape} ") for key in used)
    assert any(key.startswith("conv2d_backward ") for key in used)

    def fail(*arguments):
        raise OverflowError("it is too much")

    monkeypatch.setitem(sys.modules["simsfl.kernels.conv2d"]._BACKWARD, "unfold", fail)
    with (
        accelerated("unfold"),
        pytest.raises(ValueError, match=r"engine: fused:unfold .*conv2d_backward .*it is too much; allowed: fused, "),
        tuning.able("fused:unfold"),
    ):
        tuning.server_passes(central, simulation.parts.hyper, simulation.state.server.online, smashed)


def test_lack_of_memory_is_raised_unchanged():
    error = CannotRunError("version unfold of conv2d cannot run: OutOfMemoryError: Tried to allocate 20 GB")
    with pytest.raises(CannotRunError, match="Tried to allocate"), tuning.able("fused:unfold"):
        raise error
