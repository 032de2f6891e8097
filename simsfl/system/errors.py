"""Errors that end a program with one line, because they are no mistake in the code."""

from __future__ import annotations

from simsfl.system.memory import is_out_of_memory


def is_foreseen(error: BaseException) -> bool:
    """Return whether an error says why a run cannot go on: for its settings, files, memory, or what it computes."""
    return isinstance(error, (ValueError, OSError, FloatingPointError)) or is_out_of_memory(error)
