"""What is drawn for a round: each client's images in an order of its own, and views that never repeat."""

import numpy as np
import torch

from simsfl import Simulation
from simsfl.algorithm import plan
from simsfl.data.partition import IID, Partition, make_partition
from simsfl.data.views import Recipe


def test_a_clients_draws_do_not_depend_on_the_others():
    partition = make_partition(np.arange(60) % 3, 6, IID())

    def draw(cohort, batch_size=2):
        return plan.plan_round(
            [partition],
            plan.Attendance([plan.Group(range(6), cohort, batch_size)], 3, partition.sizes),
            4,
            steps=5,
            recipe=Recipe("v2", 8, 0.2),
            device=torch.device("cpu"),
        )

    some, everyone = draw(3), draw(6)
    for position, client in enumerate(some.cohort.tolist()):
        other = everyone.cohort.tolist().index(client)
        (one,), (two,) = some.groups, everyone.groups
        assert torch.equal(one.indices[:, position], two.indices[:, other])
        assert torch.equal(one.views.crop[:, :, position], two.views.crop[:, :, other])


def test_a_round_goes_once_through_a_clients_images_and_unequal_clients_keep_step():
    partition = Partition.of([np.arange(0, 4), np.arange(10, 16), np.arange(20, 28)])
    steps = plan.steps_per_round([len(partition.indices)], [plan.Group(range(3), 3, 2)])
    assert steps == 3  # for six images per client on average
    rng = np.random.default_rng(0)
    assert sorted(plan.passes(rng, partition[1], 6)) == list(range(10, 16))
    small = plan.passes(rng, partition[0], 6).tolist()
    assert sorted(small[:4]) == [0, 1, 2, 3]
    assert len(set(small[4:])) == 2
    large = plan.passes(rng, partition[2], 6).tolist()
    assert len(set(large)) == 6


def test_no_two_draws_are_the_same(config, dataset):
    """Rounds differ in cohort, order and views, and all views, both of an image included, in their parameters."""
    simulation = Simulation(config, dataset)

    def draw(round_index):
        return plan.plan_round(
            simulation.parts.sources,
            plan.Attendance([plan.Group(range(8), 8, 2)], 0, simulation.parts.images),
            round_index,
            steps=simulation.parts.steps,
            recipe=Recipe("v2", 8, 0.08),
            device=simulation.parts.device,
        )

    first, second = draw(0), draw(1)
    one, two = first.groups[0], second.groups[0]
    assert first.cohort.tolist() != second.cohort.tolist()
    assert sorted(first.cohort.tolist()) == sorted(second.cohort.tolist())
    one_by_client, two_by_client = one.indices[:, first.cohort.argsort()], two.indices[:, second.cohort.argsort()]
    assert not torch.equal(one_by_client, two_by_client)
    brightness = torch.cat([group.views.jitter[..., 0].flatten() for group in (one, two)])
    drawn = brightness[brightness != 1]  # it is 1 where there is no jitter
    assert len(drawn.unique()) == len(drawn)
