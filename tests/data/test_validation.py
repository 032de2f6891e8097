"""Training images that are held out are evaluated instead of the test images, and nobody trains on them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from simsfl import RunConfig, Simulation
from simsfl.cli.cost.tables import outline_of
from simsfl.data import make_dataset
from simsfl.data.validation import with_validation
from simsfl.runs.metrics import to_dict
from tests.conftest import TINY


def rows_of(images, among):
    """Return the row of each image among others, which are all different."""
    flat, others = images.pixels.flatten(1), among.pixels.flatten(1)
    same = (flat[:, None] == others).all(dim=2)
    assert (same.sum(dim=1) == 1).all()
    return same.int().argmax(dim=1).tolist()


def test_images_are_held_out_once_and_with_their_labels(dataset):
    found = with_validation(dataset, 0.2)
    train, test = (rows_of(own, dataset.train) for own in (found.train, found.test))
    assert len(test) == 16
    assert sorted(train + test) == list(range(80))
    assert train == sorted(train)
    for rows, labels in ((train, found.train_labels), (test, found.test_labels)):
        assert torch.equal(labels, dataset.train_labels[rows])
    assert "16 of its training images are held out" in found.origin
    assert found.checksum != dataset.checksum
    assert with_validation(found, 0.2) is found
    assert with_validation(dataset, 0.0) is dataset


def test_a_run_evaluates_what_nobody_trains_on(config, dataset, tmp_path):
    """Which are the same images with every seed; and it goes on with them."""
    config = replace(config, validation=0.2, eval_every=1)
    simulation = Simulation(config, dataset)
    assert len(simulation.parts.evaluation.test) == 16
    held = simulation.dataset.train.pixels[torch.from_numpy(simulation.parts.partition.indices)]
    out = simulation.dataset.test.pixels
    assert not (held.flatten(1)[:, None] == out.flatten(1)).all(dim=2).any()
    assert torch.equal(Simulation(replace(config, seed=1), dataset).dataset.test.pixels, out)
    whole = [to_dict(record) for record in Simulation(config, dataset).train()]
    rounds = simulation.rounds()
    next(rounds)
    rounds.close()
    simulation.save(tmp_path)
    went_on = [to_dict(record) for record in Simulation.load(tmp_path, dataset).train()]
    assert went_on == whole[-len(went_on) :]
    assert any(record["event"] == "evaluation" for record in went_on)


def test_those_who_own_images_keep_the_others(arrays):
    """A client whose only image is held out is none."""
    natural = make_dataset("of users", "made up", replace(arrays, train_client=np.arange(80) // 2))
    found = with_validation(natural, 0.5)
    owners = natural.train_client[rows_of(found.train, natural.train)]
    assert len(np.unique(owners)) == found.train_client.max() + 1 < 40
    assert np.array_equal(np.unique(owners, return_inverse=True)[1], found.train_client)


def test_images_without_labels_are_not_held_out(arrays):
    without = make_dataset("mixed", "made up", replace(arrays, unlabelled_x=arrays.train_x[:7]))
    found = with_validation(without, 0.5)
    assert torch.equal(found.train.pixels[found.held.start :], without.train.pixels[80:])
    assert len(found.held) == 7


def test_the_cost_model_counts_the_others():
    config = RunConfig(dataset="cifar10", clients=100, validation=0.1, partition="iid")
    assert outline_of(config, None).steps == 450


def test_what_cannot_be_held_out(dataset, tmp_path):
    with pytest.raises(ValueError, match=r"^validation: 0\.001 of the 80 training images are 0; allowed: a share that"):
        with_validation(dataset, 0.001)
    with pytest.raises(ValueError, match=r"^validation: 0\.1 is not for a partition that is given, .*; allowed: 0"):
        RunConfig(validation=0.1, partition="given")
    for split in ("train", "test"):
        for name in "ab":
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(4):
                Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / split / name / f"{number}.png")
    config = RunConfig(**TINY | {"dataset": str(tmp_path), "stream": "always", "validation": 0.5, "image_size": 8})
    with pytest.raises(ValueError, match=r"^validation: .* is too large to be read whole; allowed: 0, or --stream nev"):
        Simulation(replace(config, clients=2, cohort=2, partition="iid"))
