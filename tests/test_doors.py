"""Whatever is chosen, stacked clients compute what the plain loop over clients does, in float64."""

import re
from dataclasses import dataclass, make_dataclass, replace
from math import prod
from typing import Literal, Optional
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from simsfl import RunConfig, Simulation, extend
from simsfl.aggregations import Aggregation
from simsfl.config import constraints
from simsfl.config.catalogue import DEFENCES, DOORS, OBJECTIVES
from simsfl.config.registry import RegistrationError, code_of
from simsfl.config.values import check_options, option
from simsfl.data.partition import Partition, Partitioner
from simsfl.defences import Added, Defence
from simsfl.objectives import Objective, nearest
from simsfl.objectives.moco import MoCo
from simsfl.rounds.callback import Callback
from simsfl.samplers import Drawn, Sampler
from simsfl.testing import _images, check
from tests.conftest import TINY

BASE = TINY | {"clients": 6, "batch_size": 4, "rounds": 2, "eval_every": 0, "knn_bank": 6, "knn_test": 6}
"""Config fields of a run of two rounds of two steps, each with an averaging."""

CHOICES = {
    **{f"{name} with BatchNorm": {"objective": name, "norm": "batch"} for name in OBJECTIVES if name != "supervised"},
    "aligned median": {"aggregation": "median", "align_momentum": True, "norm": "batch"},
    "mixing around FedAvgM": {"aggregation": "fedavgm", "divergence_tau": 0.5, "cohort": 3, "rounds": 3},
    "images that weigh differently": {"aggregation": "by-images", "partition": "dirichlet", "alpha": 9.0},
    "absent, own queues": {"dropout": 0.4, "feature_sharing": False, "rounds": 3},
    "absent, federated": {"dropout": 0.4, "method": "federated", "rounds": 3, "syncs_per_round": 1},
    "absent, both views": {"straggler": 0.5, "objective": "simclr", "rounds": 3},
    "FedProx and warm-up": {"proximal": 0.5, "warmup_rounds": 1},
    "defences of both views": {"defence": "clip+gaussian+int8", "objective": "simclr"},
    "noise of updates": {"defence": "clip+laplacian", "options": {"defence.where": "update", "defence.norm": 0.5}},
    "noise of gradients": {"defence": "gaussian", "options": {"defence.where": "gradient"}, "dropout": 0.3},
}
"""Config fields that differ from `BASE`."""


@pytest.fixture(scope="module")
def pictures():
    """Return 60 training and 6 test images of 16x16 in three classes."""
    return _images()


def trained(config, engine, pictures):
    """Return the losses of a run's steps, and the tensors of its final state by name."""
    simulation = Simulation(replace(config, engine=engine), pictures, dtype=torch.float64)
    losses = [record.loss for record in simulation.train() if record.event == "step"]
    return losses, simulation.state.tensors()


def assert_equal_to_the_loop(config, engines, pictures):
    """Raise an AssertionError unless engines end with the loop's losses and state, but for rounding."""
    losses, state = trained(config, "loop", pictures)
    for engine in engines:
        found, tensors = trained(config, engine, pictures)
        assert found == pytest.approx(losses, rel=1e-7)
        assert tensors.keys() == state.keys()
        for name, tensor in state.items():
            torch.testing.assert_close(tensors[name], tensor, rtol=1e-5, atol=1e-7, msg=name)


SHORT = ("moco", "gaussian")
"""Names that are not left to the slow tests."""


CALM = {"lr": 0.001}
"""Fields with which rounding is not amplified."""
FIELDS = {
    "adamw": CALM,
    "lars": CALM,
    "taressfl": {"ressfl_lambda": 1.0, "ressfl_target_ssim": 0.001, "ressfl_decoder": "conv_normN0C4"},
}
"""Fields that something is checked with, by its name."""


