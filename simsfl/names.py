"""Errors that name what was meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def unknown(field: str, value: str, allowed: Iterable[str], *, also: str = "") -> ValueError:
    """The error for a name that is none of those allowed, with the nearest of them."""
    allowed = list(allowed)
    near = difflib.get_close_matches(value.lower(), [name.lower() for name in allowed], n=1, cutoff=0.5)
    hint = f" (did you mean {next(name for name in allowed if name.lower() == near[0])}?)" if near else ""
    choices = ", ".join(allowed) + (f", or {also}" if also else "")
    return ValueError(f"{field}: {value!r} is not known{hint}; allowed: {choices}")
