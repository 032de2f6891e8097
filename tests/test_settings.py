"""Whatever settings are combined, a tiny run trains to finite numbers that two engines agree on, or is refused."""

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations, product
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from simsfl import RunConfig, Simulation
from simsfl.algorithm import communication
from simsfl.data import Arrays, Dataset, make_dataset
from tests.conftest import TINY

VALUES = {
    "method": ["mocosfl", "fl-moco", "fl-byol", "federated"],
    "objective": [None, "simclr", "byol", "simsiam", "barlow-twins", "supervised"],
    "aggregation": ["mean", "by-images", "trimmed-mean", "median", "fedavgm", "fedadam"],
    "sampler": ["uniform", "by-images", "round-robin"],
    "dropout": [0.0, 0.3],
    "straggler": [0.0, 0.5],
    "optimizer": ["sgd", "adamw", "lars"],
    "proximal": [0.0, 0.1],
    "warmup_rounds": [0, 1],
    "defence": [None, "gaussian", "clip+int8", "top-k"],
    "local_epochs": [1.0, 0.5, 2.0],
    "clients": [8, 1, 2, 5],
    "cohort": [None, 1, 2, 4],
    "batch_size": [None, 1, 3],
    "syncs_per_round": [None, 1, 4],
    "align_momentum": [False, True],
    "divergence_tau": [0.0, 0.5],
    "measure_divergence": [False, True],
    "unequal": [None, "0.5_0.5|2|0.7_0.3"],
    "loss_threshold": [0.0, 10.0],
    "server_replicas": [1, 2, 3],
    "average_replicas": [False, True],
    "data_proportion": [1.0, 0.8],
    "validation": [0.0, 0.2],
    "partition": ["shards", "iid", "dirichlet"],
    "views": ["v2", "v1"],
    "arch": ["resnet8", *["resnet18", "vgg11"] * 3, "convnext-tiny", "vit-tiny", "resnet50", "mobilenetv2"],
    "norm": ["group", "batch"],
    "weight_standardisation": [None, True, False],
    "cut_layer": [1, 2, 3, 9],
    "bottleneck": [None, "C4S2", "K1C2noReLU", "K5C3S8"],
    "client_residual": [True, False],
    "head": ["mlp", "linear", "large-mlp"],
    "supervised": [False, True],
    "queue_length": [64, 10],
    "feature_sharing": [True, False],
    "symmetric": [True, False],
    "client_lr": [None, 0.0, 0.01],
    "lr_schedule": ["cosine", "step"],
    "client_lr_schedule": ["cosine", "step", "oscillating"],
    "eval_features": ["backbone", "projector"],
    "linear_probe": [False, True],
    "semi_supervised": [False, True],
    "client_state": ["device", "host", "mmap"],
    "client_state_dtype": ["fp32", "bf16"],
}
"""Values that are tried of each setting, the usual one first; of deep networks, which take long, one of each kind."""
BASE = TINY | {"rounds": 2, "eval_every": 2, "probe_epochs": 1, "classes_per_client": 1, "alpha": 5.0, "lr": 0.01}
"""Config fields of a run that the settings are changed in."""
NOT_TOGETHER = {
    *(("method", name) for name in ("defence", "unequal", "loss_threshold", "server_replicas")),
}
"""Pairs of settings that are refused whatever their values."""


@pytest.fixture(autouse=True)
def without_warming_up(monkeypatch):
    """Let communication be saved from the first round that it can be."""
    monkeypatch.setattr(communication, "WARM_UP", 0)


@pytest.fixture(scope="module")
def pictures():
    """Return data sets of 36 training and 6 test images: of 32x32 by the architecture that needs it, else of 16x16."""
    rng = np.random.default_rng(0)

    def split(count, size):
        return rng.integers(0, 256, (count, size, size, 3)).astype(np.uint8), np.arange(count) % 3

    def dataset(size):
        return make_dataset("tiny", "made up", Arrays(*split(36, size), *split(6, size), ("a", "b", "c")))

    small, large = dataset(16), dataset(32)
    return defaultdict(lambda: small, vgg11=large)


def trains(values: dict, pictures: dict[str, Dataset]) -> bool:
    """Train with these settings in two engines and compare; return whether they are allowed.

    Raises:
        AssertionError: the engines differ, a number is not finite, or settings are refused with a message that does not
            say in one line which field is wrong and what is allowed.
    """
    dataset = pictures[values.get("arch", "resnet8")]
    try:
        rounds = 4 if values.get("loss_threshold") else 2  # the fourth is the first in which nothing is sent
        config = RunConfig(**BASE | {"rounds": rounds} | values)
        stacked = Simulation(replace(config, engine="vmap"), dataset, dtype=torch.float64)
    except ValueError as error:
        text = str(error)
        assert "\n" not in text
        assert "; allowed" in text
        assert text.split(":", maxsplit=1)[0] in {*VALUES, "image_size"}
        return False
    loop = Simulation(replace(config, engine="loop"), dataset, dtype=torch.float64)
    for one, other in zip(stacked.train(), loop.train(), strict=True):
        assert type(one) is type(other)
        for name, value in vars(one).items():
            numbers = value if isinstance(value, list) else [value]
            assert all(not isinstance(number, float) or math.isfinite(number) for number in numbers), name
        if one.event == "step" and one.round == 1 and one.step <= 2:  # deep networks of tiny maps amplify rounding
            assert one.loss == pytest.approx(other.loss, rel=(1e-9, 1e-6)[one.step - 1], abs=1e-12)
    for name, tensor in stacked.state.tensors().items():
        assert tensor.isfinite().all(), name
        assert tensor.shape == loop.state.tensors()[name].shape
    assert torch.equal(stacked.state.clients.participation, loop.state.clients.participation)
    return True


@pytest.mark.slow
@settings(
    max_examples=12,
    derandomize=True,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],  # shrinking takes minutes
)
@given(values=st.fixed_dictionaries({name: st.sampled_from(values) for name, values in VALUES.items()}))
def test_any_settings_train_or_are_refused(values, pictures):
    trains(values, pictures)


@pytest.mark.slow
def test_every_pair_of_settings_trains_or_is_refused(pictures):
    """Each pair of unusual values is tried, among as many other unusual values as are allowed with it."""
    rng = Random(0)
    left = dict.fromkeys(combinations(VALUES, 2))
    refused = set()
    while left:
        pair = next(iter(left))
        for values in unusual(pair, rng):
            if trains(values, pictures):
                away = [name for name in VALUES if values.get(name, VALUES[name][0]) != VALUES[name][0]]
                for covered in combinations(away, 2):
                    left.pop(covered, None)
                break
        else:
            refused.add(pair)
            del left[pair]
    assert refused == NOT_TOGETHER


def unusual(pair: tuple[str, str], rng: Random) -> Iterator[dict]:
    """Yield settings in which both of a pair are unusual, first among ever fewer others, then each such pair alone."""
    first, second = pair
    for share in (0.5, 0.4, 0.3, 0.2, 0.2, 0.1, 0.1):
        others = {name: rng.choice(values) for name, values in VALUES.items() if rng.random() < share}
        yield others | {name: rng.choice(VALUES[name][1:]) for name in pair}
    for one, two in product(VALUES[first][1:], VALUES[second][1:]):
        yield {first: one, second: two}
