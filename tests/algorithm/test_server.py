"""The server's part of a step: the loss against PyTorch's own operators, whatever the blocks."""

import pytest
import torch
import torch.nn.functional as F

from simsfl import RunConfig
from simsfl.algorithm import server
from simsfl.algorithm.batch import Hyperparameters
from simsfl.models import split_model
from simsfl.objectives.moco import MoCo
from simsfl.optimisers import SGD
from simsfl.setup import assembly
from simsfl.setup.outline import Outline


def small_server(head="mlp"):
    """Return a small server: the network, its state, and a queue of nine keys."""
    model = split_model(
        "resnet8",
        width=4,
        cut_layer=1,
        image_size=16,
        head=head,
        key_dim=6,
        generator=torch.Generator().manual_seed(0),
    )
    config = RunConfig(clients=2, cohort=2, queue_length=9, key_dim=6, device="cpu")
    state = assembly.state(Outline(config, groups=[], steps=0), model, torch.float64)
    return model.server, state.server, state.memory


def how(batches, block, *, symmetric=True):
    """Return the hyperparameters of MoCo with a temperature of 0.1 and queues of nine keys."""
    return Hyperparameters(MoCo(0.1, 9), symmetric, 0.99, SGD(0.9, 0.0), tuple(batches), block=block)


def test_initial_queue_has_unit_keys():
    _, _, queue = small_server()
    torch.testing.assert_close(queue["keys"].norm(dim=2), torch.ones(1, 9, dtype=torch.float64))


def contrast_by_torch(model, state, smashed, rings, *, symmetric):
    """Compute what `server.gradients` does with MoCo at a temperature of 0.1, for four queries before four keys.

    Returns:
        the loss, its accuracy in percent, the gradients of smashed data and of parameters, and the new keys of both
        directions, in the order in which they are enqueued.
    """
    online, momentum = model.module(state.online.detach().clone()), model.module(state.momentum)
    query, key = smashed[:4].clone().requires_grad_(), smashed[4:]
    queue_of_row = rings.repeat_interleave(4 // len(rings), dim=0)
    loss, hits, keys = 0.0, [], []
    for a, b in [(query, key), (key, query)] if symmetric else [(query, key)]:
        q, k = F.normalize(online(a), dim=1), F.normalize(momentum(b), dim=1).detach()
        positive, negatives = (q * k).sum(1, keepdim=True), torch.einsum("nd,nkd->nk", q, queue_of_row)
        scores = torch.cat([positive, negatives], dim=1) / 0.1
        loss = loss + F.cross_entropy(scores, torch.zeros(4, dtype=torch.long))
        hits.append((positive > negatives).all(dim=1))  # some outputs are 0 here, and so are all their scores
        keys.insert(0, k)
    loss.backward()
    return {
        "loss": loss.detach(),
        "top1": 100 * torch.cat(hits).double().mean(),
        "smashed": query.grad,
        "parameters": torch.cat([p.grad.flatten() for p in online.parameters()]),
        "keys": torch.stack(keys),
    }


@pytest.mark.parametrize("block", [None, 1, 3, 4, 5, 100])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("symmetric", [True, False])
def test_contrast_is_both_directions_by_the_book(symmetric, groups, block, monkeypatch):
    """The reference is an ordinary module, torch's cross-entropy and one backward pass, whatever the blocks."""
    rows_together = []
    original = server.embed

    def embed(model, parameters, statistics, smashed):
        rows_together.append(len(smashed))
        return original(model, parameters, statistics, smashed)

    monkeypatch.setattr(server, "embed", embed)
    model, state, _ = small_server()
    generator = torch.Generator().manual_seed(2)
    rings = F.normalize(torch.randn(groups, 9, 6, generator=generator, dtype=torch.float64), dim=2)
    queue = {"keys": rings, "pointer": torch.zeros(groups, dtype=torch.long)}
    state.momentum.add_(0.1)
    smashed = torch.randn(8, 4, 8, 8, generator=generator, dtype=torch.float64)
    hyper = how([4 // groups] * groups, block, symmetric=symmetric)
    outcome = server.gradients(model, state, smashed, queue, hyper)
    assert max(rows_together) <= max(block or 8, 4 // groups if groups > 1 else 1)
    expected = contrast_by_torch(model, state, smashed, rings, symmetric=symmetric)
    found = {name: value for name, value in vars(outcome).items() if name in expected}
    found["keys"] = F.normalize(torch.stack(outcome.targets), dim=2)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-10, atol=1e-12, msg=f"{name}: {{}}".format)


@pytest.mark.parametrize("head", ["mlp", "large-mlp"])
def test_directions_do_not_mix(head):
    """The keys of one direction do not depend on the data of the other, not even with BatchNorm."""
    query, key, other = torch.randn(3, 4, 4, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    results = []
    for second in (key, other):
        model, state, queue = small_server(head)
        outcome = server.gradients(model, state, torch.cat([query, second]), queue, how([2, 2], 3))
        results.append(outcome.targets[0])  # of the query activations
    torch.testing.assert_close(results[0], results[1])
