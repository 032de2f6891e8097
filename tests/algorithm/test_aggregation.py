"""Averaging: when the models of a cohort are averaged, and who has the average."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from simsfl import Simulation
from simsfl.algorithm.aggregation import is_sync_step
from tests.simulations import trained


@pytest.mark.parametrize(("steps", "syncs"), [(50, 1), (50, 10), (5, 2), (7, 3), (4, 9), (1, 1), (500, 10)])
def test_syncs_are_even_and_the_last_at_the_end(steps, syncs):
    at = [s + 1 for s in range(steps) if is_sync_step(s, steps, syncs)]
    assert len(at) == min(steps, syncs)
    assert at[-1] == steps
    gaps = np.diff([0, *at])
    assert gaps.max() - gaps.min() <= 1


def test_every_clients_online_model_is_the_average_and_the_rest_persists(config, dataset):
    simulation = Simulation(config, dataset)
    before = {name: tensor.clone() for name, tensor in simulation.state.tensors().items()}
    next(simulation.rounds())
    state = simulation.state
    took_part = set(state.cohort.ids.tolist())
    assert len(took_part) == config.cohort
    torch.testing.assert_close(state.cohort.online, state.clients.online.expand_as(state.cohort.online))
    for client in range(config.clients):
        untouched = torch.equal(state.clients.momentum[client], before["clients.momentum"][client])
        assert untouched == (client not in took_part)
        assert (state.clients.velocity[client] == 0).all() == (client not in took_part)
        assert state.clients.participation[client] == (client in took_part)


def test_aligned_momentum_is_one_model_for_all(config, dataset):
    simulation, _ = trained(replace(config, align_momentum=True), dataset)
    state = simulation.state
    assert len(state.clients.momentum) == 1
    torch.testing.assert_close(state.cohort.momentum, state.clients.momentum.expand_as(state.cohort.momentum))
