"""Whatever is chosen, stacked clients compute what the plain loop over clients does, in float64."""

from dataclasses import replace
from unittest.mock import patch

import pytest
import torch

from simsfl import RunConfig, Simulation, extend
from simsfl.aggregations import Aggregation
from simsfl.config.catalogue import DOORS, OBJECTIVES
from simsfl.config.registry import code_of
from simsfl.testing import _images, check
from tests.conftest import TINY

BASE = TINY | {"clients": 6, "batch_size": 4, "rounds": 2, "eval_every": 0, "knn_bank": 6, "knn_test": 6}
"""Config fields of a run of two rounds of two steps, each with an averaging."""

CHOICES = {
    **{f"{name} with BatchNorm": {"objective": name, "norm": "batch"} for name in OBJECTIVES if name != "supervised"},
    "aligned median": {"aggregation": "median", "align_momentum": True, "norm": "batch"},
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


@pytest.fixture(scope="module")
def pictures():
    """Return 60 training and 6 test images of 16x16 in three classes."""
    return _images()


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


SHORT = ("moco", "fedavgm", "gaussian")
"""Names that are not left to the slow tests."""


@pytest.mark.parametrize(
    ("door", "name"),
    [
        pytest.param(door, name, marks=[] if name in SHORT else pytest.mark.slow)
        for door in RunConfig().chosen
        for name in DOORS[door]
        if name not in ("availability", "natural", "given")  # which need a file, owners of images, a partition
    ],
)
def test_what_comes_with_simsfl_passes_the_check_for_plugins(door, name):
    fields = {"lr": 0.001} if name in ("adamw", "lars") else {}  # or rounding is amplified
    tried = check(code_of(DOORS[door][name]).load(), **fields)
    assert {"the whole cohort", "a sampled cohort", "clients that are absent or slow"} <= set(tried)
    assert ("federated clients" in tried) == (door != "defence")


def test_a_check_says_in_words_what_differs():
    class Forgetful(Aggregation):
        """Adds what it does not keep in its memory."""

        calls = 0

        def step(self, before_P, combined_P, memory):
            Forgetful.calls += 1
            return combined_P + 0.01 * Forgetful.calls

    with patch.dict(DOORS["aggregation"]):
        extend.aggregation("forgetful")(Forgetful)
        with pytest.raises(AssertionError, match=r"^forgetful, the whole cohort, engine vmap: the loss of step 2 is "):
            check(Forgetful)
    with pytest.raises(ValueError, match=r"^thing: .*Forgetful.* is not registered"):
        check(Forgetful)


@pytest.mark.parametrize("fields", CHOICES.values(), ids=CHOICES)
def test_stacked_clients_compute_what_the_loop_does(fields, pictures):
    assert_equal_to_the_loop(RunConfig(**BASE | fields), ("vmap", "fused:unfold"), pictures)


@pytest.mark.parametrize("arch", ["vit-tiny", "convnext-tiny"])
def test_networks_with_layer_norm_compute_what_the_loop_does(arch, pictures):
    config = RunConfig(**BASE | {"arch": arch, "width": 8, "optimizer": "adamw", "lr": 0.001, "rounds": 1})
    assert_equal_to_the_loop(config, ("vmap",), pictures)
