"""Helpers that train simulations and compare what they have learnt."""

import torch

from simsfl import Simulation
from simsfl.rounds.recorder import Recorder


def trained(config, dataset):
    """Train a run to its end; return the simulation and its records."""
    simulation = Simulation(config, dataset)
    records = list(simulation.train())
    return simulation, records


def assert_same_state(one, two):
    """Raise an AssertionError unless everything that two simulations have learnt is the same to the bit."""
    tensors = two.state.tensors()
    for name, tensor in one.state.tensors().items():
        assert torch.equal(tensor, tensors[name]), name


def assert_moved_alike(one, two, start, share):
    """Raise an AssertionError if a tensor of two states differs by more than a share of how far it has moved.

    Args:
        one: a simulation.
        two: another simulation of the same run.
        start: a simulation of that run which has not begun.
        share: how much of the distance from the start to `two` may lie between `one` and `two`.
    """
    first, second, origin = (simulation.state.tensors() for simulation in (one, two, start))
    for name, tensor in first.items():
        if tensor.is_floating_point():
            moved = (second[name] - origin[name]).norm()
            assert (tensor - second[name]).norm() <= share * moved, name
        else:
            assert torch.equal(tensor, second[name]), name


def recorder_of(simulation, client, path):
    """Return the recorder of a client of a simulation, None for one of the next cohort."""
    return Recorder(simulation.parts, simulation.progress, simulation.observers, client, path)
