"""Numbers, times and amounts as people read them."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, stdev


def bytes_text(count: float) -> str:
    """Format bytes with a decimal unit, as traffic is billed: ``1.5 kB`` for 1,500."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def time_text(seconds: float) -> str:
    """Format seconds as ``1:02:03`` or ``2:03``, and from 100 hours on as ``4 d 5 h``."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours > 99:
        return f"{hours // 24:,} d {hours % 24} h"
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def number(value: float | None, form: str = ".2f", unit: str = "") -> str:
    """Format a number with a format specification and a unit; return a dash for None."""
    return "-" if value is None else f"{value:{form}}{unit}"


def mean_text(values: Sequence[float], form: str = ".2f") -> str:
    """Format the mean of values, and their standard deviation if they are several; return a dash for none.

    >>> mean_text([1.0, 3.0]), mean_text([1.0]), mean_text([])
    ('2.00 ± 1.41', '1.00', '-')
    """
    if not values:
        return "-"
    return f"{mean(values):{form}}" + (f" ± {stdev(values):{form}}" if len(values) > 1 else "")
