"""Shared fixtures: a data set small enough to train on in a second, and runs on it."""

from importlib.util import find_spec

import numpy as np
import pytest

from simsfl import RunConfig
from simsfl.data import Arrays, make_dataset

collect_ignore = [] if find_spec("zmq") else ["hw_profile", "test_architecture.py"]
"""Without pyzmq (the extra "device") the programs for real devices cannot be imported, nor what imports them."""

TINY = {
    "clients": 8,
    "cohort": 3,
    "batch_size": 2,
    "rounds": 3,
    "syncs_per_round": 2,
    "arch": "resnet8",
    "width": 4,
    "key_dim": 8,
    "queue_length": 40,
    "partition": "iid",
    "eval_every": 1,
    "checkpoint_every": 1,
    "device": "cpu",
    "engine": "fused:grouped",  # with nothing to be measured first
}
"""Config fields of a run that trains in about a second."""


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory, monkeypatch):
    """No test sees or fills the user's cache."""
    monkeypatch.setenv("SIMSFL_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def arrays():
    """80 training and 30 test images of 8x8, three classes that differ in colour."""
    rng = np.random.default_rng(0)

    def split(count):
        labels = np.arange(count) % 3
        images = rng.integers(0, 120, (count, 8, 8, 3))
        images[np.arange(count), :, :, labels] += 100
        return images.astype(np.uint8), labels

    return Arrays(*split(80), *split(30), ("red", "green", "blue"))


@pytest.fixture(scope="session")
def dataset(arrays):
    return make_dataset("tiny", "made up", arrays)


@pytest.fixture(scope="session")
def npz(arrays, tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "tiny.npz"
    np.savez(
        path,
        train_x=arrays.train_x,
        train_y=arrays.train_y,
        test_x=arrays.test_x,
        test_y=arrays.test_y,
    )
    return path


@pytest.fixture
def config():
    return RunConfig(**TINY)


def flags(**values):
    """Config values as command-line flags; True is the flag alone."""
    pairs = ((f"--{name.replace('_', '-')}", value) for name, value in values.items())
    return [part for flag, value in pairs for part in ([flag] if value is True else [flag, str(value)])]
