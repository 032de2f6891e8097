"""Errors of power meters, beyond a ValueError for a meter that a machine does not have."""

from __future__ import annotations


class Blocked(ValueError):
    """A meter that the machine has, or may have, cannot be used until the user does what the message says."""


class NotMeasuring(OSError):
    """A meter answers, but it is set, wired or broken so that what it shows is no measurement."""


class Clipped(OSError):
    """A reading is at or beyond the end of the meter's range.

    It counts more than a reading that merely failed: the mean of the other readings would be too low.
    """
