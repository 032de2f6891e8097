"""InfoNCE against the formula, term by term, and against numerical gradients."""

import math

import pytest
import torch
import torch.nn.functional as F

from simsfl.kernels import info_nce


def rows(seed, *shape):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


def by_the_formula(query, key, queue, temperature):
    """MoCo, eq. 1, with Python floats."""
    total, hits = 0.0, 0
    per_group = len(query) // len(queue)
    for i, q in enumerate(query.tolist()):
        negatives = queue[i // per_group].tolist()
        scores = [sum(a * b for a, b in zip(q, k, strict=True)) / temperature for k in [key[i].tolist(), *negatives]]
        total += math.log(sum(math.exp(s) for s in scores)) - scores[0]
        hits += scores[0] > max(scores[1:])
    return total / len(query), 100 * hits / len(query)


@pytest.mark.parametrize(("n", "groups", "length"), [(1, 1, 1), (6, 1, 7), (6, 3, 5), (8, 8, 2)])
@pytest.mark.parametrize("temperature", [0.07, 0.1, 1.0])
def test_value(n, groups, length, temperature):
    query, queue = rows(1, n, 4), rows(3, groups, length, 4)
    key = F.normalize(query + 0.5 * rows(2, n, 4), dim=1)
    loss, top1 = info_nce(query, key, queue, temperature)
    expected, hits = by_the_formula(query, key, queue, temperature)
    assert loss.item() == pytest.approx(expected, abs=1e-12)
    assert top1.item() == pytest.approx(hits)


def test_gradient():
    query, key, queue = rows(1, 6, 4).requires_grad_(), rows(2, 6, 4), rows(3, 3, 5, 4)
    assert torch.autograd.gradcheck(lambda q: info_nce(q, key, queue, 0.1)[0], (query,))


def test_float32_agrees_with_float64_at_published_size():
    query, key, queue = rows(1, 100, 128), rows(2, 100, 128), rows(3, 1, 6000, 128)
    exact, _ = info_nce(query, key, queue, 0.1)
    single, _ = info_nce(query.float(), key.float(), queue.float(), 0.1)
    assert single.item() == pytest.approx(exact.item(), rel=1e-5)
