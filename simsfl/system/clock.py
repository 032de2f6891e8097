"""Time per phase of training."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch.profiler import record_function

PHASES = ["data", "capture", "step", "client forward", "server", "attackers", "client backward", "sync", "evaluation"]
"""Names of the phases, in the order of a round. Only attacker-aware training (TAResSFL) has "attackers". Where a step
is recorded ("capture") and replayed as a whole ("step"), the phases within it cannot be timed separately."""


class PhaseClock:
    """A clock that adds up the seconds spent in each phase.

    On CUDA it records events in the stream, so that timing does not make the host wait; only `drain`, which reads the
    events, does. An active profiler shows the phases by name.

    Args:
        device: the device whose work is timed.
    """

    def __init__(self, device: torch.device):
        self._cuda = device.type == "cuda"
        self._seconds: dict[str, float] = defaultdict(float)
        self._pending: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Add the time that the block takes to `phase`."""
        with record_function(phase):
            yield from self._timed(phase)

    def _timed(self, phase: str) -> Iterator[None]:
        if self._cuda:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            yield
            end.record()
            self._pending.append((phase, start, end))
        else:
            begin = time.perf_counter()
            yield
            self._seconds[phase] += time.perf_counter() - begin

    def start_from(self, seconds: Mapping[str, float]) -> None:
        """Start from the seconds by phase that `seconds()` returned in an earlier session."""
        self._seconds.update(seconds)

    def drain(self) -> None:
        """Read all pending events; the host waits for the last of them."""
        for phase, start, end in self._pending:
            end.synchronize()
            self._seconds[phase] += start.elapsed_time(end) / 1000.0
        self._pending.clear()

    def seconds(self) -> dict[str, float]:
        """Return the seconds so far by phase, in the order of a round; phases that have not occurred are left out."""
        self.drain()
        return {phase: self._seconds[phase] for phase in PHASES if phase in self._seconds}
