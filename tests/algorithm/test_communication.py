"""Saving of communication: the server learns again from what clients sent, for which there must be room."""

from dataclasses import replace

import pytest

from simsfl import Simulation
from simsfl.algorithm import communication, server
from simsfl.runs.metrics import RoundRecord
from simsfl.setup import checks
from tests.simulations import trained


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_what_supervised_clients_sent_is_learnt_again_with_its_labels(dropout, config, dataset, monkeypatch):
    """Also where some of them were absent, and have sent nothing."""
    monkeypatch.setattr(communication, "WARM_UP", 0)
    lessons, original = [], server.gradients

    def gradients(model, central, smashed, memory, hyper, labels, everyone):
        lessons.append((smashed.sum().item(), labels.tolist()))
        return original(model, central, smashed, memory, hyper, labels, everyone)

    monkeypatch.setattr(server, "gradients", gradients)
    config = replace(config, supervised=True, loss_threshold=50.0, rounds=4, dropout=dropout)
    simulation, records = trained(config, dataset)
    assert [r.communication for r in records if isinstance(r, RoundRecord)] == ["A", "A", "B", "C"]
    steps = simulation.parts.steps
    assert sorted(lessons[2 * steps : 3 * steps]) == sorted(lessons[3 * steps :])
    plan = simulation.parts.plan(2)
    there = [position for position in range(len(plan.cohort)) if position not in plan.absences.missing]
    assert (len(there) == len(plan.cohort)) == (dropout == 0)
    sent = [dataset.train_labels[rows[there]].flatten().tolist() for rows in plan.groups[0].indices]
    assert sent == [labels for _, labels in lessons[2 * steps : 3 * steps]]


def test_saving_needs_room_for_what_is_sent(config, dataset, monkeypatch):
    monkeypatch.setattr(checks, "free_memory", lambda: 1000)
    with pytest.raises(ValueError, match=r"loss_threshold: 1 keeps the .* GB .* --client-state mmap"):
        Simulation(replace(config, loss_threshold=1.0), dataset)
