"""What the state keeps of each client is gathered for a cohort, and scattered back."""

from dataclasses import replace

import torch

from simsfl import Simulation
from simsfl.algorithm.gathering import gather_, scatter_


def test_a_cohort_that_does_nothing_gives_back_what_it_was_given(config, dataset):
    """New clients get the initial model, others what they had before; nothing changes for those outside the cohort."""
    simulation = Simulation(replace(config, feature_sharing=False), dataset)
    next(simulation.rounds())
    state, clients, cohort = simulation.state, simulation.state.clients, simulation.state.cohort
    old, new = clients.participants()[-1:].tolist(), (clients.participation == 0).nonzero().flatten()[:2].tolist()
    before = {name: tensor.clone() for name, tensor in state.tensors().items()}
    ids = torch.tensor([new[1], *old, new[0]])
    gather_(state, ids)
    assert cohort.ids.tolist() == ids.tolist()
    assert torch.equal(cohort.momentum[1], before["clients.momentum"][old[0]])
    assert torch.equal(cohort.momentum[0], clients.initial)
    assert torch.equal(state.memory["keys"], before["queues.keys"][ids])
    scatter_(state)
    after = state.tensors()
    for name in ("clients.velocity", "queues.keys", "queues.pointer"):
        assert torch.equal(after[name], before[name]), name
    before["clients.momentum"][new] = clients.initial
    assert torch.equal(after["clients.momentum"], before["clients.momentum"])
    before["clients.participation"][ids] += 1
    assert torch.equal(after["clients.participation"], before["clients.participation"])
