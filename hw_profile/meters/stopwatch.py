"""Times of what is done over and over, in memory of bounded size."""

from __future__ import annotations

import time
from array import array
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

SAMPLE = 1 << 15
"""Times that are remembered of a phase, at most."""
LATEST = 0.1
"""Weight of the newest in an average of the latest."""


def smoothed(average: float | None, newest: float) -> float:
    """The average of the latest times, with the newest in it."""
    return newest if average is None else average + LATEST * (newest - average)


class Times:
    """Of something that is done over and over: how often, how long in all, and a sample of bounded size."""

    def __init__(self) -> None:
        self.count, self.total, self.latest = 0, 0.0, 0.0
        self._every, self._sample = 1, array("d")

    def add(self, seconds: float) -> None:
        """Once more. Where the sample is full, every other time is forgotten, and every other not taken any more."""
        if self.count % self._every == 0:
            self._sample.append(seconds)
            if len(self._sample) == SAMPLE:
                self._sample, self._every = self._sample[::2], 2 * self._every
        self.count, self.total, self.latest = self.count + 1, self.total + seconds, seconds

    def spread(self) -> dict[str, float]:
        """Mean, and percentiles that people ask for, in seconds."""
        at = np.percentile(self._sample, (5, 50, 95))
        return {
            "count": self.count,
            "mean": self.total / self.count,
            **dict(zip(("p5", "median", "p95"), at.tolist(), strict=True)),
        }


class Stopwatch:
    """Times of each phase, and of all together."""

    def __init__(self) -> None:
        self.total = 0.0
        self.phases: dict[str, Times] = defaultdict(Times)

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Time the block."""
        begin = time.perf_counter()
        yield
        took = time.perf_counter() - begin
        self.phases[phase].add(took)
        self.total += took

    def latest(self) -> dict[str, float]:
        """The latest time of each phase that there is."""
        return {phase: times.latest for phase, times in list(self.phases.items())}  # a panel's thread may ask
