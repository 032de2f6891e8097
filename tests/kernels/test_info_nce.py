"""InfoNCE against the formula, term by term, and against numerical gradients."""

import math
import sys

import pytest
import torch
import torch.nn.functional as F

from simsfl.kernels import accelerated, info_nce
from simsfl.kernels.info_nce import reference
from tests.kernels.agreement import assert_agree


def rows(seed, *shape):
    """Return random unit vectors, in the last dimension of `shape`."""
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


def by_the_formula(query, key, queue, temperature):
    """Return the loss (MoCo, eq. 1) and the accuracy in percent, computed with Python floats."""
    total, hits = 0.0, 0
    per_group = len(query) // len(queue)
    for i, q in enumerate(query.tolist()):
        negatives = queue[i // per_group].tolist()
        scores = [sum(a * b for a, b in zip(q, k, strict=True)) / temperature for k in [key[i].tolist(), *negatives]]
        highest = max(scores)
        total += math.log(sum(math.exp(s - highest) for s in scores)) + highest - scores[0]
        hits += scores[0] > max(scores[1:])
    return total / len(query), 100 * hits / len(query)


@pytest.fixture(params=["fused", "plain"])
def version(request, monkeypatch):
    """Use either version of the operator; the fused one takes three keys at a time."""
    monkeypatch.setattr(sys.modules["simsfl.kernels.info_nce"], "BLOCK", 3)
    with accelerated("fastest" if request.param == "fused" else None):
        yield


@pytest.mark.usefixtures("version")
@pytest.mark.parametrize(("n", "groups", "length"), [(1, 1, 1), (6, 1, 7), (6, 3, 5), (8, 8, 2)])
@pytest.mark.parametrize("temperature", [0.001, 0.07, 0.1, 1.0])
def test_value(n, groups, length, temperature):
    query, queue = rows(1, n, 4), rows(3, groups, length, 4)
    key = F.normalize(query + 0.5 * rows(2, n, 4), dim=1)
    loss, top1 = info_nce(query, key, queue, temperature)
    expected, hits = by_the_formula(query, key, queue, temperature)
    assert loss.item() == pytest.approx(expected, rel=1e-12, abs=1e-12)
    assert top1.item() == pytest.approx(hits)


@pytest.mark.usefixtures("version")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dim", [3, 128, 2048])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_a_tie_is_no_hit(dim, dtype, temperature):
    """A key that scores as high as the own one, wherever it is in the queue, however the two products are rounded."""
    apart = rows(1, 12, dim).to(dtype)
    for place in range(7):
        queue = rows(2, 1, 7, dim).to(dtype)
        queue[0, place] = apart[0]
        _, top1 = info_nce(apart, apart, queue, temperature)
        assert top1.item() == pytest.approx(100 * 11 / 12)  # of the first row alone
    for seed in range(20):  # each with other errors
        one = rows(seed, dim).to(dtype)
        uneven = 1 + torch.finfo(dtype).eps * (torch.arange(dim) % 2)
        query, key, queue = one.expand(12, dim), (one * uneven).expand(12, dim), one.expand(7, dim)
        for keys in (queue[None], queue.expand(3, 7, dim)):
            assert info_nce(query, key, keys, temperature)[1].item() == 0.0


@pytest.mark.usefixtures("version")
def test_a_hit_needs_no_more_than_a_lead_that_rounding_cannot_make():
    query, key = torch.eye(4)[:1], torch.eye(4)[:1]
    queue = F.normalize(torch.tensor([[[1.0, 0.01, 0.0, 0.0]]]), dim=2)  # the cosine is 0.99995
    assert info_nce(query, key, queue, 0.1)[1].item() == 100.0


@pytest.mark.usefixtures("version")
def test_gradient():
    query, key, queue = rows(1, 6, 4).requires_grad_(), rows(2, 6, 4), rows(3, 3, 5, 4)
    assert torch.autograd.gradcheck(lambda q: info_nce(q, key, queue, 0.1)[0], (query,))


@pytest.mark.usefixtures("version")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gradient_at_published_size(dtype):
    key, queue = rows(2, 100, 128), rows(3, 1, 6000, 128)
    assert_agree(
        lambda q: 3 * info_nce(q, key.to(q.dtype), queue.to(q.dtype), 0.1)[0],
        lambda q: 3 * reference(q, key, queue, 0.1)[0],
        [rows(1, 100, 128)],
        dtype=dtype,
    )


def test_nothing_as_large_as_all_scores_is_kept():
    query, key, queue = rows(1, 50, 8).requires_grad_(), rows(2, 50, 8), rows(3, 1, 9000, 8)
    kept = []
    with accelerated(), torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        info_nce(query, key, queue, 0.1)
    assert sum(kept) <= query.numel()
