"""Any settings together: a tiny run trains to finite numbers, alike in two engines, or is refused in one line."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import TINY
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from simsfl import RunConfig, Simulation
from simsfl import config as fields
from simsfl.data import Arrays, make_dataset

VALUES = {
    "clients": st.sampled_from([1, 2, 5, 8]),
    "cohort": st.sampled_from([None, 1, 2, 4]),
    "batch_size": st.sampled_from([None, 1, 3]),
    "syncs_per_round": st.sampled_from([None, 1, 4]),
    "align_momentum": st.booleans(),
    "divergence_tau": st.sampled_from([0.0, 0.5]),
    "measure_divergence": st.booleans(),
    "unequal": st.sampled_from([None, None, "0.5_0.5|2|0.7_0.3"]),
    "loss_threshold": st.sampled_from([0.0, 10.0]),
    "data_proportion": st.sampled_from([1.0, 0.5]),
    "partition": st.sampled_from(fields.PARTITIONS),
    "views": st.sampled_from(fields.RECIPES),
    "arch": st.sampled_from(list(fields.ARCHITECTURES)),
    "norm": st.sampled_from(fields.NORMS),
    "weight_standardisation": st.sampled_from([None, True, False]),
    "cut_layer": st.sampled_from([1, 1, 2, 3, 9]),
    "bottleneck": st.sampled_from([None, "C4S2", "K1C2noReLU", "K5C3S8"]),
    "client_residual": st.booleans(),
    "head": st.sampled_from(fields.HEADS),
    "supervised": st.sampled_from([False, False, True]),
    "queue_length": st.sampled_from([5, 64]),
    "feature_sharing": st.booleans(),
    "symmetric": st.booleans(),
    "client_lr": st.sampled_from([None, 0.0, 0.01]),
    "lr_schedule": st.sampled_from(fields.SCHEDULES),
    "client_lr_schedule": st.sampled_from(fields.CLIENT_SCHEDULES),
    "eval_features": st.sampled_from(fields.FEATURES),
    "linear_probe": st.booleans(),
    "semi_supervised": st.booleans(),
    "client_state": st.sampled_from(fields.CLIENT_STATES),
    "client_state_dtype": st.sampled_from(["fp32", "fp32", "bf16"]),
}
"""What each setting is drawn from."""


@pytest.fixture(scope="module")
def pictures():
    """24 training and 6 test images of 32x32."""
    rng = np.random.default_rng(0)

    def split(count):
        return rng.integers(0, 256, (count, 32, 32, 3)).astype(np.uint8), np.arange(count) % 3

    return make_dataset("tiny", "made up", Arrays(*split(24), *split(6), ("a", "b", "c")))


@settings(
    max_examples=100,
    derandomize=True,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],  # shrinking takes minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(values=st.fixed_dictionaries(VALUES))
def test_any_settings_train_or_are_refused(values, pictures):
    base = TINY | {"rounds": 2, "width": 4, "probe_epochs": 1, "classes_per_client": 1, "alpha": 5.0, "lr": 0.01}
    try:
        config = RunConfig(**base | values)
        stacked = Simulation(replace(config, engine="vmap"), pictures)
    except ValueError as error:
        text = str(error)
        assert "\n" not in text
        assert "; allowed" in text
        assert text.split(":", maxsplit=1)[0] in {*values, "image_size"}
        return
    loop = Simulation(replace(config, engine="loop"), pictures)
    for one, other in zip(stacked.train(), loop.train(), strict=True):
        assert type(one) is type(other)
        for name, value in vars(one).items():
            numbers = value if isinstance(value, list) else [value]
            assert all(not isinstance(number, float) or math.isfinite(number) for number in numbers), name
        if one.event == "step" and one.round == 1 and one.step == 1:
            assert one.loss == pytest.approx(other.loss, rel=1e-3, abs=1e-4)
    for name, tensor in stacked.state.tensors().items():
        assert tensor.isfinite().all(), name
        assert tensor.shape == loop.state.tensors()[name].shape
    assert torch.equal(stacked.state.clients.participation, loop.state.clients.participation)
