"""Whatever is chosen, stacked clients compute what the plain loop over clients does, in float64."""

from dataclasses import replace

import pytest
import torch

from simsfl import RunConfig, Simulation
from simsfl.config.catalogue import OBJECTIVES
from tests.doors.conftest import BASE

CHOICES = {
    **{f"{name} with BatchNorm": {"objective": name, "norm": "batch"} for name in OBJECTIVES if name != "supervised"},
    "aligned median": {"aggregation": "median", "align_momentum": True, "norm": "batch"},
    "mixing around FedAvgM": {"aggregation": "fedavgm", "divergence_tau": 0.5, "cohort": 3, "rounds": 3},
    "images that weigh differently": {"aggregation": "by-images", "partition": "dirichlet", "alpha": 9.0},
    "absent, own queues": {"dropout": 0.4, "feature_sharing": False, "rounds": 3},
    "absent, federated": {"dropout": 0.4, "method": "federated", "rounds": 3, "syncs_per_round": 1},
    "absent, both views": {"straggler": 0.5, "objective": "simclr", "rounds": 3},
    "FedProx and warm-up": {"proximal": 0.5, "warmup_rounds": 1},
    "defences of both views": {"defence": "clip+gaussian+int8", "objective": "simclr"},
    "noise of updates": {"defence": "clip+laplacian", "options": {"defence.where": "update", "defence.norm": 0.5}},
    "noise of gradients": {"defence": "gaussian", "options": {"defence.where": "gradient"}, "dropout": 0.3},
}
"""Config fields that differ from `BASE`."""


def trained(config, engine, pictures):
    """Return the losses of a run's steps, and the tensors of its final state by name."""
    simulation = Simulation(replace(config, engine=engine), pictures, dtype=torch.float64)
    losses = [record.loss for record in simulation.train() if record.event == "step"]
    return losses, simulation.state.tensors()


def assert_equal_to_the_loop(config, engines, pictures):
    """Raise an AssertionError unless engines end with the loop's losses and state, but for rounding."""
    losses, state = trained(config, "loop", pictures)
    for engine in engines:
        found, tensors = trained(config, engine, pictures)
        assert found == pytest.approx(losses, rel=1e-7)
        assert tensors.keys() == state.keys()
        for name, tensor in state.items():
            torch.testing.assert_close(tensors[name], tensor, rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.parametrize("fields", CHOICES.values(), ids=CHOICES)
def test_stacked_clients_compute_what_the_loop_does(fields, pictures):
    assert_equal_to_the_loop(RunConfig(**BASE | fields), ("vmap", "fused:unfold"), pictures)


NETWORKS = {
    "vit": {"arch": "vit-tiny"},
    "vit, token of the class": {"arch": "vit-tiny", "options": {"arch.pool": "class"}},
    "vit, token of the class, cut behind all": {"arch": "vit-tiny", "options": {"arch.pool": "class"}, "cut_layer": 13},
    "convnext": {"arch": "convnext-tiny"},
}
"""Config fields of networks with LayerNorm."""


@pytest.mark.parametrize("fields", NETWORKS.values(), ids=NETWORKS)
def test_networks_with_layer_norm_compute_what_the_loop_does(fields, pictures):
    config = RunConfig(**BASE | fields | {"width": 8, "optimizer": "adamw", "lr": 0.001, "rounds": 1})
    assert_equal_to_the_loop(config, ("vmap",), pictures)
