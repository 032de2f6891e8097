"""What is registered may have a queue, labels or a memory of its own."""

from dataclasses import dataclass, replace
from math import prod
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F

from simsfl import RunConfig, Simulation, extend
from simsfl.aggregations import Aggregation
from simsfl.config import constraints
from simsfl.config.catalogue import DOORS
from simsfl.config.values import option
from simsfl.defences import Added, Defence
from simsfl.objectives import Objective, nearest
from simsfl.testing import check
from tests.doors.conftest import BASE, Hard


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


class Centred(Objective):
    """Compares outputs with targets, or the one-hot classes, from which the mean of those before is taken."""

    def memory(self, groups, dim, generator, device, dtype):
        return {"mean": torch.zeros(groups, dim, device=device, dtype=dtype)}

    def _vectors(self, targets_nD, outputs_nD):
        of_classes = targets_nD.dim() < outputs_nD.dim()
        return F.one_hot(targets_nD, outputs_nD.shape[-1]).to(outputs_nD) if of_classes else targets_nD

    def loss(self, outputs_nD, targets_nD, memory):
        wanted = self._vectors(targets_nD, outputs_nD) - memory["mean"]
        return F.mse_loss(outputs_nD, wanted), outputs_nD.new_zeros(())

    def remember_(self, memory, targets_GnD):
        vectors = self._vectors(targets_GnD, memory["mean"][:, None].expand(*targets_GnD.shape[:2], -1))
        memory["mean"].lerp_(vectors.mean(dim=1), 0.5)


@pytest.mark.parametrize("targets", extend.Targets)
def test_what_is_compared_with_is_remembered_once_for_each_direction(targets):
    with patch.dict(DOORS["objective"]):
        extend.objective("centred", targets=targets)(Centred)
        assert {"the whole cohort", "federated clients"} <= set(check(Centred, rounds=2, lr=0.001))


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
