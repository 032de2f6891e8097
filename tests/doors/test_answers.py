"""Answers of the wrong kind, shape or range are refused with the name of what gave them."""

from unittest.mock import patch

import numpy as np
import pytest

from simsfl import RunConfig, Simulation, extend
from simsfl.aggregations import Aggregation
from simsfl.config.catalogue import DOORS
from simsfl.data.partition import Partition, Partitioner
from simsfl.defences import Added, Defence
from simsfl.objectives import Objective
from simsfl.rounds.callback import Callback
from simsfl.samplers import Drawn, Sampler
from tests.doors.conftest import BASE


class Sized(Sampler):
    """Draws what it is told."""

    drawn = None

    def draw(self, clients, count, round_index, images, rng):
        return Sized.drawn


DRAWS = {
    "fewer": (Drawn(np.arange(2)), "Sized drew .0, 1.; allowed: 3 different ids from 0 to 5"),
    "twice": (Drawn(np.array([4, 4, 1])), "Sized drew .4, 4, 1.; allowed: 3 different ids from 0 to 5"),
    "strange": (Drawn(np.array([4, 6, 1])), "Sized drew .4, 6, 1.; allowed: 3 different ids from 0 to 5"),
    "list": ([1, 2, 3], "Sized returns a list; allowed: a Drawn"),
    "ids in a list": (Drawn([0, 1, 2]), "Sized drew a list; allowed: a NumPy array of 3 different ids"),
    "no ids": (Drawn(np.arange(3), 1), "Sized misses an int; allowed: a tuple of ids that it drew"),
    "mask": (Drawn(np.arange(3), np.array([True, False, False])), "Sized misses .*; allowed: ids that it drew"),
    "others": (Drawn(np.arange(3), (5,)), "Sized misses .5.; allowed: ids that it drew"),
}
"""What a sampler returns, and the error."""


@pytest.mark.parametrize(("drawn", "message"), DRAWS.values(), ids=DRAWS)
def test_a_sampler_has_to_draw_a_cohort(drawn, message, pictures, monkeypatch):
    monkeypatch.setattr(Sized, "drawn", drawn)
    with patch.dict(DOORS["sampler"]):
        extend.sampler("sized")(Sized)
        simulation = Simulation(RunConfig(**BASE | {"sampler": "sized", "cohort": 3}), pictures)
        with pytest.raises(ValueError, match=f"^sampler: {message}$"):
            next(simulation.train())


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "it has 0 clients, and the config 6; allowed: as many as `clients`"),
        ([np.array([c]) for c in range(5)] + [np.array([60])], "client 5 holds image 60; allowed: 0 to 59"),
    ],
)
def test_a_partitioner_has_to_return_a_partition_of_the_images(parts, message, pictures):
    class Odd(Partitioner):
        """Deals what it is told."""

        def deal(self, labels, weights, rng):
            return Partition.of(parts)

    with patch.dict(DOORS["partition"]):
        extend.partition("odd")(Odd)
        with pytest.raises(ValueError, match=f"^partition: {message}$"):
            Simulation(RunConfig(**BASE | {"partition": "odd"}), pictures)


PARTS = {
    "fractions": ([[0, 1], [0.5]], "client 1 has a list of float64 of 1 dimension; allowed"),
    "nested": ([[[0, 1]]], "client 0 has a list of int64 of 2 dimensions; allowed: indi"),
    "a mask": ([np.ones(3, dtype=bool)], "client 0 has an ndarray of bool of 1 dimension;"),
    "a number each": ([4], "client 0 has an int of int64 of 0 dimensions; allowed: indices of i"),
    "a number": (4, "an int is no list of parts; allowed: for each client an array of indi"),
}
"""What a partition is made of, and how the error begins."""


@pytest.mark.parametrize(("parts", "message"), PARTS.values(), ids=PARTS)
def test_parts_have_to_be_indices(parts, message):
    with pytest.raises(ValueError, match=f"^partition: {message}"):
        Partition.of(parts)


def test_a_partitioner_has_to_return_a_partition(pictures):
    class Listed(Partitioner):
        """Returns a list."""

        def deal(self, labels, weights, rng):
            return [np.arange(4)] * len(weights)

    with patch.dict(DOORS["partition"]):
        extend.partition("listed")(Listed)
        with pytest.raises(ValueError, match=r"^partition: Listed returns a list; allowed: a Partition"):
            Simulation(RunConfig(**BASE | {"partition": "listed"}), pictures)


