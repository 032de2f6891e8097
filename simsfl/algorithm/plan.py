"""Everything random about a round, drawn before it starts: the cohort, the order of images, and view parameters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from simsfl.algorithm.absence import Absences, Reliability
from simsfl.algorithm.wire import NOBODY
from simsfl.config.notation import Unequal
from simsfl.data.partition import Partition
from simsfl.data.views import UNIFORMS, Recipe
from simsfl.kernels import ViewParameters
from simsfl.samplers import Drawn, Sampler
from simsfl.system.messages import kind_of
from simsfl.system.randomness import Purpose, numpy_generator

_UNIFORM, _RELIABLE = Sampler(), Reliability()


@dataclass(frozen=True)
class Group:
    """Clients that share a batch size; all clients are one group unless their resources are unequal."""

    clients: range
    """Ids of the group's clients."""
    cohort: int
    """Number of the group's clients that train in a round."""
    batch_size: int
    """Images that each of these clients trains on in a step."""

    @property
    def images(self) -> int:
        """Images that all of the group's clients in a cohort train on in a step, together."""
        return self.cohort * self.batch_size


@dataclass(frozen=True)
class GroupPlan:
    """The draws of C' clients of one group for a round of S steps, on the device; step s takes row s of each tensor."""

    indices: Tensor
    """``[S, C', B]`` int64 rows of the training images."""
    views: ViewParameters
    """Parameters of the two views of each image, tensors with the leading dimensions ``[S, 2, C', B]``."""
    noise: Tensor | None
    """``[S, 2, C', B, 2]`` int32 keys of the random numbers that defences draw for each view; None without any."""


@dataclass(frozen=True)
class RoundPlan:
    """The draws of one round."""

    cohort: Tensor
    """``[C]`` int64 ids of the clients that train, group after group, on the host."""
    mine: range
    """Positions in the cohort of the clients that train on this rank."""
    groups: list[GroupPlan]
    """Draws of these clients, for each group that has any of them, in the same order."""
    absences: Absences
    """Which clients of the cohort miss steps."""

    def here(self, positions: Iterable[int]) -> frozenset[int]:
        """Return which of some positions in the cohort are this rank's, counted from its first one."""
        return frozenset(position - self.mine.start for position in positions if position in self.mine) or NOBODY

    def on_device(self) -> list[Tensor]:
        """Return all tensors of the plan that are on the device."""
        return [
            tensor
            for group in self.groups
            for tensor in (group.indices, *vars(group.views).values(), group.noise)
            if tensor is not None
        ]


def client_groups(clients: int, cohort: int, batch_size: int, unequal: Unequal | None = None) -> list[Group]:
    """Return the groups of clients that share a batch size: one, or with unequal resources the rich, then the poor.

    Every cohort has the same number of clients of each group, in proportion to its size, so that the tensors of all
    rounds have the same shapes.

    Args:
        clients: number of clients.
        cohort: number of clients that train in a round.
        batch_size: images per step of a client, or of a poor client.
        unequal: shares of the rich, and how many times as large their batches are; None where all clients are equal.
    """
    if unequal is None:
        return [Group(range(clients), cohort, batch_size)]
    rich = unequal.rich(clients)
    chosen = min(max(unequal.rich(cohort), cohort - (clients - rich)), rich)
    return [
        Group(range(rich), chosen, unequal.batch_factor * batch_size),
        Group(range(rich, clients), cohort - chosen, batch_size),
    ]


def groups_of(groups: Sequence[Group], mine: range) -> list[Group]:
    """Return the groups of the clients at some positions of a cohort; a group that has none of them is left out.

    >>> both = [Group(range(0, 4), 2, 20), Group(range(4, 10), 3, 10)]
    >>> [(group.cohort, group.batch_size) for group in groups_of(both, range(1, 4))]
    [(1, 20), (2, 10)]
    """
    found, first = [], 0
    for group in groups:
        positions = range(first, first := first + group.cohort)
        if count := len(range(max(mine.start, positions.start), min(mine.stop, positions.stop))):
            found.append(replace(group, cohort=count))
    return found


def batches_of(groups: Sequence[Group]) -> tuple[int, ...]:
    """Return the images per step of each client of a cohort, in its order."""
    return tuple(group.batch_size for group in groups for _ in range(group.cohort))


