"""What a round will do, drawn in full before it starts: cohort, image order, view parameters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from simsfl.kernels import ViewParameters
from simsfl.partition import Partition
from simsfl.randomness import Purpose, numpy_generator
from simsfl.views import UNIFORMS, sample


@dataclass(frozen=True)
class RoundPlan:
    """The draws of one round of S steps, on the device; a step takes row s of each."""

    cohort: Tensor
    """``[C]`` int64 client ids; on the host."""
    indices: Tensor
    """``[S, C, B]`` int64 rows of the training images."""
    views: ViewParameters
    """Leading dimensions ``[S, 2, C, B]``."""


def steps_per_round(partition: Partition, batch_size: int) -> int:
    """Steps in which a client of mean size goes once through its images.

    The cohort runs in lock step, so all its clients take the same number of steps: one with fewer images
    than the mean starts over in a fresh order, one with more leaves out a different random part each round.
    """
    return max(1, len(partition.indices) // len(partition) // batch_size)


def plan_round(
    partition: Partition,
    round_index: int,
    *,
    cohort: int,
    batch_size: int,
    recipe: str,
    image_size: int,
    crop_scale: float,
    seed: int,
    device: torch.device,
) -> RoundPlan:
    """Draw a round: each client's draws depend on (seed, round, client id) alone, not on the others'."""
    steps = steps_per_round(partition, batch_size)
    ids = numpy_generator(seed, Purpose.COHORT, round_index).choice(len(partition), cohort, replace=False)
    indices = np.empty((steps, cohort, batch_size), dtype=np.int64)
    uniforms = np.empty((steps, 2, cohort, batch_size, UNIFORMS))
    for position, client in enumerate(ids.tolist()):
        shuffle = numpy_generator(seed, Purpose.SHUFFLE, round_index, client)
        indices[:, position] = passes(shuffle, partition[client], steps * batch_size).reshape(steps, -1)
        draws = numpy_generator(seed, Purpose.VIEWS, round_index, client)
        uniforms[:, :, position] = draws.random((steps, 2, batch_size, UNIFORMS))
    return RoundPlan(
        torch.from_numpy(ids),
        send(torch.from_numpy(indices), device),
        sample(uniforms, recipe, image_size, crop_scale).map(lambda t: send(t, device)),
    )


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device, without waiting for it to get there."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def passes(rng: np.random.Generator, images: np.ndarray, count: int) -> np.ndarray:
    """The first `count` of as many freshly shuffled passes over `images` as it takes."""
    return np.concatenate([rng.permutation(images) for _ in range(-(-count // len(images)))])[:count]
