"""The key queue against a naive ring, for every alignment of length, pointer and keys."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from simsfl import server
from simsfl.models import split_model
from simsfl.state import KeyQueue, initial_state


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("length", range(1, 6))
def test_enqueue_wraps_around(groups, length):
    for start, count in itertools.product(range(length), range(1, 2 * length + 2)):
        ring = [[float(-g * 10 - i - 1) for i in range(length)] for g in range(groups)]
        queue = KeyQueue(torch.tensor(ring)[:, :, None].clone(), torch.full((groups,), start))
        keys = torch.arange(groups * count, dtype=torch.float32)
        for g in range(groups):
            for i in range(count):
                ring[g][(start + i) % length] = float(g * count + i)
        server.enqueue_(queue, keys[:, None])
        assert queue.keys[:, :, 0].tolist() == ring
        assert queue.pointer.tolist() == [(start + count) % length] * groups


def small(head="mlp"):
    model = split_model(
        "resnet8",
        width=4,
        cut_layer=1,
        image_size=16,
        head=head,
        key_dim=6,
        generator=torch.Generator().manual_seed(0),
    )
    state = initial_state(
        model,
        clients=2,
        cohort=2,
        queue_length=9,
        key_dim=6,
        feature_sharing=True,
        align_momentum=False,
        generator=torch.Generator().manual_seed(1),
        device=torch.device("cpu"),
        dtype=torch.float64,
    )
    return model.server, state.server, state.queue


def test_initial_queue_has_unit_keys():
    _, _, queue = small()
    torch.testing.assert_close(queue.keys.norm(dim=2), torch.ones(1, 9, dtype=torch.float64))


def test_symmetric_is_both_directions_and_only_the_query_side_has_a_gradient():
    model, state, queue = small()
    generator = torch.Generator().manual_seed(2)
    query, key = torch.randn(2, 4, 4, 8, 8, generator=generator, dtype=torch.float64)
    query.requires_grad_()
    one = server.project(model, state, torch.cat([query, key]), symmetric=False)
    two = server.project(model, state, torch.cat([key, query]), symmetric=False)
    both = server.project(model, state, torch.cat([query, key]), symmetric=True)
    torch.testing.assert_close(both, ([*one[0], *two[0]], [*one[1], *two[1]]))
    assert not any(k.requires_grad for k in both[1])
    network = model.module(state.momentum)
    torch.testing.assert_close(torch.cat(both[1]), F.normalize(network(torch.cat([key, query])), dim=1).detach())
    results = [server.contrast(*pair, queue, 0.1) for pair in (one, two, both)]
    assert results[2][0].item() == pytest.approx((results[0][0] + results[1][0]).item(), abs=1e-12)
    assert results[2][1].item() == pytest.approx((results[0][1] + results[1][1]).item() / 2)
    from_both, from_one = (torch.autograd.grad(loss, query)[0] for loss in (results[2][0], results[0][0]))
    torch.testing.assert_close(from_both, from_one)


@pytest.mark.parametrize("head", ["mlp", "large-mlp"])
def test_directions_do_not_mix(head):
    """The keys of one direction do not depend on what the other brings, not even with BatchNorm."""
    query, key, other = torch.randn(3, 4, 4, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    results = []
    for second in (key, other):
        model, state, _ = small(head)
        _, keys = server.project(model, state, torch.cat([query, second]), symmetric=True)
        results.append(keys[1])  # of the query activations
    torch.testing.assert_close(results[0], results[1])
