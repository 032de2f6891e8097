"""Samplers that know how many images clients hold, or whose turn it is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simsfl.samplers import Drawn, Sampler


@dataclass(frozen=True)
class ByImages(Sampler):
    """Draws clients in proportion to the number of images that they hold, one after another without replacement."""

    def draw(self, clients: range, count: int, round_index: int, images: np.ndarray, rng: np.random.Generator) -> Drawn:
        """Return the drawn clients."""
        return Drawn(clients.start + rng.choice(len(clients), count, replace=False, p=images / images.sum()))


@dataclass(frozen=True)
class RoundRobin(Sampler):
    """Takes clients in the order of their ids, so that each has its turn before any has a second one."""

    def draw(self, clients: range, count: int, round_index: int, images: np.ndarray, rng: np.random.Generator) -> Drawn:
        """Return the clients whose turn it is."""
        return Drawn(clients.start + (round_index * count + np.arange(count)) % len(clients))