@pytest.mark.parametrize(
    ("door", "name"),
    [
        pytest.param(door, name, marks=[] if name in SHORT else pytest.mark.slow)
        for door in RunConfig().chosen
        if door not in ("arch", "dataset")  # which have tests of their own
        for name in DOORS[door]
        if name not in ("availability", "natural", "given")  # which need a file, owners of images, a partition
    ],
)
def test_what_comes_with_simsfl_passes_the_check_for_plugins(door, name):
    tried = check(code_of(DOORS[door][name]).load(), **FIELDS.get(name, {}))
    assert {"the whole cohort", "a sampled cohort", "clients that are absent or slow"} <= set(tried)
    assert ("federated clients" in tried) == (door != "defence")


def test_a_check_says_in_words_what_differs():
    class Forgetful(Aggregation):
        """Adds what it does not keep in its memory."""

        calls = 0

        def step(self, before_P, combined_P, memory):
            Forgetful.calls += 1
            return combined_P + 0.01 * Forgetful.calls

    with patch.dict(DOORS["aggregation"]):
        extend.aggregation("forgetful")(Forgetful)
        with pytest.raises(AssertionError, match=r"^forgetful, the whole cohort, engine vmap: the loss of step 2 "):
            check(Forgetful)
    with pytest.raises(ValueError, match=r"^thing: .*Forgetful.* is not registered"):
        check(Forgetful)


@pytest.mark.slow
def test_a_check_says_what_an_objective_of_a_whole_batch_lacks():
    class Centred(Objective):
        """Compares each row with the mean of all rows that it is given."""

        def loss(self, outputs_nD, targets_nD, memory):
            centred_nD = outputs_nD - outputs_nD.mean(dim=0)
            return (centred_nD - targets_nD).square().mean(), nearest(outputs_nD, targets_nD)

    with patch.dict(DOORS["objective"]):
        extend.objective("centred")(Centred)
        with pytest.raises(AssertionError, match=r"^centred, .* to be registered with whole_batch=True$"):
            check(Centred)
        extend.objective("centred", whole_batch=True)(Centred)
        assert check(Centred, rounds=1, cohort=2, feature_sharing=False, dropout=0.3)


def test_what_cannot_be_registered():
    class Plain:
        """Is no objective."""

    class Loose(Objective):
        """Has an option, but is no dataclass."""

        weight: float = option(1.0, "A weight.", within=(0, 1))

    @dataclass(frozen=True)
    class Lossless(Objective):
        """Computes nothing."""

    @dataclass(frozen=True)
    class Required(Objective):
        """Has an option without a default."""

        weight: float

        def loss(self, outputs_nD, targets_nD, memory):
            raise NotImplementedError

    for thing, name, problem in (
        (Lossless, "lossless", "'lossless' has no loss; allowed: with a method loss"),
        (Required, "required", "'required' has no default for weight; allowed: option.default, help."),
        (Plain, "plain", "'plain' is no subclass of Objective; allowed: one"),
        (lambda: None, "function", "'function' is no subclass of Objective; allowed: one"),
        (Loose, "loose", "'loose' has options, but is no dataclass; allowed: with @dataclass.frozen=True. below"),
        (Plain, Plain, "<class .*Plain'> is no name; allowed: letters, digits, hyphens and underscores"),
        (Loose, "loose+plain", "'loose.plain' is no name; allowed: letters, digits, hyphens and underscores"),
    ):
        with pytest.raises(RegistrationError, match=f"^objective: {problem}$"):
            extend.objective(name)(thing)
        assert name not in OBJECTIVES
    with pytest.raises(RegistrationError, match=r"^head: 'wide' is a class; allowed: a function of a backbone and a l"):
        extend.head("wide")(torch.nn.Linear)
    with pytest.raises(RegistrationError, match=r"^head of objective plain: 'mpl' is not known .did you mean mlp"):
        extend.objective("plain", head="mpl")


