"""What is reported of a network that gives all images the same output: its contrastive accuracy is 0, not 100 %."""

from itertools import product

import pytest
import torch

from simsfl import RunConfig, Simulation
from tests.conftest import TINY

METHODS = {
    "shared queue": {},
    "own queues": {"feature_sharing": False, "queue_length": 16},
    "asymmetric": {"symmetric": False},
    "fl-moco": {"method": "fl-moco", "syncs_per_round": 1, "queue_length": 4},
    "fl-byol": {"method": "fl-byol", "syncs_per_round": 1},
}
"""Fields of a config that differ from `TINY`."""


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(own, id=name, marks=pytest.mark.slow if name.startswith("fl-") else ())
        for name, own in METHODS.items()
    ],
)
def test_images_that_nothing_distinguishes_are_no_hits(settings, black):
    """The models do not move either, so that all keys that the queue takes in are the same as the own one."""
    still = {"lr": 1e-30, "weight_decay": 0.0, "rounds": 1, "eval_every": 0, "cohort": 8, "queue_length": 32}
    accuracies = {}
    for engine, dtype in product(("loop", "vmap", "fused:grouped"), (torch.float32, torch.float64)):
        config = RunConfig(**TINY | still | {"engine": engine} | settings)
        steps = [record for record in Simulation(config, black, dtype=dtype).round() if record.event == "step"]
        accuracies[engine, dtype] = [record.contrast_top1 for record in steps]
    begins_random = settings.get("method") != "fl-byol"  # the keys of the queue, which the first step sees
    assert set(map(tuple, accuracies.values())) == {(100.0 if begins_random else 0.0, 0.0, 0.0, 0.0, 0.0)}
