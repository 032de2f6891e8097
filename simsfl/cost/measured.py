"""Memory that tensors really take, as PyTorch's profiler sees them come and go."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import torch
from torch import nn

from simsfl.algorithm.single_client import SingleClient
from simsfl.models import FlatModule


def peak_tensor_bytes(work: Callable[[], object]) -> int:
    """The most bytes of tensors that `work` had at a time, on the CPU, above what there was before.

    What operators take for themselves counts, if they take it from PyTorch (oneDNN's scratchpads are not).
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it reports a missing GPU as an error
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    changes = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for change in sorted(changes, key=lambda event: event.start_ns()):
        held += change.nbytes()
        peak = max(peak, held)
    return peak


def training_bytes(model: FlatModule, shape: Sequence[int], batch_size: int, *, learns: bool = True) -> int:
    """Of a client's step with images of such a `shape`: what `simsfl.cost.model.memory` reckons, measured.

    The gradient that comes in, or that of a loss of the client's own, is part of it.
    """
    online, momentum, velocity = (torch.zeros(model.size) for _ in range(3))
    online.uniform_(-1, 1)
    modules: list[nn.Module] = [
        model.module(weights, torch.ones(len(model.initial_statistics))) for weights in (online, momentum)
    ]
    client = SingleClient(*modules, model.named(velocity).values())
    images = torch.rand(batch_size, *shape)

    def step() -> None:
        with torch.set_grad_enabled(learns):
            smashed = client.query(images)
        client.move(0.99)
        client.key(images)
        if learns:
            client.backward(torch.ones_like(smashed))
            client.descend(0.1, 0.9, 5e-4)

    step()  # what is made once
    state = 2 * (model.size + len(model.initial_statistics)) + (model.size if learns else 0)
    return state * online.itemsize + peak_tensor_bytes(step)
