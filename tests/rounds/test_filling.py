"""How far the key queue is said to be filled, against the keys themselves; and the warning of a short one."""

from dataclasses import replace

import pytest
import torch

from simsfl import Simulation
from simsfl.rounds.filling import filled
from simsfl.runs.metrics import AbsenceCount

SETTINGS = {
    "shared": {},
    "one direction": {"symmetric": False},
    "absent": {"dropout": 0.5, "straggler": 0.4},
    "unequal": {"unequal": "0.5_0.5|2|0.5_0.5", "cohort": 4, "batch_size": 1},
    "own": {"feature_sharing": False, "queue_length": 8 * 21},
    "own, absent": {"feature_sharing": False, "queue_length": 8 * 21, "dropout": 0.5},
    "federated": {"method": "fl-moco", "syncs_per_round": 1, "queue_length": 30},
}
"""Fields of the config that differ from those of a tiny run."""


@pytest.mark.parametrize("fields", SETTINGS.values(), ids=SETTINGS)
def test_the_share_is_that_of_the_keys_that_are_no_longer_the_first_ones(fields, config, dataset, tmp_path):
    """After each step of a shared queue; those of clients are complete at the end of a round. A resume goes on."""
    simulation = Simulation(replace(config, eval_every=0, rounds=4, **fields), dataset)
    begun = {key: tensor.clone() for key, tensor in simulation.state.memories.items()}["keys"]
    shares = []
    for record in simulation.train():
        progress, own = simulation.progress, simulation.config.own_queues
        if record.event != ("round" if own else "step"):
            continue
        written = (simulation.state.memories["keys"] != begun).any(dim=2)
        shares.append(filled(simulation.parts, progress))
        assert shares[-1] == pytest.approx(written.double().mean().item(), abs=1e-12)
    assert 0 < shares[0] < 1
    assert shares == sorted(shares)
    simulation.save(tmp_path)
    loaded = Simulation.load(tmp_path, dataset)
    assert filled(loaded.parts, loaded.progress) == shares[-1]


def test_within_a_round_the_queues_of_its_clients_count(config, dataset):
    config = replace(config, feature_sharing=False, queue_length=8 * 21, rounds=2)
    simulation = Simulation(config, dataset)
    assert filled(simulation.parts, simulation.progress) == 0
    found = []
    for rounds in range(2):
        for record in simulation.round():
            if record.event == "step":
                found.append(filled(simulation.parts, simulation.progress))
        assert len(found) == 5 * (rounds + 1)
    assert found[:5] == pytest.approx([3 * 4 * step / (8 * 21) for step in range(1, 6)])  # 4 keys of 3 of 8 clients
    assert found == sorted(found)


def test_an_objective_without_a_queue_fills_none(config, dataset):
    settings = {"queue_length": type(config)().queue_length, "objective": "simclr"}
    simulation = Simulation(replace(config, **settings), dataset)
    assert filled(simulation.parts, simulation.progress) is None


SHORT = {
    "shared": ({"queue_length": 11}, "11 keys are less than one step, which writes 12 (2 of each of 6 images)", 24),
    "one direction": (
        {"queue_length": 5, "symmetric": False},
        "5 keys are less than one step, which writes 6 (1 of each of 6 images)",
        12,
    ),
    "own": (
        {"queue_length": 24, "feature_sharing": False},
        "3 keys on each client are less than one step, which writes 4 (2 of each of 2 images)",
        64,
    ),
    "federated": (
        {"queue_length": 3, "method": "fl-moco", "syncs_per_round": 1},
        "3 keys on each client are less than one step, which writes 4 (2 of each of 2 images)",
        8,
    ),
}
"""Fields of the config, what is said of the queue, and the length from which on nothing more is said."""


@pytest.mark.parametrize(("fields", "said", "enough"), SHORT.values(), ids=SHORT)
def test_a_queue_that_is_shorter_than_a_step_is_warned_of_once(fields, said, enough, config, dataset, tmp_path, caplog):
    simulation = Simulation(replace(config, rounds=2, **fields), dataset)
    list(simulation.round())
    simulation.save(tmp_path)
    list(Simulation.load(tmp_path, dataset).rounds())
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage() == (
        f"queue_length: {said}: the queue forgets some of them at once; usual are several steps, here --queue-length "
        f"{enough} or more"
    )
    caplog.clear()
    for length in (enough, enough // 2):  # a single step fits exactly
        Simulation(replace(config, **fields | {"queue_length": length}), dataset)
    assert not caplog.records


def test_absences_that_an_earlier_version_did_not_count_are_not_known(config, dataset):
    simulation = Simulation(replace(config, dropout=0.5), dataset)
    assert simulation.progress.absent == AbsenceCount()
    simulation.progress.absent = None
    list(simulation.rounds())
    assert simulation.progress.absent is None
    assert torch.tensor(filled(simulation.parts, simulation.progress)) > 0
