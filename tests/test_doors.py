"""Whatever is chosen, stacked clients compute what the plain loop over clients does, in float64."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from simsfl import RunConfig, Simulation
from simsfl.config.catalogue import AGGREGATIONS, DEFENCES, OBJECTIVES, OPTIMIZERS, SAMPLERS
from simsfl.data import Arrays, make_dataset
from tests.conftest import TINY

BASE = TINY | {"clients": 6, "batch_size": 4, "rounds": 2, "eval_every": 0, "knn_bank": 6, "knn_test": 6}
"""Config fields of a run of two rounds of two steps, each with an averaging."""
LABELS = {"key_dim": RunConfig.key_dim, "queue_length": RunConfig.queue_length}
"""Config fields that have no effect where labels are learnt, with their defaults."""

CHOICES = {
    **{f"{name}, split": {"objective": name, **(LABELS if name == "supervised" else {})} for name in OBJECTIVES},
    **{
        f"{name}, federated": {"objective": name, "method": "federated", "syncs_per_round": 1}
        | (LABELS if name == "supervised" else {})
        for name in OBJECTIVES
    },
    **{f"{name} with BatchNorm": {"objective": name, "norm": "batch"} for name in OBJECTIVES if name != "supervised"},
    **{name: {"aggregation": name, "partition": "dirichlet", "alpha": 9.0} for name in AGGREGATIONS},
    "aligned median": {"aggregation": "median", "align_momentum": True, "norm": "batch"},
    **{
        f"{name} that some miss": {"sampler": name, "dropout": 0.3, "straggler": 0.4, "rounds": 3}
        for name in SAMPLERS
        if name != "availability"
    },
    "absent, own queues": {"dropout": 0.4, "feature_sharing": False, "rounds": 3},
    "absent, federated": {"dropout": 0.4, "method": "federated", "rounds": 3, "syncs_per_round": 1},
    "absent, both views": {"straggler": 0.5, "objective": "simclr", "rounds": 3},
    **{f"{name} optimiser": {"optimizer": name, "lr": 0.001} for name in OPTIMIZERS},
    "federated AdamW": {"optimizer": "adamw", "lr": 0.001, "method": "federated", "syncs_per_round": 1},
    "FedProx and warm-up": {"proximal": 0.5, "warmup_rounds": 1},
    **{f"{name} defence": {"defence": name} for name in DEFENCES},
    "defences of both views": {"defence": "clip+gaussian+int8", "objective": "simclr"},
    "noise of updates": {"defence": "clip+laplacian", "options": {"defence.where": "update", "defence.norm": 0.5}},
    "noise of gradients": {"defence": "gaussian", "options": {"defence.where": "gradient"}, "dropout": 0.3},
}
"""Config fields that differ from `BASE`."""


@pytest.fixture(scope="module")
def pictures():
    """Return 60 training and 6 test images of 16x16 in three classes."""
    rng = np.random.default_rng(0)

    def split(count):
        return rng.integers(0, 256, (count, 16, 16, 3)).astype(np.uint8), np.arange(count) % 3

    return make_dataset("tiny", "made up", Arrays(*split(60), *split(6), ("a", "b", "c")))


def trained(config, engine, pictures):
    """Return the losses of a run's steps, and the tensors of its final state by name."""
    simulation = Simulation(replace(config, engine=engine), pictures, dtype=torch.float64)
    losses = [record.loss for record in simulation.train() if record.event == "step"]
    return losses, simulation.state.tensors()


@pytest.mark.parametrize("fields", CHOICES.values(), ids=CHOICES)
def test_stacked_clients_compute_what_the_loop_does(fields, pictures):
    config = RunConfig(**BASE | fields)
    losses, state = trained(config, "loop", pictures)
    for engine in ("vmap", "fused:unfold"):
        found, tensors = trained(config, engine, pictures)
        assert found == pytest.approx(losses, rel=1e-7)
        assert tensors.keys() == state.keys()
        for name, tensor in state.items():
            torch.testing.assert_close(tensors[name], tensor, rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.parametrize("arch", ["vit-tiny", "convnext-tiny"])
def test_networks_with_layer_norm_compute_what_the_loop_does(arch, pictures):
    config = RunConfig(**BASE | {"arch": arch, "width": 8, "optimizer": "adamw", "lr": 0.001, "rounds": 1})
    losses, state = trained(config, "loop", pictures)
    found, tensors = trained(config, "vmap", pictures)
    assert found == pytest.approx(losses, rel=1e-7)
    for name, tensor in state.items():
        torch.testing.assert_close(tensors[name], tensor, rtol=1e-5, atol=1e-7, msg=name)