WRONG_OPTIONS = {
    "typing.Literal['a', 'b'] is no type of options; allowed: int, float, str, bool, or one of these | None": (
        Literal["a", "b"],
        option("a", ""),
    ),
    "int | float is no type of options; allowed: int, float, str, bool, or one of these | None": (
        "int | float",
        option(1, ""),
    ),
    "default: 'abc' is not of type float; allowed: float": (float, option("abc", "")),
    "default: 3 is out of range; allowed: 0 to 1": (Optional[int], option(3, "", within=(0, 1))),  # noqa: UP045
    "default: nan is not finite; allowed: a finite number": ("float", option(float("nan"), "")),
    "default: 'c' is not known; allowed: a, b": (str, option("c", "", choices=("a", "b"))),
    "default: 'abc' is not of type int; allowed: int": (int, "abc"),
    "choices is not for type int; allowed: for str": (int, option(1, "", choices=("1", "2"))),
    "within is not for type str; allowed: for int or float": (str, option("a", "", within=(0, 1))),
}
"""What is wrong with a field of a class, its type and its default."""


@pytest.mark.parametrize(("problem", "kind", "default"), [(text, *own) for text, own in WRONG_OPTIONS.items()])
def test_options_that_cannot_be_set_are_refused_when_they_are_registered(problem, kind, default):
    odd = make_dataclass("Odd", [("field", kind, default)], bases=(Aggregation,), frozen=True)
    with pytest.raises(RegistrationError) as caught:
        extend.aggregation("odd")(odd)
    assert str(caught.value) == f"aggregation: 'odd' has an option that cannot be one: Odd.field: {problem}"
    assert "odd" not in DOORS["aggregation"]


def test_the_options_of_simsfl_itself_are_as_those_of_plugins_have_to_be():
    for door in RunConfig().chosen:
        for known in DOORS[door].values():
            check_options(code_of(known).load())


def test_optional_and_numpy_numbers_are_taken():
    kinds = (Optional[float], "Optional[float]", "typing.Optional[float]", "float | None", float | None, "None|float")  # noqa: UP045
    named = [(f"o{n}", kind, option(None, "An option.", within=(0, 9))) for n, kind in enumerate(kinds)]
    named += [("count", int, option(1, "A count.")), ("inner", tuple, (1, 2)), ("free", "float", option(1.0, "Free."))]
    with patch.dict(DOORS["aggregation"]):
        extend.aggregation("free")(make_dataclass("Free", named, bases=(Aggregation,), frozen=True))
        given = {f"aggregation.o{n}": np.float64(0.5) for n in range(len(kinds))}
        config = RunConfig(
            aggregation="free",
            options=given | {"aggregation.count": np.int64(6)},
            clients=np.int64(20),
            lr=np.float32(1),
        )
        assert {type(value) for name, value in config.options.items() if "count" not in name} == {float}
        assert type(config.options["aggregation.count"]) is type(config.clients) is int
        assert type(config.lr) is float
        assert config.with_options({"aggregation.o1": "none"}).options["aggregation.o1"] is None
        for text in ("nan", "inf", "-inf"):
            message = rf"^aggregation.free: {text} is not finite; allowed: a finite number$"
            with pytest.raises(ValueError, match=message):
                config.with_options({"aggregation.free": text})
            with pytest.raises(ValueError, match=message):
                replace(config, options={"aggregation.free": float(text)})
        with pytest.raises(ValueError, match=r"^options: 'aggregation.inner' is not known"):
            config.with_options({"aggregation.inner": "1"})


def test_an_option_of_several_defences_has_to_suit_each():
    fields = {"wide": (float, option(1.0, "", within=(0, 10))), "narrow": (int, option(1, "", within=(0, 2)))}
    with patch.dict(DOORS["defence"]):
        for name, (kind, default) in fields.items():
            made = make_dataclass(
                name.title(), [("share", kind, default), (name, int, 1)], bases=(Defence,), frozen=True
            )
            extend.defence(name)(made)
        for chain in ("wide+narrow", "narrow+wide"):
            config = RunConfig(defence=chain).with_options({"defence.share": "2"})
            assert [config.options_of("defence", DEFENCES[name].code.load()) for name in fields] == [{"share": 2}] * 2
            for text, problem in (("3", "3 is out of range; allowed: 0 to 2"), ("1.5", "'1.5' is not of type int; ")):
                with pytest.raises(ValueError, match=f"^defence.share: {problem}"):
                    config.with_options({"defence.share": text})
            with pytest.raises(ValueError, match=r"^options: 'defence.shar' .* allowed: defence.share, defence"):
                config.with_options({"defence.shar": "1"})


