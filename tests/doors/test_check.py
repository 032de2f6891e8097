"""`simsfl.testing.check` passes what comes with simsfl, and says in words what is wrong with others."""

from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from simsfl import RunConfig, Simulation, extend
from simsfl.aggregations import Aggregation
from simsfl.config.catalogue import DOORS
from simsfl.config.registry import code_of
from simsfl.defences import Added, Defence
from simsfl.objectives import Objective, nearest
from simsfl.rounds.callback import Callback
from simsfl.testing import check
from tests.doors.conftest import BASE, Hard

SHORT = ("moco", "gaussian")
"""Names that are not left to the slow tests."""


CALM = {"lr": 0.001}
"""Fields with which rounding is not amplified."""
FIELDS = {
    "adamw": CALM,
    "lars": CALM,
    "fleet": {"fleet": str(Path(__file__).parents[1] / "ranks" / "fleet.toml")},
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
