"""Absence: clients of a cohort that do not come in a round, or are too slow for some of its steps."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from simsfl.system.randomness import Purpose, numpy_generator


@dataclass(frozen=True)
class Absences:
    """Which clients of a cohort, by their positions, miss steps of a round."""

    missing: frozenset[int] = frozenset()
    """Positions of clients that do not come at all, and whose models are not averaged."""
    slow: frozenset[int] = frozenset()
    """Positions of clients that miss steps, but whose models are averaged."""
    factor: float = 1.0
    """How many times as long slow clients take for a step."""

    def in_step(self, s: int) -> frozenset[int]:
        """Return the positions of the clients that are absent from step `s`, counted from 0.

        A slow client is present in the steps in which it finishes one of its own.

        >>> [sorted(Absences(frozenset({0}), frozenset({3}), factor=2.0).in_step(s)) for s in range(4)]
        [[0, 3], [0], [0, 3], [0]]
        """
        finishes = int((s + 1) / self.factor) > int(s / self.factor)
        return self.missing if finishes else self.missing | self.slow


@dataclass(frozen=True)
class Reliability:
    """How likely clients are to miss a round, or steps of it."""

    dropout: float = 0.0
    """Probability that a client does not come in a round."""
    straggler: float = 0.0
    """Probability that a client that comes is slow in a round."""
    straggler_factor: float = 2.0
    """How many times as long a slow client takes for a step."""

    def draw(self, cohort: Sequence[int], missing: Collection[int], seed: int, round_index: int) -> Absences:
        """Draw the absences of a round; each client's depend on (seed, round, client id) alone.

        At least one client comes and is not slow: if need be the first one of the cohort that could come.

        Args:
            cohort: ids of the cohort's clients.
            missing: ids of those that do not come anyway.
            seed: seed of the run.
            round_index: the round, counted from 0.
        """
        if not (missing or self.dropout or self.straggler):
            return Absences()
        away, slow = set(), set()
        for position, client in enumerate(cohort):
            lost, late = numpy_generator(seed, Purpose.ABSENCE, round_index, client).random(2)
            if client in missing or lost < self.dropout:
                away.add(position)
            elif late < self.straggler:
                slow.add(position)
        if len(away) + len(slow) == len(cohort):
            one = {next((position for position, client in enumerate(cohort) if client not in missing), 0)}
            away, slow = away - one, slow - one
        return Absences(frozenset(away), frozenset(slow), self.straggler_factor)
