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


@pytest.mark.parametrize(("partition", "clients"), [("dirichlet", 4), ("iid", 20)])
def test_a_batch_size_that_a_client_limits_says_so(partition, clients, config, dataset):
    by_rule = replace(config, batch_size=None, cohort=None, partition=partition, alpha=0.3, clients=clients)
    parts = Simulation(by_rule, dataset).parts
    sizes = parts.partition.sizes
    assert parts.config.batch_size == sizes.min() < 100 // clients
    client = sizes.argmin()
    expected = f"by rule {100 // clients}, but client {client} holds only {sizes.min()} images"
    assert parts.reasons["batch_size"] == expected


def test_a_batch_size_that_nothing_limits_needs_no_reason(config, dataset):
    for batch_size in (None, 2):
        parts = Simulation(replace(config, batch_size=batch_size, clients=40), dataset).parts
        assert set(parts.reasons) == {"precision"}
