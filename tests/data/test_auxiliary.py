"""A second data set whose images are mixed into each batch."""

import re
from dataclasses import replace

import numpy as np
import pytest

from simsfl import RunConfig, Simulation
from simsfl.cli import run
from simsfl.data import make_dataset, with_auxiliary
from tests.conftest import TINY, flags


def test_auxiliary_images_are_half_of_each_batch(dataset, arrays):
    both = with_auxiliary(dataset, make_dataset("other", "made up", arrays))
    config = RunConfig(**{**TINY, "clients": 2, "cohort": 2, "aux_dataset": "other", "data_proportion": 0.5})
    simulation = Simulation(config, both)
    assert simulation.parts.steps == 80 // 2 // 2  # one pass over the larger of the two data sets
    rows = simulation.parts.plan(0).groups[0].indices
    assert rows.shape == (20, 2, 4)
    own, other = rows[:, :, :2], rows[:, :, 2:]
    assert own.max() < 80 <= other.min()
    assert len(own.unique()) == 40
    assert len(other.unique()) == 80
    train, _ = simulation.parts.evaluation.all_features(simulation.encoder())
    assert len(simulation.parts.evaluation.bank) == len(train) == 80
    alone = Simulation(replace(config, data_proportion=0.0), both)
    assert alone.parts.plan(0).groups[0].indices.min() >= 80
    with pytest.raises(ValueError, match=r"aux_dataset: .* labels"):
        replace(config, supervised=True)
    with pytest.raises(ValueError, match="data_proportion: 0 leaves"):
        RunConfig(data_proportion=0.0)


def test_auxiliary_images_of_another_size(npz, arrays, tmp_path, capsys):
    other = tmp_path / "large.npz"
    large = {name: getattr(arrays, name).repeat(2, axis=1).repeat(2, axis=2) for name in ("train_x", "test_x")}
    np.savez(other, **large, train_y=arrays.train_y, test_y=arrays.test_y)
    argv = flags(dataset=npz, aux_dataset=other, out=tmp_path / "run", **TINY)
    assert run.main([*argv, "--dashboard", "off"]) == 2
    assert re.search(r"aux_dataset: .*16x16, .*8x8; allowed: one size, give --image-size", capsys.readouterr().err)
    assert run.main([*argv, "--dashboard", "off", "--image-size", "8", "--rounds", "1"]) == 0
    assert run.main([*flags(dataset=npz, aux_dataset="cifar11", out=tmp_path / "x", **TINY), "--dashboard", "off"]) == 2
    assert "aux_dataset: 'cifar11' is not known" in capsys.readouterr().err
