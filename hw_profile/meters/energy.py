"""Energy, integrated over readings of power."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from simsfl.system.messages import count_text

Readings = list[tuple[float, float]]
"""Time in seconds and watts of each reading, in order of time."""
Span = tuple[float, float]
"""Begin and end of a time span, in seconds on the same clock as the readings."""
_LEAST = 2
"""Smallest number of readings in a span."""
_GAP_SECONDS, _GAP_SHARE = 3.0, 0.05
"""Longest gap between readings that is accepted, in seconds and as a share of the span; the larger of both counts."""


@dataclass(frozen=True)
class Energy:
    """Power and energy of some work, compared with the idle machine before and after it."""

    seconds: float
    """Seconds that the work took."""
    mean_watts: float
    """Mean power during the work, in watts."""
    idle_before: float
    """Mean power of the idle machine before the work, in watts."""
    idle_after: float
    """Mean power of the idle machine after the work, in watts."""
    above_idle_watts: float
    """Mean power during the work minus the mean power of both idle spans, in watts."""
    joules: float
    """Energy of the machine during the work, in joules."""
    joules_above_idle: float
    """Energy during the work minus the energy of the idle machine in the same time, in joules."""
    uncertainty_joules_above_idle: float
    """Uncertainty of `joules_above_idle`, in joules.

    It is the square root of the sum of two squares: that of the meter's relative uncertainty times `joules`, and that
    of half the difference between both idle powers, times the seconds of the work."""
    readings: int
    """Number of readings during the work."""
    below_zero: int
    """Number of readings below 0 W from the idle machine before the work to that after it: a current that flows the
    wrong way."""


def energy(
    readings: Sequence[tuple[float, float]], before: Span, work: Span, after: Span, uncertainty: float
) -> Energy:
    """Return the energy of the work in a span of time, integrated by the trapezoid rule.

    Args:
        readings: time in seconds and watts of each reading.
        before: span in which the machine was idle before the work.
        work: span of the work.
        after: span in which the machine was idle after the work.
        uncertainty: relative uncertainty of the meter.

    Raises:
        ValueError: a span has too few readings, or too long a gap between them.
    """
    times, watts = np.array(readings, dtype=np.float64).reshape(-1, 2).T
    for name, (begin, end) in (("before", before), ("during", work), ("after", after)):
        count = int(((times >= begin) & (times <= end)).sum())
        if count < _LEAST:
            found = f"{count_text(count, 'reading')} {name} the work"
            raise ValueError(f"meter: {found}; allowed: {_LEAST} or more, with longer --seconds")
        inside = times[(times >= begin) & (times <= end)]
        gap, largest = float(np.diff([begin, *inside, end]).max()), max(_GAP_SECONDS, _GAP_SHARE * (end - begin))
        if gap > largest:
            raise ValueError(f"meter: no reading for {gap:.1f} s {name} the work; allowed: gaps of {largest:.1f} s")
    seconds = work[1] - work[0]
    joules = _integral(times, watts, work)
    idle_before, idle_after = (_integral(times, watts, span) / (span[1] - span[0]) for span in (before, after))
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
        below_zero=int(((times >= before[0]) & (times <= after[1]) & (watts < 0)).sum()),
    )


def _integral(times: np.ndarray, watts: np.ndarray, span: Span) -> float:
    """Return the joules in a span; the power at its ends is interpolated."""
    inside = (times > span[0]) & (times < span[1])
    x = np.concatenate([[span[0]], times[inside], [span[1]]])
    y = np.concatenate([[np.interp(span[0], times, watts)], watts[inside], [np.interp(span[1], times, watts)]])
    return float(((y[1:] + y[:-1]) / 2 * np.diff(x)).sum())
