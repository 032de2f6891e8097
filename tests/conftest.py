"""Shared fixtures and helpers: a data set small enough to train on in a second, and the config of such a run."""

import os
from dataclasses import replace
from importlib.util import find_spec
from unittest.mock import patch

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: tests run side by side, one on each core

import numpy as np
import pytest
import torch

from simsfl import RunConfig
from simsfl.data import Arrays, make_dataset
from simsfl.kernels import CHOICES
from simsfl.system import streams

collect_ignore = [] if find_spec("zmq") else ["hw_profile"]
"""Folders that pytest skips: without pyzmq (the extra "device") the programs for real devices cannot be imported."""

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
    "engine": "fused:grouped",  # one version of the operators, so that none is measured first
}
"""Config fields of a run that trains in about a second."""


LONGEST = ("test_every_pair_of_settings", "test_a_run_of_plugins_alone", "test_triton_under_its_interpreter")
"""Beginnings of the names of tests that take longest."""


def pytest_collection_modifyitems(items):
    """Put the longest tests first, so that parallel processes end at about the same time."""
    items.sort(key=lambda item: not item.name.startswith(LONGEST))


@pytest.fixture(autouse=True, scope="session")
def no_cache_of_the_user(tmp_path_factory):
    """Keep fixtures of modules from the user's cache, which may hold choices that change how sums are rounded."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("SIMSFL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory, monkeypatch):
    """Give each test a cache and choices of its own, so that it depends on no other test, nor on the user's cache."""
    monkeypatch.setenv("SIMSFL_CACHE", str(tmp_path_factory.mktemp("cache")))
    with patch.dict(CHOICES, clear=True):
        yield


@pytest.fixture
def nothing_lost(monkeypatch):
    """Have a test begin with a stdout that can be written; return the errors in writing it, which are to come."""
    monkeypatch.setattr(streams, "_LOST", [])
    return streams._LOST


@pytest.fixture(scope="session")
def arrays():
    """Return 80 training and 30 test images of 8x8, in three classes that differ in colour."""
    rng = np.random.default_rng(0)

    def split(count):
        labels = np.arange(count) % 3
        images = rng.integers(0, 120, (count, 8, 8, 3))
        images[np.arange(count), :, :, labels] += 100
        return images.astype(np.uint8), labels

    return Arrays(*split(80), *split(30), ("red", "green", "blue"))


@pytest.fixture(scope="session")
def dataset(arrays):
    """Return the images of `arrays` as a data set."""
    return make_dataset("tiny", "made up", arrays)


@pytest.fixture(scope="session")
def black(arrays):
    """Return the labels of `arrays` with images that are all black, as are their views, so that outputs collapse."""
    without = replace(arrays, train_x=np.zeros_like(arrays.train_x), test_x=np.zeros_like(arrays.test_x))
    return make_dataset("black", "made up", without, statistics=((0.5,) * 3, (0.2,) * 3))  # normalised, they are not 0


@pytest.fixture(scope="session")
def npz(arrays, tmp_path_factory):
    """Return the path of a file with the images of `arrays`."""
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
    """Return the config of a run that trains in about a second."""
    return RunConfig(**TINY)


def flags(**values):
    """Return config values as command-line flags; True becomes the flag alone."""
    pairs = ((f"--{name.replace('_', '-')}", value) for name, value in values.items())
    return [part for flag, value in pairs for part in ([flag] if value is True else [flag, str(value)])]


def generator(seed=0):
    """Return a generator of random tensors on the CPU, with this seed."""
    return torch.Generator().manual_seed(seed)