def test_a_name_belongs_to_one_thing_which_may_be_defined_anew():
    class Other(Aggregation):
        """Does what the first does."""

    def first():
        class First(Aggregation):
            """The mean."""

        return extend.aggregation("mine")(First)

    with patch.dict(DOORS["aggregation"]):
        assert first() is not first()  # as when a module is reloaded
        known = DOORS["aggregation"]["mine"]
        with pytest.raises(RegistrationError, match=r"^aggregation: 'mine' is there already, as .*First of the same "):
            extend.aggregation("mine")(Other)
        assert DOORS["aggregation"]["mine"] is known


@dataclass(frozen=True)
class Hard(MoCo):
    """MoCo against the nearest of the queue's keys alone."""

    negatives: int = option(3, "Number of keys.", within=(1, 40))

    @classmethod
    def of(cls, config):
        plain = MoCo.of(config)
        return cls(plain.temperature, plain.queue_length, **config.options_of("objective"))

    def losses(self, outputs_GnD, targets_GnD, memory):
        return Objective.losses(self, outputs_GnD, targets_GnD, memory)

    def loss(self, outputs_nD, targets_nD, memory):
        query_nD, key_nD = F.normalize(outputs_nD, dim=1), F.normalize(targets_nD, dim=1)
        others_nK = (query_nD @ memory["keys"].T).topk(self.negatives).values
        score_nK = torch.cat([(query_nD * key_nD).sum(dim=1, keepdim=True), others_nK], dim=1) / self.temperature
        return -score_nK.log_softmax(dim=1)[:, 0].mean(), nearest(query_nD, key_nD)


def test_an_objective_may_have_a_queue():
    with patch.dict(DOORS["objective"]):
        extend.objective("hard", queue=True)(Hard)
        options = {"options": {"objective.negatives": 2}, "temperature": 0.5}
        assert "queues of the clients' own" in check(Hard, rounds=1, **options)
        config = RunConfig(objective="hard", queue_length=500, **options)
        config.check_effect(["queue_length", "temperature"])
        extend.objective("queueless")(Hard)
        with pytest.raises(ValueError, match=r"^temperature: has no effect where the objective has no key queue"):
            replace(config, objective="queueless").check_effect(["temperature"])


class Told(Objective):
    """Learns the classes that it is told, whatever the momentum models say."""

    def loss(self, outputs_nD, targets_nD, memory):
        return F.cross_entropy(outputs_nD, memory["labels"]), outputs_nD.new_zeros(())


class Contrast(Objective):
    """Supervised contrastive learning (Khosla et al., NeurIPS 2020, equation 2) over both views of all rows."""

    def loss(self, outputs_nD, targets_nD, memory):
        rows_2nD = F.normalize(torch.cat([outputs_nD, targets_nD]), dim=1)
        labels_2n, itself = memory["labels"].repeat(2), torch.eye(len(rows_2nD), dtype=torch.bool)
        score = (rows_2nD @ rows_2nD.T / 0.1).masked_fill(itself, -1e9)
        same = (labels_2n[:, None] == labels_2n) & ~itself
        each = -(score.log_softmax(dim=1) * same).sum(dim=1) / same.sum(dim=1)
        return each.mean(), nearest(*rows_2nD.split(len(outputs_nD)))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"unequal": "0.5_0.5|2|0.5_0.5", "batch_size": 2},
        {"method": "federated", "syncs_per_round": 1},
        {"loss_threshold": 100.0, "rounds": 6, "dropout": 0.0},  # the server trains on what was sent, too
    ],
    ids=["split", "unequal", "federated", "saving"],
)
def test_an_objective_may_be_told_the_classes(fields, pictures):
    with patch.dict(DOORS["objective"]):
        extend.objective("told", labels=True)(Told)
        losses = {}
        for name in ("told", "supervised"):
            own = {"objective": name, "head": "linear", "key_dim": 3, "symmetric": False, "dropout": 0.2}
            simulation = Simulation(RunConfig(**BASE | own | fields), pictures, dtype=torch.float64)
            losses[name] = [record.loss for record in simulation.train() if record.event == "step"]
        assert losses["told"] == pytest.approx(losses["supervised"], rel=1e-9)


