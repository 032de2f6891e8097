"""Answers of the wrong kind, shape or range are refused with the name of what gave them."""

from unittest.mock import patch

import numpy as np
import pytest
import torch

from simsfl import RunConfig, Simulation, extend
from simsfl.aggregations import Aggregation
from simsfl.config.catalogue import DOORS
from simsfl.data.partition import Partition, Partitioner
from simsfl.defences import Added, Defence
from simsfl.objectives import Objective
from simsfl.optimisers import Optimiser
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


class Scaling(Aggregation):
    """Doubles what it gets, in one of its methods."""

    where = "combine"
    mixes = True

    def combine(self, models_cP, images_c):
        return super().combine(models_cP.mul_(2) if self.where == "combine" else models_cP, images_c)

    def step(self, before_P, combined_P, memory):
        return before_P.mul_(2) if self.where == "step" else combined_P

    def receive(self, model, own_CP, average_P, memory_CR):
        return own_CP.mul_(2) if self.where == "receive" else own_CP


@pytest.mark.parametrize("method", ["combine", "step", "receive"])
def test_an_aggregation_changes_nothing_that_it_gets(method, pictures, monkeypatch):
    monkeypatch.setattr(Scaling, "where", method)
    with patch.dict(DOORS["aggregation"]):
        extend.aggregation("scaling")(Scaling)
        simulation = Simulation(RunConfig(**BASE | {"aggregation": "scaling", "dropout": 0.0}), pictures)
        message = f"aggregation: {method} of Scaling changes in place what it gets; allowed: a new tensor, such as of"
        with pytest.raises(ValueError, match=f"^{message}"):
            list(simulation.train())


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


class Secret(Defence):
    """Sends what no gradient goes back through."""

    def protect(self, smashed, draws):
        return smashed.detach()


class Broken(Defence):
    """Remembers half a number."""

    def size(self, smashed_shape, image_size):
        return 0.5


class Long(Defence):
    """Begins with more than it says."""

    def size(self, smashed_shape, image_size):
        return 2

    def initial(self, smashed_shape, image_size, generator):
        return torch.zeros(3)


class Gift(Defence):
    """Sends less than nothing."""

    def bytes_up(self, numbers, number_bytes):
        return -1


class Void(Defence):
    """Does not say how much it gets."""

    def bytes_down(self, numbers, number_bytes):
        return None


class Counted(Aggregation):
    """Remembers a number that is no tensor."""

    def memory(self, size, device, dtype):
        return {"seen": 0}


class Replaced(Aggregation):
    """Puts another tensor into its memory."""

    def memory(self, size, device, dtype):
        return {"seen": torch.zeros(1)}

    def step(self, before_P, combined_P, memory):
        memory["seen"] = memory["seen"] + 1
        return combined_P


class Owing(Aggregation):
    """Lets clients remember less than nothing."""

    mixes = True

    def remembered(self, size):
        return -1


class Pulled(Optimiser):
    """Draws clients by a number."""

    def size(self, parameters):
        return 0

    def regularised(self, gradient, weights, received):
        return gradient.mean()

    def step_(self, model, weights, gradient, memory, lr):
        weights -= lr * gradient


class Text(Pulled):
    """Remembers in words."""

    def size(self, parameters):
        return "two"


class Unsure(Objective):
    """Has no accuracy."""

    def loss(self, outputs_nD, targets_nD, memory):
        return (outputs_nD - targets_nD).square().mean(), torch.tensor(float("nan"))


class Groupless(Unsure):
    """Remembers without a row for each group."""

    def memory(self, groups, dim, generator, device, dtype):
        return {"seen": torch.zeros(5)}


class Grown(Unsure):
    """Makes its memory when it first needs it."""

    def remember_(self, memory, targets_GnD):
        memory["seen"] = memory.get("seen", torch.zeros(1, 1)) + 1


