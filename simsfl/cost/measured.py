"""The memory that tensors take, measured by PyTorch's profiler as they are allocated and freed."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import torch
from torch import nn

from simsfl.algorithm.single_client import SingleClient
from simsfl.models import FlatModule


def peak_tensor_bytes(work: Callable[[], object]) -> int:
    """Return the largest number of bytes that tensors of `work` took on the CPU at any time.

    Tensors that were there before `work` began do not count.

    Memory that operators allocate for themselves counts if they get it from PyTorch; oneDNN's scratchpads do not.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # Kineto reports a missing GPU as an error
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    changes = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for change in sorted(changes, key=lambda event: event.start_ns()):
        held += change.nbytes()
        peak = max(peak, held)
    return peak


def training_bytes(model: FlatModule, shape: Sequence[int], batch_size: int, *, learns: bool = True) -> int:
    """Measure the bytes that a client's training step takes, which `simsfl.cost.model.memory` estimates.

    The gradient of the smashed data counts, whether the server sends it or the client computes it from its own loss.

    Args:
        model: client model.
        shape: ``(channels, height, width)`` of an image.
        batch_size: images in a batch.
        learns: whether the client learns.
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
            (smashed,) = client.query(images)
        client.move(0.99)
        client.key(images)
        if learns:
            client.backward(torch.ones_like(smashed))
            client.descend(0.1, 0.9, 5e-4)

    step()  # what is allocated only once does not count
    state = 2 * (model.size + len(model.initial_statistics)) + (model.size if learns else 0)
    return state * online.itemsize + peak_tensor_bytes(step)
