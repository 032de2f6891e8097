"""Losses of objectives against naive loops from their formulas, and their gradients by finite differences."""

import math

import pytest
import torch
import torch.nn.functional as F

from simsfl.objectives.barlow_twins import BarlowTwins
from simsfl.objectives.byol import BYOL
from simsfl.objectives.moco import MoCo
from simsfl.objectives.simclr import SimCLR
from simsfl.objectives.simsiam import SimSiam
from simsfl.objectives.supervised import Supervised

ROWS, DIM = 5, 6


def rows(seed, dim=DIM):
    """Return random rows in float64."""
    return torch.randn(ROWS, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cosine(a, b):
    """Return the cosine of two vectors, number by number."""
    dot, one, two = (sum(x * y for x, y in zip(*pair, strict=True)) for pair in ((a, b), (a, a), (b, b)))
    return dot / math.sqrt(one * two)


def infonce_by_hand(outputs, targets, keys, temperature):
    """Return equation 1 of MoCo (He et al., 2020), and the hits in percent."""
    losses, hits = [], 0
    for output, target in zip(outputs.tolist(), targets.tolist(), strict=True):
        own = cosine(output, target) / temperature
        others = [cosine(output, key) / temperature for key in keys.tolist()]
        losses.append(-math.log(math.exp(own) / (math.exp(own) + sum(map(math.exp, others)))))
        hits += own > max(others)
    return sum(losses) / len(losses), 100 * hits / len(losses)


def ntxent_by_hand(first, second, temperature):
    """Return equation 1 of SimCLR (Chen et al., 2020), the mean over both views, and the hits in percent."""
    views = [*first.tolist(), *second.tolist()]
    losses, hits = [], 0
    for i, one in enumerate(views):
        partner = (i + len(first)) % len(views)
        scores = {k: cosine(one, other) / temperature for k, other in enumerate(views) if k != i}
        losses.append(-math.log(math.exp(scores[partner]) / sum(map(math.exp, scores.values()))))
        hits += scores[partner] > max(score for k, score in scores.items() if k != partner)
    return sum(losses) / len(losses), 100 * hits / len(losses)


def twins_by_hand(first, second, weight):
    """Return equation 1 of Barlow Twins (Zbontar et al., 2021)."""

    def standardised(view):
        columns = view.T.tolist()
        means = [sum(column) / len(column) for column in columns]
        deviations = [
            math.sqrt(sum((x - mean) ** 2 for x in column) / len(column) + 1e-5)
            for column, mean in zip(columns, means, strict=True)
        ]
        return [[(x - means[d]) / deviations[d] for d, x in enumerate(row)] for row in view.tolist()]

    a, b = standardised(first), standardised(second)
    total = 0.0
    for i in range(DIM):
        for j in range(DIM):
            correlation = sum(x[i] * y[j] for x, y in zip(a, b, strict=True)) / ROWS
            total += (1 - correlation) ** 2 if i == j else weight * correlation**2
    return total


def test_moco_is_infonce_against_the_queue():
    objective = MoCo(0.2, 7)
    keys = F.normalize(torch.randn(1, 7, DIM, generator=torch.Generator().manual_seed(9), dtype=torch.float64), dim=2)
    loss, top1 = objective.losses(rows(0)[None], rows(1)[None], {"keys": keys, "pointer": torch.zeros(1).long()})
    assert (loss.item(), top1.item()) == pytest.approx(infonce_by_hand(rows(0), rows(1), keys[0], 0.2))


@pytest.mark.parametrize("count", [1, 3, 7, 12])
def test_moco_remembers_the_latest_keys_of_each_group(count):
    objective = MoCo(0.1, 7)
    memory = objective.memory(2, DIM, torch.Generator().manual_seed(0), torch.device("cpu"), torch.float64)
    rings, slot = [list(ring) for ring in memory["keys"].clone()], 0
    for step in range(3):
        targets = torch.randn(2, count, DIM, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        objective.remember_(memory, targets)
        for key in range(count):
            for group, ring in enumerate(rings):
                ring[slot] = F.normalize(targets[group, key], dim=0)
            slot = (slot + 1) % 7
    torch.testing.assert_close(memory["keys"], torch.stack([torch.stack(ring) for ring in rings]))
    assert memory["pointer"].tolist() == [slot, slot]


def test_simclr_is_nt_xent_over_both_views():
    loss, top1 = SimCLR(temperature=0.3).loss(rows(0), rows(0) + 0.4 * rows(1), {})
    assert (loss.item(), top1.item()) == pytest.approx(ntxent_by_hand(rows(0), rows(0) + 0.4 * rows(1), 0.3))


def test_barlow_twins_is_its_equation():
    loss, _ = BarlowTwins(redundancy=0.3).loss(rows(0), rows(1), {})
    assert loss.item() == pytest.approx(twins_by_hand(rows(0), rows(1), 0.3))


def test_simsiam_is_the_negative_cosine_of_both_directions():
    first, second = rows(0, 2 * DIM), rows(1, 2 * DIM)
    loss, _ = SimSiam().loss(first, second, {})
    expected = [
        (cosine(one[DIM:], two[:DIM]) + cosine(two[DIM:], one[:DIM])) / 2
        for one, two in zip(first.tolist(), second.tolist(), strict=True)
    ]
    assert loss.item() == pytest.approx(-sum(expected) / ROWS)


def test_simsiam_sends_no_gradient_to_projections_that_are_predicted():
    first, second = rows(0, 2 * DIM).requires_grad_(), rows(1, 2 * DIM).requires_grad_()
    SimSiam().loss(first, second, {})[0].backward()
    for view in (first, second):
        assert (view.grad[:, :DIM] == 0).all()
        assert (view.grad[:, DIM:] != 0).any()


def test_byol_is_the_distance_of_prediction_and_projection():
    outputs, targets = rows(0, 2 * DIM), rows(1, 2 * DIM)
    loss, top1 = BYOL().losses(outputs[None], targets[None], {})
    cosines = [[cosine(one[DIM:], two[:DIM]) for two in targets.tolist()] for one in outputs.tolist()]
    assert loss.item() == pytest.approx(sum(2 - 2 * line[i] for i, line in enumerate(cosines)) / ROWS)
    assert top1.item() == pytest.approx(100 * sum(line[i] == max(line) for i, line in enumerate(cosines)) / ROWS)


def test_supervised_is_cross_entropy():
    labels = torch.tensor([0, 2, 1, 5, 3])
    loss, top1 = Supervised().loss(rows(0), labels, {})
    scores = rows(0).tolist()
    expected = [math.log(sum(map(math.exp, line))) - line[label] for line, label in zip(scores, labels, strict=True)]
    assert loss.item() == pytest.approx(sum(expected) / ROWS)
    hits = [line.index(max(line)) == label for line, label in zip(scores, labels, strict=True)]
    assert top1.item() == pytest.approx(100 * sum(hits) / ROWS)


@pytest.mark.parametrize("objective", [SimCLR(), BarlowTwins()], ids=["simclr", "barlow-twins"])
def test_gradients_are_those_of_finite_differences(objective):
    views = rows(0).requires_grad_(), rows(1).requires_grad_()
    assert torch.autograd.gradcheck(lambda one, two: objective.loss(one, two, {})[0], views)


@pytest.mark.parametrize("objective", [SimCLR(), SimSiam(), BarlowTwins()], ids=["simclr", "simsiam", "barlow-twins"])
def test_groups_are_trained_apart(objective):
    groups = [torch.stack([rows(2 * g + view) for g in range(3)]) for view in range(2)]
    loss, top1 = objective.losses(*groups, {})
    each = [objective.loss(one, two, {}) for one, two in zip(*groups, strict=True)]
    torch.testing.assert_close(loss, torch.stack([own for own, _ in each]).mean())
    torch.testing.assert_close(top1, torch.stack([own for _, own in each]).mean())