def test_an_objective_may_have_labels_beside_both_views():
    with patch.dict(DOORS["objective"]):
        extend.objective("contrast", targets=extend.Targets.ONLINE, labels=True)(Contrast)
        assert {"the whole cohort", "federated clients"} <= set(check(Contrast, rounds=1, lr=0.001))
        with pytest.raises(
            ValueError, match=r"^dataset: clients' images of stl10-unlabelled have no labels to learn f"
        ):
            RunConfig(objective="contrast", dataset="stl10-unlabelled", partition="iid")


@dataclass(frozen=True)
class Habit(Defence):
    """Pulls a client's smashed data towards their running mean, which it remembers, and reports how far they are."""

    share: float = option(0.2, "Share of the mean that is new.", within=(0, 1))

    figures = ("habit_apart",)

    def size(self, smashed_shape, image_size):
        return prod(smashed_shape)

    def add(self, images, smashed, memory, round_index):
        memory.lerp_(smashed.flatten(2).mean(dim=1), self.share)
        away = smashed - memory.view(len(smashed), 1, *smashed.shape[2:])
        return Added(away * 0.01 / (1 + round_index), (away.flatten(1).abs().mean(dim=1),))


@pytest.fixture
def habit():
    """Register `Habit`, as long as a test runs."""
    with patch.dict(DOORS["defence"]):
        yield extend.defence("habit")(Habit)


def test_a_defence_may_remember_and_report(habit, pictures):
    assert "clients that are absent or slow" in check(habit, rounds=1)
    extend.defence("other")(Habit)
    config = RunConfig(**BASE | {"defence": "habit+other"})
    with pytest.raises(ValueError, match=r"^defence: habit\+other reports habit_apart twice; allowed: "):
        Simulation(config, pictures)
    habits = {}
    for engine in ("vmap", "loop"):  # with groups of different batch sizes, and both views in turn
        unequal = {"unequal": "0.5_0.5|2|0.5_0.5", "batch_size": 2, "cohort": 6}
        mixed = {"defence": "clip+habit", "objective": "simclr", "engine": engine, "rounds": 1}
        simulation = Simulation(RunConfig(**BASE | unequal | mixed), pictures, dtype=torch.float64)
        rounds = [record for record in simulation.train() if record.event == "round"]
        habits[engine] = [record.added["habit_apart"] for record in rounds], simulation.state.defence.own
    assert habits["vmap"][0] == pytest.approx(habits["loop"][0], rel=1e-7)
    torch.testing.assert_close(habits["vmap"][1], habits["loop"][1], rtol=1e-6, atol=1e-9)
    assert all(habits["loop"][1].abs().sum(dim=1) > 0)


@dataclass(frozen=True)
class Stubborn(Aggregation):
    """Clients go half of the way to the mean of the averages that they have received, and share momentum models."""

    aligns_momentum = True
    mixes = True

    def remembered(self, size):
        return size + 1

    def receive(self, model, own_CP, average_P, memory_CR):
        count, mean = memory_CR[:, :1].add_(1), memory_CR[:, 1:]
        mean.add_((average_P - mean) / count)
        return (own_CP + mean) / 2


@pytest.fixture
def stubborn():
    """Register `Stubborn`, as long as a test runs."""
    with patch.dict(DOORS["aggregation"]):
        yield extend.aggregation("stubborn")(Stubborn)


