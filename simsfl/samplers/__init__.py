"""Samplers: which clients are the cohort of a round.

`simsfl.config.catalogue.SAMPLERS` lists those that come with simsfl. A cohort always has the same number of clients. A
sampler may add that some of them do not come: the server then trains without them.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from simsfl.config import RunConfig

__all__ = ["Drawn", "Sampler"]


@dataclass(frozen=True)
class Drawn:
    """The clients that a sampler has drawn."""

    clients: np.ndarray
    """Int64 ids, without repetition, in the order of the cohort."""
    missing: Collection[int] = ()
    """Ids of those of them that do not come."""


@dataclass(frozen=True)
class Sampler:
    """The uniform sampler, which draws without replacement, and the base of all others.

    A subclass is a frozen dataclass, whose fields are its options.
    """

    @classmethod
    def of(cls, config: RunConfig) -> Sampler:
        """Return the sampler that a config with every rule applied means."""
        return cls(**config.options_of("sampler", cls))

    def draw(self, clients: range, count: int, round_index: int, images: np.ndarray, rng: np.random.Generator) -> Drawn:
        """Draw the clients of a round.

        Args:
            clients: ids of the clients to draw from: all of them, or with unequal clients the rich or the poor.
            count: number of clients to draw.
            round_index: the round, counted from 0.
            images: number of images that each of `clients` holds.
            rng: random numbers that depend on the run's seed and the round alone.
        """
        return Drawn(clients.start + rng.choice(len(clients), count, replace=False))
