"""Samplers: which clients are the cohort of a round.

`simsfl.config.catalogue.SAMPLERS` lists those that come with simsfl. A cohort always has the same number of clients. A
sampler may add that some of them do not come: the server then trains without them.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from simsfl.config import RunConfig
from simsfl.system.messages import count_text, kind_of, shortened

if TYPE_CHECKING:
    from simsfl.fleet.timeline import Timeline

__all__ = ["Drawn", "Sampler"]


@dataclass(frozen=True)
class Drawn:
    """The clients that a sampler has drawn."""

    clients: np.ndarray
    """Int64 ids, without repetition, in the order of the cohort."""
    missing: Collection[int] = ()
    """Ids of those of them that do not come."""

    def check(self, clients: range, count: int, sampler: str) -> None:
        """Raise a ValueError unless these are `count` different clients out of `clients`, and the missing among them.

        Args:
            clients: ids of the clients to draw from.
            count: how many had to be drawn.
            sampler: name of the sampler's class.
        """
        drawn = self.clients
        if not isinstance(drawn, np.ndarray):
            raise ValueError(
                f"sampler: {sampler} drew {kind_of(drawn)}; allowed: a NumPy array of "
                f"{count_text(count, 'different id')}"
            )
        right = drawn.shape == (count,) and drawn.dtype.kind in "iu" and len(np.unique(drawn)) == count
        if not right or drawn.min() not in clients or drawn.max() not in clients:
            raise ValueError(
                f"sampler: {sampler} drew {shortened(str(drawn.tolist()), 60)}; allowed: "
                f"{count_text(count, 'different id')} from {clients.start} to {clients.stop - 1}"
            )
        ids = set(drawn.tolist())
        if not isinstance(self.missing, Collection):
            raise ValueError(f"sampler: {sampler} misses {kind_of(self.missing)}; allowed: a tuple of ids that it drew")
        if any(isinstance(one, bool | np.bool_) or one not in ids for one in self.missing):
            raise ValueError(
                f"sampler: {sampler} misses {shortened(str(list(self.missing)), 60)}; allowed: ids that it drew"
            )


@dataclass(frozen=True)
class Sampler:
    """The uniform sampler, which draws without replacement, and the base of all others.

    A subclass is a frozen dataclass, whose fields are its options.
    """

    @classmethod
    def of(cls, config: RunConfig) -> Sampler:
        """Return the sampler that a config with every rule applied means."""
        return cls(**config.options_of("sampler", cls))

    def in_fleet(self, timeline: Timeline) -> Sampler:
        """Return the sampler of a run that has a fleet, whose timeline says how fast, charged and tired clients are."""
        return self

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
