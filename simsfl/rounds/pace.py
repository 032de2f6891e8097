"""How fast steps go, and when their losses are read."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator

import torch

from simsfl.config import RunConfig
from simsfl.rounds.progress import Progress
from simsfl.runs.metrics import AbsenceRecord, StepRecord, SyncRecord
from simsfl.system.clock import PhaseClock

_RECENT = 50
"""Number of latest steps, or groups of steps between two readings, that `Pace.step_seconds` averages."""
_FLUSH_SECONDS = 0.5
"""Seconds that losses may stay on a GPU before they are read, which makes the host wait."""

_TOGETHER = 10
"""Steps after which several ranks read their losses."""


class Pace:
    """Reads the losses of finished steps, after each step on a CPU and now and then on a GPU, and times the steps.

    Args:
        device: device that steps are computed on.
        clock: the clock of the simulation, whose events are read with the losses.
        alone: whether this is the only rank; several read their losses after the same steps.

    Attributes:
        flush_seconds: seconds that losses may stay on a GPU before they are read; 0 to time single steps.
    """

    def __init__(self, device: torch.device, clock: PhaseClock, *, alone: bool = True):
        self._waits, self._clock, self._alone = device.type != "cpu", clock, alone
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self.flush_seconds = _FLUSH_SECONDS

    @property
    def step_seconds(self) -> float | None:
        """Return the seconds per step, averaged over the latest steps; None before the first of this process."""
        return sum(self._recent) / len(self._recent) if self._recent else None

    def begin(self, progress: Progress) -> None:
        """Begin to time the steps that come after the finished ones."""
        self._begun, self._read = time.perf_counter(), progress.step_index

    def read(self, progress: Progress, config: RunConfig) -> Iterator[StepRecord | SyncRecord | AbsenceRecord]:
        """Yield the records of the steps since the last reading if it is time to read; count the time they have taken.

        The time that the caller spends on the records does not count.

        Args:
            progress: how far the run has come.
            config: config of the run, with every rule applied.

        Raises:
            NonFiniteLossError: the loss of a step was not finite.
        """
        due = time.perf_counter() - self._begun > self.flush_seconds
        if not self._alone:
            due = progress.step_index % _TOGETHER == 0
        if self._waits and not due and not progress.round_is_over:
            return
        records = list(progress.records(self._read, config))
        self._clock.drain()
        seconds = time.perf_counter() - self._begun
        progress.seconds += seconds
        self._recent.append(seconds / (progress.step_index - self._read))
        yield from records
        self.begin(progress)
