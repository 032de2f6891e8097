"""Who could take part: times of day at which clients are available, and batteries that last."""

from __future__ import annotations

import numpy as np

from simsfl.config.fleet import Battery, Hourly, Timed
from simsfl.fleet.costs import Costs
from simsfl.samplers.availability import Times, read_times
from simsfl.system.randomness import Purpose, numpy_generator

HOUR = 3600.0
_DAY = 24 * HOUR
_PAUSE = HOUR / 4
"""Seconds between two looks at batteries that are being charged."""
_AFTER = 1e-6
"""Seconds after the beginning of a span at which it has begun, however the clock is rounded."""


class Readiness:
    """Who of a fleet's M clients could take part at some time.

    Args:
        costs: what the run takes the clients, by which group they are in.
        seed: seed of the run.

    Attributes:
        capacity: ``[M]`` joules that full batteries hold; infinite for mains power.
        first: ``[M]`` joules that they hold when the run begins.

    Raises:
        ValueError: a file of times cannot be read.
    """

    def __init__(self, costs: Costs, seed: int):
        self._groups, self._member, self._seed = costs.fleet.groups, costs.member, seed
        self._begin = costs.fleet.server.begins_at_hour * HOUR
        folder = costs.fleet.path.parent
        self._times: dict[str, Times] = {
            own.available.file: read_times(folder / own.available.file, f"fleet: group {own.name}: available: file")
            for own in self._groups
            if isinstance(own.available, Timed)
        }
        shares = numpy_generator(seed, Purpose.FLEET, 3).random(len(self._member))
        self.capacity, self._lowest = np.full(len(self._member), np.inf), np.zeros(len(self._member))
        self.first = self.capacity.copy()
        self._batteries: list[tuple[Battery, np.ndarray]] = []  # and who has them, [M] bool
        for index, own in enumerate(self._groups):
            if battery := own.battery:
                mine = self._member == index
                low, high = battery.begins_at if isinstance(battery.begins_at, list) else [battery.begins_at] * 2
                self.capacity[mine] = HOUR * battery.wh
                self.first[mine] = HOUR * battery.wh * (low + (high - low) * shares[mine])
                self._lowest[mine] = HOUR * battery.wh * battery.stops_below
                self._batteries.append((battery, mine))

    def ready(self, clock: float, joules: np.ndarray) -> np.ndarray:
        """Return who could take part in a round, ``[M]`` bool.

        Args:
            clock: seconds since the run began.
            joules: ``[M]`` what batteries hold.
        """
        found = joules >= self._lowest
        hour = int((self._begin + clock) // HOUR)
        chances: np.ndarray | None = None
        for index, own in enumerate(self._groups):
            if isinstance(own.available, Hourly):
                if chances is None:
                    chances = numpy_generator(self._seed, Purpose.FLEET, 4, hour).random(len(self._member))
                found &= (self._member != index) | (chances < own.available.hours[hour % 24])
            elif own.available:
                times = self._times[own.available.file]
                there = times.there(clock)[np.arange(len(self._member)) % times.lines]
                found &= (self._member != index) | there
        return found

    def next_look(self, clock: float) -> float:
        """Return the next time, in seconds since the run began, at which more clients may have become available.

        It is the beginning of an hour or of a span in a file, or the next look at batteries that are being charged.
        """
        ends = [clock + _PAUSE]
        if any(isinstance(own.available, Hourly) for own in self._groups):
            ends.append(HOUR * ((self._begin + clock) // HOUR + 1) - self._begin)
        begins = (times.next_begin(clock) + _AFTER for times in self._times.values())
        return max(min([*ends, *begins]), clock + _AFTER)

    def charged(self, joules: np.ndarray, begin: float, end: float) -> np.ndarray:
        """Return what batteries hold at the end of a span of time, ``[M]`` joules, if they had `joules` without it."""
        result = joules
        for battery, mine in self._batteries:
            begins, ends = battery.charge_hours or (0.0, 24.0)
            seconds = _within(self._begin + end, begins, ends) - _within(self._begin + begin, begins, ends)
            result = np.where(mine, result + battery.charge_watts * seconds, result)
        return np.clip(result, 0, self.capacity)


def _within(clock: float, begins: float, ends: float) -> float:
    """Return the seconds from midnight of the first day to some time that lie between two hours of each day.

    >>> [_within(3600 * hour, 22, 6) / 3600 for hour in (0, 1, 6, 12, 22, 23, 24, 25)]
    [0.0, 1.0, 6.0, 6.0, 6.0, 7.0, 8.0, 9.0]
    """
    days, rest = divmod(clock, _DAY)
    first, last = begins * HOUR, ends * HOUR
    if first <= last:
        return days * (last - first) + min(max(rest - first, 0), last - first)
    return days * (_DAY - first + last) + min(rest, last) + max(rest - first, 0)