def test_images_have_to_be_a_dataset():
    with patch.dict(DOORS["dataset"]):
        extend.dataset("bare", "x", images=9, test_images=1, image_size=8, classes=2)(lambda wanted: np.zeros(3))
        with pytest.raises(ValueError, match=r"^dataset: bare returns an ndarray; allowed: what simsfl\."):
            Simulation(RunConfig(**BASE | {"dataset": "bare"}))
    with pytest.raises(ValueError, match=r"^dataset: ndarray is no Dataset; allowed: what simsfl\."):
        Simulation(RunConfig(**BASE), np.zeros((3, 8, 8, 3)))


class Follower(Callback):
    """Follows."""


FOLLOWERS = {
    "a class": ([Follower], "the class Follower is no object; a"),
    "no list": (Follower(), "a Follower is no list; allowed: a "),
    "a number": ([3], "an int is no Callback; allowed: a list of "),
}
"""What is given as callbacks, and how the error begins."""


@pytest.mark.parametrize(("callbacks", "message"), FOLLOWERS.values(), ids=FOLLOWERS)
def test_callbacks_have_to_be_a_list_of_objects(callbacks, message, pictures):
    with pytest.raises(ValueError, match=f"^callbacks: {message}"):
        Simulation(RunConfig(**BASE), pictures, callbacks=callbacks)


def test_names_of_options_have_to_be_text():
    with pytest.raises(ValueError, match=r"^options: 1 of type int is no name; allowed: {'objective.temperature': "):
        RunConfig(options={1: 2})


class Scalar(Aggregation):
    """Combines models into a number."""

    def combine(self, models_nP, images_n):
        return models_nP.mean()


class Short(Aggregation):
    """Forgets a number of the model."""

    def step(self, before_P, combined_P, memory):
        return combined_P[1:]


class Common(Aggregation):
    """Gives clients one model instead of one each."""

    mixes = True

    def receive(self, model, own_CP, average_P, memory_CR):
        return average_P


class Flat(Defence):
    """Sends rows without their shape."""

    def protect(self, smashed, draws):
        return smashed.flatten(1)


class Absent(Defence):
    """Sees nothing of the gradient."""

    def receive(self, gradient, draws):
        return None


class Bare(Defence):
    """Adds a tensor as it is."""

    def add(self, images, smashed, memory, round_index):
        return smashed


class Silent(Defence):
    """Reports less than it says."""

    figures = ("silent",)

    def add(self, images, smashed, memory, round_index):
        return Added(smashed)


class Loss(Objective):
    """Forgets the accuracy."""

    def loss(self, outputs_nD, targets_nD, memory):
        return (outputs_nD - targets_nD).square().mean()


class Rows(Objective):
    """Returns a loss for each row."""

    def loss(self, outputs_nD, targets_nD, memory):
        apart_n = (outputs_nD - targets_nD).square().mean(dim=1)
        return apart_n, apart_n.mean()


METHODS = {
    "combine": (Scalar, r"combine of Scalar returns a tensor of shape \[\]; allowed: a tensor of shape \[\d+\]"),
    "step": (Short, r"step of Short returns a tensor of shape \[\d+\]; allowed: a tensor of shape \[\d+\]"),
    "receive": (Common, r"receive of Common returns a tensor of shape \[\d+\]; allowed: a tensor of shape \[6, \d+\]"),
    "protect": (Flat, r"protect of Flat returns a tensor of shape \[24, \d+\]; allowed: a tensor of shape \[24, "),
    "no gradient": (Absent, r"receive of Absent returns a NoneType; allowed: a tensor of shape \[24, "),
    "add": (Bare, r"add of Bare returns a Tensor; allowed: None, or Added with 0 figures"),
    "figures": (Silent, r"add of Silent returns 0 figures; allowed: None, or Added with 1 figure"),
    "loss": (Loss, r"loss of Loss returns a Tensor; allowed: the loss and an accuracy in percent"),
    "rows": (Rows, r"loss of Rows returns a tensor of shape \[\d+\]; allowed: a tensor of shape \[\]"),
}
"""A class with a method that returns something wrong, and the error."""


@pytest.mark.parametrize(("kind", "message"), METHODS.values(), ids=METHODS)
def test_methods_have_to_return_what_they_are_for(kind, message, pictures):
    door = {Aggregation: "aggregation", Defence: "defence", Objective: "objective"}[kind.__base__]
    with patch.dict(DOORS[door]):
        getattr(extend, door)("wrong")(kind)
        simulation = Simulation(RunConfig(**BASE | {door: "wrong", "cohort": 6, "rounds": 1}), pictures)
        with pytest.raises(ValueError, match=f"^{door}: {message}"):
            list(simulation.rounds())
