"""Checkpoints that are saved and loaded in Python."""

from dataclasses import replace

from safetensors import safe_open

from simsfl import Simulation
from simsfl.algorithm import communication
from simsfl.runs.metrics import to_dict
from tests.simulations import assert_same_state


def test_save_and_load_in_python(config, dataset, tmp_path):
    simulation = Simulation(config, dataset)
    steps = simulation.round()
    for _ in range(2):
        next(steps)  # into the middle of a round
    simulation.save(tmp_path / "run")
    rest = [to_dict(r) for r in simulation.rounds()]
    loaded = Simulation.load(tmp_path / "run", dataset)
    assert (loaded.progress.round_index, loaded.progress.step_index, loaded.damaged) == (0, 2, [])
    assert [to_dict(r) for r in loaded.rounds()] == rest
    assert_same_state(simulation, loaded)


def test_a_checkpoint_holds_what_was_sent_only_where_it_is_needed(config, dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(communication, "WARM_UP", 0)
    simulation = Simulation(replace(config, loss_threshold=50.0, rounds=4), dataset)
    held = ""
    for done, _ in enumerate(simulation.rounds()):
        simulation.save(tmp_path / str(done))
        (file,) = (tmp_path / str(done)).glob("checkpoints/*.safetensors")
        with safe_open(file, framework="pt") as tensors:
            held += "y" if "sent.smashed" in tensors.keys() else "n"  # noqa: SIM118 - not a dictionary
    assert held == "nnyy"  # the last two are before and after a round in which nothing is sent
    loaded = Simulation.load(tmp_path / "2", dataset)
    list(loaded.rounds())
    assert_same_state(loaded, simulation)
