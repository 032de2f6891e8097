"""Words for people: errors that name what was meant, counts that read well."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def unknown(field: str, value: str, names: Iterable[str], *, allowed: str = "", also: str = "") -> ValueError:
    """The error for a name that is none of `names`, with the nearest of them.

    Args:
        allowed: what to say is allowed, where that is not the list of `names`.
        also: what is allowed besides.
    """
    names = list(names)
    near = difflib.get_close_matches(value.lower(), [name.lower() for name in names], n=1, cutoff=0.5)
    hint = f" (did you mean {next(name for name in names if name.lower() == near[0])}?)" if near else ""
    choices = (allowed or ", ".join(names)) + (f", or {also}" if also else "")
    return ValueError(f"{field}: {shortened(value)!r} is not known{hint}; allowed: {choices}")


def count_text(count: int, noun: str) -> str:
    """A count with its noun, such as "1 client" or "1,000 clients"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def shortened(value: object) -> str:
    """A value as an error shows it."""
    large = isinstance(value, int) and abs(value) >= 10**30
    text = f"a number of {value.bit_length()} bits" if large else str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
