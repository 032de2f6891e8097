"""Settings that rules choose."""

from dataclasses import replace

import numpy as np
import pytest

from simsfl import Simulation
from simsfl.data import Arrays, make_dataset


@pytest.mark.parametrize(("classes", "shards"), [(3, 1), (10, 2), (12, 2), (100, 20)])
def test_a_client_holds_a_fifth_of_the_classes_by_rule(classes, shards, config):
    rng = np.random.default_rng(0)
    labels = np.arange(8 * 20 * 100) % classes
    images = rng.integers(0, 255, (len(labels), 8, 8, 3)).astype(np.uint8)
    names = tuple(map(str, range(classes)))
    data = make_dataset("many", "made up", Arrays(images, labels, images[:4], labels[:4], names))
    simulation = Simulation(replace(config, partition="shards"), data)
    held = (simulation.parts.partition.class_counts(labels) > 0).sum(axis=1)
    assert simulation.config.classes_per_client == shards
    assert "classes_per_client" in simulation.parts.by_rule
    assert held.max() <= 2 * shards  # a shard may extend into the next class
