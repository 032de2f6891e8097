"""What a round will do, drawn in full before it starts: cohort, image order, view parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from simsfl.config.notation import Unequal
from simsfl.data.partition import Partition
from simsfl.data.views import UNIFORMS, sample
from simsfl.kernels import ViewParameters
from simsfl.system.randomness import Purpose, numpy_generator


@dataclass(frozen=True)
class Group:
    """Clients that do the same in a step. There is one of them, but for unequal resources."""

    clients: range
    """Their ids."""
    cohort: int
    """How many of them train in a round."""
    batch_size: int

    @property
    def images(self) -> int:
        """That its cohort trains on in a step."""
        return self.cohort * self.batch_size


@dataclass(frozen=True)
class GroupPlan:
    """The draws of one group for a round of S steps, on the device; a step takes row s of each."""

    indices: Tensor
    """``[S, C, B]`` int64 rows of the training images."""
    views: ViewParameters
    """Leading dimensions ``[S, 2, C, B]``."""


@dataclass(frozen=True)
class RoundPlan:
    """The draws of one round."""

    cohort: Tensor
    """``[C]`` int64 client ids, group after group; on the host."""
    groups: list[GroupPlan]

    def on_device(self) -> list[Tensor]:
        """Return the plan's tensors that are on the device."""
        return [tensor for group in self.groups for tensor in (group.indices, *vars(group.views).values())]


def client_groups(clients: int, cohort: int, batch_size: int, unequal: Unequal | None = None) -> list[Group]:
    """Clients by what they can do: with unequal resources the rich, who come first, and the poor.

    Each takes part in the cohort in proportion, so that every round has the same shapes.
    """
    if unequal is None:
        return [Group(range(clients), cohort, batch_size)]
    rich = unequal.rich(clients)
    chosen = min(max(unequal.rich(cohort), cohort - (clients - rich)), rich)
    return [
        Group(range(rich), chosen, unequal.batch_factor * batch_size),
        Group(range(rich, clients), cohort - chosen, batch_size),
    ]


def steps_per_round(sources: Sequence[Partition], groups: Sequence[Group], epochs: float = 1.0) -> int:
    """Steps in which all clients together would go `epochs` times through their images, of the larger source.

    The cohort runs in lock step, so all its clients take the same number of steps: one with fewer images
    than its share starts over in a fresh order, one with more leaves out a different random part each round.
    """
    together = sum(len(group.clients) * group.batch_size for group in groups)
    largest = max(len(source.indices) for source in sources)
    return max(1, int(epochs * (len(sources) * largest // together)))


def draw_cohort(groups: Sequence[Group], round_index: int, seed: int) -> list[np.ndarray]:
    """Ids of the clients that train in a round, of each group, in cohort order."""
    lottery = numpy_generator(seed, Purpose.COHORT, round_index)
    return [group.clients.start + lottery.choice(len(group.clients), group.cohort, replace=False) for group in groups]


def plan_round(
    sources: Sequence[Partition],
    round_index: int,
    *,
    groups: Sequence[Group],
    steps: int,
    recipe: str,
    image_size: int,
    crop_scale: float,
    seed: int,
    device: torch.device,
) -> RoundPlan:
    """Draw a round: each client's draws depend on (seed, round, client id) alone, not on the others'.

    Args:
        sources: what clients hold; of several, a batch has equally many images of each.
    """
    cohorts, plans = [], []
    for group, ids in zip(groups, draw_cohort(groups, round_index, seed), strict=True):
        indices = np.empty((steps, group.cohort, group.batch_size), dtype=np.int64)
        uniforms = np.empty((steps, 2, group.cohort, group.batch_size, UNIFORMS))
        for position, client in enumerate(ids.tolist()):
            shuffle = numpy_generator(seed, Purpose.SHUFFLE, round_index, client)
            each = [passes(shuffle, own[client], steps * group.batch_size // len(sources)) for own in sources]
            indices[:, position] = np.concatenate([own.reshape(steps, -1) for own in each], axis=1)
            draws = numpy_generator(seed, Purpose.VIEWS, round_index, client)
            uniforms[:, :, position] = draws.random((steps, 2, group.batch_size, UNIFORMS))
        views = sample(uniforms, recipe, image_size, crop_scale).map(lambda t: send(t, device))
        cohorts.append(torch.from_numpy(ids))
        plans.append(GroupPlan(send(torch.from_numpy(indices), device), views))
    return RoundPlan(torch.cat(cohorts), plans)


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device, without waiting for it to get there."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def passes(rng: np.random.Generator, images: np.ndarray, count: int) -> np.ndarray:
    """The first `count` of as many freshly shuffled passes over `images` as it takes."""
    return np.concatenate([rng.permutation(images) for _ in range(-(-count // len(images)))])[:count]
