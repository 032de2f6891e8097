"""Energy from readings of power."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Readings = list[tuple[float, float]]
"""Unix seconds and watts, in order."""
Span = tuple[float, float]
"""Begin and end, unix seconds."""
LEAST = 2
"""Readings that a span must have."""
GAP_SECONDS, GAP_SHARE = 3.0, 0.05
"""What a span may be without one: so long, or so much of it."""


@dataclass(frozen=True)
class Energy:
    """What some work took, beside the idle machine."""

    seconds: float
    mean_watts: float
    idle_before: float
    """Mean watts of the idle machine before the work, and `idle_after` it."""
    idle_after: float
    above_idle_watts: float
    joules: float
    joules_above_idle: float
    uncertainty_joules_above_idle: float
    """The meter's share of all joules, and half of what the idle machine differed before and after."""
    readings: int
    """During the work."""


def energy(
    readings: Sequence[tuple[float, float]], before: Span, work: Span, after: Span, uncertainty: float
) -> Energy:
    """Of the work in a span of time, by the trapezoid rule; the machine was idle in the spans `before` and `after`.

    Args:
        uncertainty: of the meter, relative.

    Raises:
        ValueError: there are not enough readings in a span.
    """
    times, watts = np.array(readings, dtype=np.float64).reshape(-1, 2).T
    for name, (begin, end) in (("before", before), ("during", work), ("after", after)):
        count = int(((times >= begin) & (times <= end)).sum())
        if count < LEAST:
            raise ValueError(f"meter: {count} readings {name} the work; allowed: {LEAST} or more, with --seconds")
        inside = times[(times >= begin) & (times <= end)]
        gap, largest = float(np.diff([begin, *inside, end]).max()), max(GAP_SECONDS, GAP_SHARE * (end - begin))
        if gap > largest:
            raise ValueError(f"meter: no reading for {gap:.1f} s {name} the work; allowed: gaps of {largest:.1f} s")
    seconds = work[1] - work[0]
    joules = integral(times, watts, work)
    idle_before, idle_after = (integral(times, watts, span) / (span[1] - span[0]) for span in (before, after))
    idle = (idle_before + idle_after) / 2
    drift = abs(idle_after - idle_before) / 2 * seconds
    return Energy(
        seconds=seconds,
        mean_watts=joules / seconds,
        idle_before=idle_before,
        idle_after=idle_after,
        above_idle_watts=joules / seconds - idle,
        joules=joules,
        joules_above_idle=joules - idle * seconds,
        uncertainty_joules_above_idle=float(np.hypot(uncertainty * joules, drift)),
        readings=int(((times >= work[0]) & (times <= work[1])).sum()),
    )


def integral(times: np.ndarray, watts: np.ndarray, span: Span) -> float:
    """Joules in a span; at its ends the power is interpolated."""
    inside = (times > span[0]) & (times < span[1])
    x = np.concatenate([[span[0]], times[inside], [span[1]]])
    y = np.concatenate([[np.interp(span[0], times, watts)], watts[inside], [np.interp(span[1], times, watts)]])
    return float(((y[1:] + y[:-1]) / 2 * np.diff(x)).sum())
