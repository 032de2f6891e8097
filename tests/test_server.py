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


def test_symmetric_loss_is_the_sum_of_both_directions_and_only_the_query_gets_a_gradient():
    model, state, queue = small()
    generator = torch.Generator().manual_seed(2)
    query, key = torch.randn(2, 4, 4, 8, 8, generator=generator, dtype=torch.float64).requires_grad_()
    options = {"temperature": 0.1, "symmetric": False}
    one, top_one, _ = server.contrast(model, state, queue, query, key, **options)
    two, top_two, _ = server.contrast(model, state, queue, key, query, **options)
    both, top_both, keys = server.contrast(model, state, queue, query, key, temperature=0.1, symmetric=True)
    assert both.item() == pytest.approx((one + two).item(), abs=1e-12)
    assert top_both.item() == pytest.approx((top_one + top_two).item() / 2)
    network = model.module(state.momentum)
    torch.testing.assert_close(torch.cat(keys), F.normalize(network(torch.cat([query, key])), dim=1).detach())


@pytest.mark.parametrize("head", ["mlp", "large-mlp"])
def test_directions_do_not_mix(head):
    """The keys of one direction do not depend on what the other brings, not even with BatchNorm."""
    query, key, other = torch.randn(3, 4, 4, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    results = []
    for second in (key, other):
        model, state, queue = small(head)
        _, _, keys = server.contrast(model, state, queue, query, second, temperature=0.1, symmetric=True)
        results.append(keys[0])  # of the query activations
    torch.testing.assert_close(results[0], results[1])