def steps_per_round(held: Sequence[int], groups: Sequence[Group], epochs: float = 1.0) -> int:
    """Return the steps of a round: those in which all clients together would go `epochs` times through their images.

    The cohort runs in lock step, so all its clients take the same number of steps. A client with fewer images than its
    share starts over in a fresh order; one with more leaves out a different random part each round.

    Args:
        held: number of images that all clients together hold of each data set; the largest one counts.
        groups: all clients, by batch size.
        epochs: passes through the images in a round; the result is at least 1 step.
    """
    together = sum(len(group.clients) * group.batch_size for group in groups)
    return max(1, int(epochs * (len(held) * max(held) // together)))


@dataclass(frozen=True)
class Attendance:
    """Who trains in each round, and who of them misses steps; all of it drawn by seed and round."""

    groups: Sequence[Group]
    """All clients, by batch size."""
    seed: int
    """Seed of the run."""
    images: np.ndarray
    """``[M]`` number of images that each client holds."""
    sampler: Sampler = _UNIFORM
    """Draws the clients of the cohort."""
    reliability: Reliability = _RELIABLE
    """How likely these are to miss steps."""

    def draw(self, round_index: int) -> tuple[np.ndarray, Absences]:
        """Return the ids ``[C]`` of the clients that train in a round, counted from 0, in cohort order, and who misses.

        Raises:
            ValueError: the sampler returns something else than a cohort.
        """
        lottery = numpy_generator(self.seed, Purpose.COHORT, round_index)
        cohort, missing, name = [], set(), type(self.sampler).__name__
        for group in self.groups:
            own = self.images[group.clients.start : group.clients.stop]
            drawn = self.sampler.draw(group.clients, group.cohort, round_index, own, lottery)
            if not isinstance(drawn, Drawn):
                raise ValueError(f"sampler: {name} returns {kind_of(drawn)}; allowed: a Drawn")
            drawn.check(group.clients, group.cohort, name)
            cohort.append(drawn.clients)
            missing.update(drawn.missing)
        clients = np.concatenate(cohort)
        return clients, self.reliability.draw(clients.tolist(), missing, self.seed, round_index)


def plan_round(
    sources: Sequence[Partition],
    attendance: Attendance,
    round_index: int,
    *,
    steps: int,
    recipe: Recipe,
    device: torch.device,
    noise: bool = False,
    mine: range | None = None,
) -> RoundPlan:
    """Draw a round; each client's draws depend on (seed, round, client id) alone, not on other clients.

    Args:
        sources: what clients hold of each data set; a batch has equally many images of each.
        attendance: who trains in the round.
        round_index: counted from 0.
        steps: steps of the round.
        recipe: how views are drawn.
        device: device that the plan is sent to; the host goes on before it has arrived.
        noise: whether defences draw random numbers.
        mine: positions in the cohort of the clients that train on this rank; None for all.
    """
    cohort, absences = attendance.draw(round_index)
    seed, mine = attendance.seed, range(len(cohort)) if mine is None else mine
    plans, start = [], mine.start
    for group in groups_of(attendance.groups, mine):
        ids = cohort[start : (start := start + group.cohort)]
        indices = np.empty((steps, group.cohort, group.batch_size), dtype=np.int64)
        uniforms = np.empty((steps, 2, group.cohort, group.batch_size, UNIFORMS))
        keys = np.empty((steps, 2, group.cohort, group.batch_size, 2), dtype=np.int32)
        for position, client in enumerate(ids.tolist()):
            shuffle = numpy_generator(seed, Purpose.SHUFFLE, round_index, client)
            each = [passes(shuffle, own[client], steps * group.batch_size // len(sources)) for own in sources]
            indices[:, position] = np.concatenate([own.reshape(steps, -1) for own in each], axis=1)
            draws = numpy_generator(seed, Purpose.VIEWS, round_index, client)
            uniforms[:, :, position] = draws.random((steps, 2, group.batch_size, UNIFORMS))
            if noise:
                hashes = numpy_generator(seed, Purpose.NOISE, round_index, client)
                low, high = np.iinfo(np.int32).min, np.iinfo(np.int32).max
                keys[:, :, position] = hashes.integers(low, high, (steps, 2, group.batch_size, 2), dtype=np.int32)
        views = recipe.sample(uniforms).map(lambda t: _send(t, device))
        own_keys = _send(torch.from_numpy(keys), device) if noise else None
        plans.append(GroupPlan(_send(torch.from_numpy(indices), device), views, own_keys))
    return RoundPlan(torch.from_numpy(cohort), mine, plans, absences)


def _send(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on `device`, without waiting for the transfer to a GPU."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def passes(rng: np.random.Generator, images: np.ndarray, count: int) -> np.ndarray:
    """Return the first `count` images of as many passes over `images` as needed, each pass freshly shuffled."""
    return np.concatenate([rng.permutation(images) for _ in range(-(-count // len(images)))])[:count]
