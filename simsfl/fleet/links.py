"""Links: how long messages take, with rates that are constant, or that change as they were measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from simsfl.system.reading import text_of

BITS = 1e6 / 8
"""Bytes of a megabit."""
_SLOWEST, _FASTEST = 1e-9, 1e12
"""Mbit/s that a rate in a file may have, besides 0."""
_SHORTEST, _LONGEST = 1e-6, 1e12
"""Seconds that a rate holds at least, and the last second that a file may have."""


@dataclass(frozen=True)
class Trace:
    """A rate that changes with time, and repeats.

    Attributes:
        times: ``[P + 1]`` seconds at which it changes, from 0 on; the last one is when it repeats.
        rates: ``[P]`` bytes in a second from each of these times on.
    """

    times: np.ndarray
    rates: np.ndarray

    @property
    def mean(self) -> float:
        """Return the bytes in a second that pass on average."""
        return float((self.rates * np.diff(self.times)).sum() / self.times[-1])

    def seconds(self, size: np.ndarray, begin: np.ndarray, most: float = np.inf) -> np.ndarray:
        """Return the seconds ``[n]`` until messages have passed.

        Args:
            size: ``[n]`` their bytes, above 0.
            begin: ``[n]`` when they begin, in seconds of the trace, which may be past its end.
            most: bytes in a second that pass at most.
        """
        rates = np.minimum(self.rates, most)
        passed = np.concatenate([[0.0], np.cumsum(rates * np.diff(self.times))])  # bytes since the beginning
        period, whole = self.times[-1], passed[-1]
        phase = begin % period
        at = np.searchsorted(self.times, phase, side="right") - 1
        goal = passed[at] + rates[at] * (phase - self.times[at]) + size
        times = np.ceil(goal / whole) - 1  # that the trace ends before the messages have passed
        rest = goal - times * whole  # above 0, and at most a whole trace, but for rounding
        times, rest = np.where(rest > 0, times, times - 1), np.where(rest > 0, np.minimum(rest, whole), whole)
        last = np.clip(np.searchsorted(passed, rest, side="left") - 1, 0, len(rates) - 1)
        return times * period + self.times[last] + (rest - passed[last]) / rates[last] - phase


@dataclass(frozen=True)
class Links:
    """The links of n clients in one direction.

    Attributes:
        latency: ``[n]`` seconds that each message takes besides.
        rate: ``[n]`` bytes in a second, of those without a trace.
        most: bytes in a second that pass each of them at most.
        traces: traces, each with the positions ``[k]`` of clients that have it, and the seconds ``[k]`` of it at which
            the run begins for them.
    """

    latency: np.ndarray
    rate: np.ndarray
    most: float = np.inf
    traces: tuple[tuple[Trace, np.ndarray, np.ndarray], ...] = ()

    def seconds(self, size: np.ndarray, begin: np.ndarray) -> np.ndarray:
        """Return the seconds ``[n]`` until a message of each client has passed; those without bytes are not sent.

        Args:
            size: ``[n]`` bytes.
            begin: ``[n]`` seconds since the run began at which each message is sent.
        """
        taken = size / np.minimum(self.rate, self.most)
        for trace, who, offset in self.traces:
            taken[who] = trace.seconds(size[who], begin[who] + offset, self.most)
        return np.where(size > 0, self.latency + taken, 0.0)


def read_trace(path: Path) -> Trace:
    """Return the rates in a file of lines with two numbers: seconds, and Mbit/s from then on.

    Numbers are separated by blanks or a comma; lines that begin with ``#`` are left out. The last rate holds as long as
    those before it do on average.

    Raises:
        ValueError: the file cannot be read, or a line is something else, or times do not increase, or nothing passes.
    """
    try:
        lines = text_of(path).splitlines()
    except (OSError, UnicodeError) as error:
        raise ValueError(f"trace: {path} cannot be read ({error})") from error
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            second, rate = map(float, line.replace(",", " ").split())
            known = rate == 0 or _SLOWEST <= rate <= _FASTEST
            if not (known and abs(second) <= _LONGEST and (not found or second - found[-1][0] >= _SHORTEST)):
                raise ValueError
        except ValueError as error:
            raise ValueError(
                f"trace: line {number} of {path} is {line[:60]!r}; allowed: seconds, which increase, and Mbit/s, such "
                "as 1.0 12.5"
            ) from error
        found.append((second, rate))
    if len(found) < 2 or not any(rate for _, rate in found):
        raise ValueError(f"trace: {path} has nothing that passes; allowed: two lines or more, with rates above 0")
    seconds, rates = np.array(found).T
    seconds = seconds - seconds[0]
    return Trace(np.append(seconds, seconds[-1] * len(found) / (len(found) - 1)), rates * BITS)