class Constant(Objective):
    """Has a loss that depends on nothing."""

    def loss(self, outputs_nD, targets_nD, memory):
        return torch.ones(()), torch.zeros(())


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
    "no gradient back": (
        Secret,
        "protect of Secret returns a tensor that no gradient goes back through; allowed: one ",
    ),
    "size": (Broken, "size of Broken returns 0.5; allowed: a whole number from 0 on"),
    "initial": (Long, r"initial of Long returns a tensor of shape \[3\]; allowed: a tensor of shape \[2\]"),
    "bytes_up": (Gift, "bytes_up of Gift returns -1; allowed: a finite number from 0 on"),
    "bytes_down": (Void, "bytes_down of Void returns a NoneType; allowed: a finite number from 0 on"),
    "memory": (Counted, "memory of Counted returns an int as 'seen'; allowed: a dict of tensors by name"),
    "other memory": (Replaced, "step of Replaced puts another object into memory as 'seen'; allowed: what its method "),
    "remembered": (Owing, "remembered of Owing returns -1; allowed: a whole number from 0 on"),
    "regularised": (Pulled, r"regularised of Pulled returns a tensor of shape \[\]; allowed: a tensor of shape \[6, "),
    "size of a step": (Text, "size of Text returns a str; allowed: a whole number from 0 on"),
    "groups": (Groupless, r"memory of Groupless returns a tensor of shape \[5\] as 'seen'; .*, each with 1 row$"),
    "more memory": (Grown, "remember_ of Grown puts another object into memory as 'seen'; allowed: what its method "),
    "constant": (Constant, "loss of Constant returns a loss that no gradient goes back through; allowed: one that dep"),
    "accuracy": (Unsure, "wrong has an accuracy of nan beside a finite loss, in round 1, step 1; allowed: a finite n"),
    "loss": (Loss, r"loss of Loss returns a Tensor; allowed: the loss and an accuracy in percent"),
    "rows": (Rows, r"loss of Rows returns a tensor of shape \[\d+\]; allowed: a tensor of shape \[\]"),
}
"""A class with a method that returns something wrong, and the error."""


@pytest.mark.parametrize(("kind", "message"), METHODS.values(), ids=METHODS)
def test_methods_have_to_return_what_they_are_for(kind, message, pictures):
    bases = {Aggregation: "aggregation", Defence: "defence", Objective: "objective", Optimiser: "optimizer"}
    door = next(name for base, name in bases.items() if issubclass(kind, base))
    with patch.dict(DOORS[door]):
        getattr(extend, door)("wrong")(kind)
        with pytest.raises(ValueError, match=f"^{door}: {message}"):
            list(Simulation(RunConfig(**BASE | {door: "wrong", "cohort": 6, "rounds": 1}), pictures).rounds())


class Noted(Callback):
    """Adds what it is told."""

    added = None

    def on_record(self, record):
        return Noted.added


def test_callbacks_have_to_add_figures_by_name(pictures, monkeypatch):
    for added, message in (
        ([("lead", 3)], "on_record of Noted returns a list; allowed: a dict of finite numbers, "),
        ({3: 3.0}, "Noted adds 3 = 3.0; allowed: a dict of finite numbers, texts, booleans and None by name"),
        ({"lead": np.float32("nan")}, r"Noted adds 'lead' = .*nan.*; allowed: a dict of finite numbers"),
    ):
        monkeypatch.setattr(Noted, "added", added)
        with pytest.raises(ValueError, match=f"^callback: {message}"):
            next(Simulation(RunConfig(**BASE), pictures, callbacks=[Noted()]).train())
    monkeypatch.setattr(Noted, "added", {"lead": np.float32(0.5), "count": np.int64(3)})
    added = next(Simulation(RunConfig(**BASE), pictures, callbacks=[Noted()]).train()).added
    assert added == {"lead": 0.5, "count": 3}
    assert [type(one) for one in added.values()] == [float, int]


class Signed(Optimiser):
    """Steps by the sign of the gradient, without a thought for autograd."""

    def size(self, parameters):
        return 0

    def step_(self, model, weights, gradient, memory, lr):
        weights.sub_(lr * gradient.sign())


def test_an_optimiser_need_not_think_of_gradients(pictures):
    with patch.dict(DOORS["optimizer"]):
        extend.optimizer("signed")(Signed)
        simulation = Simulation(RunConfig(**BASE | {"optimizer": "signed"}), pictures)
        server = simulation.state.server.online
        before = server.clone()
        next(simulation.round())
        apart = (server - before).abs()
        torch.testing.assert_close(apart.max(), torch.tensor(simulation.config.lr))
        assert (apart > 0).float().mean() > 0.5


class Lucky(Defence):
    """Draws its noise from PyTorch's global generator."""

    def receive(self, gradient, draws):
        return gradient + torch.randn_like(gradient)


class Fair(Defence):
    """Draws its noise from what it is given."""

    def receive(self, gradient, draws):
        return gradient + draws.normal(gradient)


@pytest.mark.parametrize("kind", [Lucky, Fair])
def test_draws_that_are_not_kept_are_warned_of_once(kind, pictures, caplog):
    with patch.dict(DOORS["defence"]):
        extend.defence("lucky")(kind)
        list(Simulation(RunConfig(**BASE | {"defence": "lucky"}), pictures).train())
    warned = [record.getMessage() for record in caplog.records if "global random numbers" in record.getMessage()]
    assert len(warned) == (kind is Lucky)