def test_an_aggregation_may_say_what_clients_do_with_the_average(stubborn, pictures):
    assert {"the whole cohort", "clients that are absent or slow"} <= set(check(stubborn, rounds=1))
    config = RunConfig(**BASE | {"aggregation": "stubborn", "cohort": 3, "rounds": 3, "engine": "vmap"})
    simulation = Simulation(config, pictures)
    list(simulation.rounds())
    state = simulation.state.tensors()
    rounds = state["clients.participation"]
    # twice in a round, and once in the beginning: `scale` is the name in checkpoints
    assert state["clients.scale"][:, 0].tolist() == (3 * rounds).tolist()
    assert len(state["clients.momentum"]) == 1
    assert len(state["cohort.online"].unique(dim=0)) == 3
    with pytest.raises(ValueError, match=r"^divergence_tau: 0.5 is not for aggregation stubborn, .*; allowed: 0$"):
        Simulation(replace(config, divergence_tau=0.5), pictures)
    with pytest.raises(ValueError, match=r"^aggregation: stubborn is not for runs with devices, .*; allowed: one w"):
        constraints.check(config, constraints.DEVICES)


@pytest.mark.parametrize("fields", CHOICES.values(), ids=CHOICES)
def test_stacked_clients_compute_what_the_loop_does(fields, pictures):
    assert_equal_to_the_loop(RunConfig(**BASE | fields), ("vmap", "fused:unfold"), pictures)


NETWORKS = {
    "vit": {"arch": "vit-tiny"},
    "vit, token of the class": {"arch": "vit-tiny", "options": {"arch.pool": "class"}},
    "vit, token of the class, cut behind all": {"arch": "vit-tiny", "options": {"arch.pool": "class"}, "cut_layer": 13},
    "convnext": {"arch": "convnext-tiny"},
}
"""Config fields of networks with LayerNorm."""


@pytest.mark.parametrize("fields", NETWORKS.values(), ids=NETWORKS)
def test_networks_with_layer_norm_compute_what_the_loop_does(fields, pictures):
    config = RunConfig(**BASE | fields | {"width": 8, "optimizer": "adamw", "lr": 0.001, "rounds": 1})
    assert_equal_to_the_loop(config, ("vmap",), pictures)


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
    "no ids": (Drawn(np.arange(3), 1), "Sized misses a int; allowed: a tuple of ids that it drew"),
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


def test_answers_of_the_wrong_kind_are_refused(pictures):
    class Listed(Partitioner):
        """Returns a list."""

        def deal(self, labels, weights, rng):
            return [np.arange(4)] * len(weights)

    class Follower(Callback):
        """Follows."""

    config = RunConfig(**BASE)
    with patch.dict(DOORS["partition"]), patch.dict(DOORS["dataset"]):
        extend.partition("listed")(Listed)
        extend.dataset("bare", "x", images=9, test_images=1, image_size=8, classes=2)(lambda wanted: np.zeros(3))
        for call, message in (
            (
                lambda: Simulation(replace(config, partition="listed"), pictures),
                "partition: Listed returns a list; allow",
            ),
            (
                lambda: Simulation(replace(config, dataset="bare")),
                "dataset: bare returns a ndarray; allowed: what simsfl",
            ),
            (
                lambda: Simulation(config, np.zeros((3, 8, 8, 3))),
                "dataset: ndarray is no Dataset; allowed: what simsfl.",
            ),
            (
                lambda: Partition.of([[0, 1], [0.5]]),
                "partition: client 1 has a list of float64 of 1 dimension; allowed",
            ),
            (
                lambda: Partition.of([[[0, 1]]]),
                "partition: client 0 has a list of int64 of 2 dimensions; allowed: indi",
            ),
            (
                lambda: Partition.of([np.ones(3, dtype=bool)]),
                "partition: client 0 has a ndarray of bool of 1 dimension;",
            ),
            (
                lambda: Partition.of([4]),
                "partition: client 0 has a int of int64 of 0 dimensions; allowed: indices of i",
            ),
            (
                lambda: Partition.of(4),
                "partition: a int is no list of parts; allowed: for each client an array of indi",
            ),
            (
                lambda: Simulation(config, pictures, callbacks=[Follower]),
                "callbacks: the class Follower is no object; a",
            ),
            (
                lambda: Simulation(config, pictures, callbacks=Follower()),
                "callbacks: a Follower is no list; allowed: a ",
            ),
            (
                lambda: Simulation(config, pictures, callbacks=[3]),
                "callbacks: a int is no Callback; allowed: a list of ",
            ),
            (
                lambda: RunConfig(options={1: 2}),
                "options: 1 of type int is no name; allowed: {'objective.temperature': ",
            ),
        ):
            with pytest.raises(ValueError, match=f"^{re.escape(message)}.*$"):
                call()


