"""A meter that is read in the background while something runs, and the record of its readings."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol

from simsfl.hw_profile.meters.energy import Readings, Span
from simsfl.hw_profile.meters.errors import Clipped

SECONDS = 0.1
"""Seconds between two readings."""


class Meter(Protocol):
    """A device, counter or model that power is read from."""

    name: str
    """Name of the meter, such as ``rapl``."""
    source: str
    """What is measured, where and how, in words for people."""
    uncertainty: float
    """Relative uncertainty of a reading; where the source does not state one, an assumed value."""
    estimated: bool
    """Whether the readings come from a model instead of a measurement of the machine."""

    def watts(self) -> float:
        """Return the power in watts: the present one, or the mean since the last call.

        Raises:
            OSError: the meter cannot be read at the moment, or its data sheet calls the reading invalid.
            Clipped: the power is beyond the range of the meter.
        """


@dataclass(frozen=True)
class Record:
    """What a meter showed during some work; all times are unix seconds."""

    readings: Readings = field(default_factory=list)
    """Time and watts of each reading."""
    clipped: Sequence[tuple[float, str]] = ()
    """Time and error text of each reading that was beyond the range of the meter."""
    failures: int = 0
    """Number of readings that failed, the clipped ones included."""
    last_error: str = ""
    """Text of the latest failure."""
    epoch: float = 0.0
    """Unix time at which the monotonic clock was 0, by the time of day at the end of the work."""
    clock_moved: float = 0.0
    """Seconds by which the time of day of this machine was set during the work, for example by NTP."""

    def in_unix(self, span: Span) -> Span:
        """Return the unix seconds of a span that was taken on the monotonic clock."""
        return span[0] + self.epoch, span[1] + self.epoch


class Sampler:
    """Reads a meter repeatedly in a background thread while the context is entered.

    All times are those of `time.monotonic`, which does not jump when the time of day is set.

    Args:
        meter: the meter to read; None to call `also` only.
        also: called before each reading, for example to read the temperature.

    Attributes:
        readings: monotonic seconds and watts of each reading.
        clipped: monotonic seconds and error text of each reading that was beyond the range of the meter.
        failures: number of readings that failed.
        last_error: text of the latest failure.
    """

    def __init__(self, meter: Meter | None, also: Callable[[], None] = lambda: None):
        self.meter, self._also = meter, also
        self.readings: Readings = []
        self.clipped: list[tuple[float, str]] = []
        self.failures, self.last_error = 0, ""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Sampler:
        self._first_epoch = time.time() - time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def _read(self) -> None:
        while not self._over.wait(SECONDS):
            now = time.monotonic()
            try:
                self._also()
                if self.meter:
                    watts = self.meter.watts()
                    if not math.isfinite(watts):
                        raise OSError(f"{watts} W is no reading")
                    self.readings.append((now, watts))
            except Exception as error:  # of any kind: the next reading may succeed
                self.failures, self.last_error = self.failures + 1, str(error)
                if isinstance(error, Clipped):
                    self.clipped.append((now, str(error)))

    @property
    def latest(self) -> Sequence[float]:
        """Return the latest readings in watts, 60 at most."""
        return [watts for _, watts in self.readings[-60:]]

    def record(self) -> Record:
        """Return what was read, in unix seconds by the present time of day."""
        epoch = time.time() - time.monotonic()
        return Record(
            readings=[(at + epoch, watts) for at, watts in self.readings],
            clipped=[(at + epoch, text) for at, text in self.clipped],
            failures=self.failures,
            last_error=self.last_error,
            epoch=epoch,
            clock_moved=epoch - self._first_epoch,
        )
