"""Times of repeated work, in memory of bounded size."""

from __future__ import annotations

import time
from array import array
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

_SAMPLE = 1 << 15
"""Largest number of times that are kept for one phase."""
_LATEST = 0.1
"""Weight of the newest time in the moving average."""


def smoothed(average: float | None, newest: float) -> float:
    """Return the exponential moving average after the `newest` time; `average` is None before the first."""
    return newest if average is None else average + _LATEST * (newest - average)


class Times:
    """Count, total and a bounded sample of the times of something that is done repeatedly.

    Attributes:
        count: number of times.
        total: sum of all times, in seconds.
        latest: the newest time, in seconds.
    """

    def __init__(self) -> None:
        self.count, self.total, self.latest = 0, 0.0, 0.0
        self._every, self._sample = 1, array("d")

    def add(self, seconds: float) -> None:
        """Add a time.

        When the sample is full, every other time in it is dropped, and from then on only half as many are sampled.
        """
        if self.count % self._every == 0:
            self._sample.append(seconds)
            if len(self._sample) == _SAMPLE:
                self._sample, self._every = self._sample[::2], 2 * self._every
        self.count, self.total, self.latest = self.count + 1, self.total + seconds, seconds

    def spread(self) -> dict[str, float]:
        """Return the count, and in seconds the mean, the median, and the 5th and 95th percentile of the sample."""
        at = np.percentile(self._sample, (5, 50, 95))
        return {
            "count": self.count,
            "mean": self.total / self.count,
            **dict(zip(("p5", "median", "p95"), at.tolist(), strict=True)),
        }


class Stopwatch:
    """Times of each phase, and of all phases together.

    Attributes:
        total: sum of the times of all phases, in seconds.
        phases: the times of each phase by name.
    """

    def __init__(self) -> None:
        self.total = 0.0
        self.phases: dict[str, Times] = defaultdict(Times)

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Return a context manager that times its block as a phase."""
        begin = time.perf_counter()
        yield
        took = time.perf_counter() - begin
        self.phases[phase].add(took)
        self.total += took

    def latest(self) -> dict[str, float]:
        """Return the latest time of each phase, in seconds."""
        phases = list(self.phases.items())  # a copy, since a panel calls this from another thread
        return {phase: times.latest for phase, times in phases}