class Bent(Objective):
    """Asks for the value of a tensor."""

    def loss(self, outputs_nD, targets_nD, memory):
        apart = (outputs_nD - targets_nD).square().mean()
        return (apart if apart > 1 else 2 * apart), nearest(outputs_nD, targets_nD)


@pytest.mark.slow
def test_a_loss_that_cannot_be_mapped_over_clients_is_refused_in_words(pictures):
    with patch.dict(DOORS["objective"]):
        extend.objective("bent")(Bent)
        with pytest.raises(AssertionError, match=r"^bent, federated clients, engine vmap: objective: the loss of Bent"):
            check(Bent, pictures, rounds=1)
        federated = RunConfig(**BASE | {"objective": "bent", "method": "federated", "syncs_per_round": 1})
        with pytest.raises(ValueError, match=r"^objective: the loss of Bent cannot be mapped .*vmap[^\n]*$"):
            list(Simulation(federated, pictures).rounds())


class Rolling(Callback):
    """Adds a random number."""

    def on_record(self, record):
        return {"rolled": float(torch.rand(()))} if record.event == "round" else None


class Counting(Callback):
    """Adds how many records it has seen since it began."""

    def on_start(self, simulation):
        self.seen = 0

    def on_record(self, record):
        self.seen += 1
        return {"seen": self.seen}


class Restless(Defence):
    """Reports how often it was called."""

    figures = ("restless",)
    calls = 0

    def size(self, smashed_shape, image_size):
        return 1

    def add(self, images, smashed, memory, round_index):
        Restless.calls += 1
        return Added(torch.zeros_like(smashed), (torch.full_like(memory[:, 0], Restless.calls),))


@pytest.mark.parametrize(
    ("door", "thing", "message"),
    [
        ("callback", Rolling, "engine vmap: rolled, which is added to a record of kind round, is .*; look for state"),
        ("callback", Counting, "in the middle of a round and resumed ends with other figures: seen, which is added"),
        ("defence", Restless, "engine vmap: restless, which is added to a record of kind round, is .*; look for state"),
    ],
)
def test_a_check_compares_what_is_added_to_records(door, thing, message, pictures):
    with patch.dict(DOORS[door]):
        getattr(extend, door)("odd")(thing)
        with pytest.raises(AssertionError, match=message):
            check(thing, pictures)


@pytest.mark.slow
def test_a_check_advises_whole_batches_only_where_they_help(pictures, caplog):
    class Forgetful(Objective):
        """Has a state outside its memory."""

        calls = 0

        def loss(self, outputs_nD, targets_nD, memory):
            Forgetful.calls += 1
            return (outputs_nD - targets_nD).square().mean() / Forgetful.calls, nearest(outputs_nD, targets_nD)

    with patch.dict(DOORS["objective"]):
        extend.objective("forgetful")(Forgetful)
        with pytest.raises(AssertionError, match=r"^forgetful, the whole cohort, .*; look for state outside the "):
            check(Forgetful, pictures)
        extend.objective("hard", queue=True)(Hard)
        check(Hard, pictures, rounds=1)
    assert not caplog.messages
