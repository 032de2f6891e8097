"""Cells of a meter's log as numbers and times."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timedelta, timezone

import numpy as np

DECIMAL_SIGNS = (".", ",")
"""Characters that may separate whole digits from decimals; in a file, the other one may separate thousands."""
_LARGEST = 1e30
"""Larger numbers are neither times, in whatever unit, nor readings."""
_MILLISECONDS = 1e11
"""Larger numbers are not unix seconds but milliseconds or finer; seconds stay below it for 3,000 years."""
_STAMP = re.compile(
    r"(\d{4})[-/](\d\d?)[-/](\d\d?)[T ](\d\d?):(\d\d):(\d\d)([.,]\d+)?\s*(?:(Z|UTC|GMT)|([+-])(\d\d)(?::?(\d\d))?)?",
    re.ASCII | re.IGNORECASE,
)
"""Pattern of an ISO 8601 time, including forms that `datetime.fromisoformat` of Python 3.10 does not read."""
_THOUSANDS = re.compile("(?<=\\d)[ '\u2019\u00a0\u2009\u202f](?=\\d{3}(?!\\d))", re.ASCII)
"""Pattern of the blanks and apostrophes that may separate thousands, whatever the decimal sign is."""


def _pattern(sign: str, other: str) -> re.Pattern[str]:
    """Return the pattern of a number with a decimal `sign`, in which the `other` character may separate thousands."""
    whole = rf"(?:\d+|[1-9]\d{{0,2}}(?:{other}\d{{3}})+)"
    return re.compile(
        rf"[+-]?(?:{whole}(?:{sign}\d*)?|{sign}\d+)(?:e[+-]?\d+)?".replace(".", r"\."), re.ASCII | re.IGNORECASE
    )


_NUMBERS = {".": _pattern(".", ","), ",": _pattern(",", ".")}
"""Patterns of numbers by their decimal sign."""


def numbers(texts: Sequence[str], sign: str) -> np.ndarray:
    """Return the numbers in some cells, ``[n]`` float64; NaN where a cell holds none with this decimal sign."""
    lines = _THOUSANDS.sub("", "\n".join(texts)).replace("\u2212", "-")  # a minus as typesetters write it
    cells = lines.split("\n")[: len(texts)]
    valid = [index for index, cell in enumerate(cells) if _NUMBERS[sign].fullmatch(cell)]
    (other,) = set(DECIMAL_SIGNS) - {sign}
    plain = "\n".join(cells[index] for index in valid).replace(other, "").replace(sign, ".")
    found = np.full(len(texts), np.nan)
    found[valid] = np.array(plain.split("\n") if valid else [], dtype=np.float64)
    found[np.abs(found) > _LARGEST] = np.nan
    return found


def times(texts: Sequence[str], sign: str, *, utc: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the unix seconds of the times in some cells, ``[n]`` float64, and those of their second meaning.

    The two differ for a local time that occurs twice, or not at all, because the clock is changed in that night. Both
    are NaN where a cell holds neither a unix time with this decimal sign nor an ISO 8601 time.

    Args:
        texts: the cells of the column.
        sign: the decimal sign of unix times.
        utc: whether ISO 8601 times without a zone are in UTC instead of local time.
    """
    stamps = [_STAMP.fullmatch(text) for text in texts]
    unix = numbers([text if stamp is None else "" for text, stamp in zip(texts, stamps, strict=True)], sign)
    unix[unix < 0] = np.nan
    while np.nanmax(unix, initial=0.0) > _MILLISECONDS:  # milli-, micro- or nanoseconds
        unix /= 1000
    both = np.array([unix, unix])
    for index, stamp in enumerate(stamps):
        if stamp:
            with suppress(ValueError, OverflowError, OSError):  # no such day, or one that the system does not know
                both[:, index] = _seconds(stamp, utc=utc)
    return both[0], both[1]


def _seconds(stamp: re.Match[str], *, utc: bool) -> tuple[float, float]:
    """Return the unix seconds of an ISO 8601 time, as its first and as its second occurrence.

    Raises:
        ValueError: there is no such time.
    """
    *parts, fraction, name, ahead, hours, minutes = stamp.groups()
    whole = datetime(*map(int, parts))
    if name or ahead or utc:
        offset = timedelta(hours=int(hours or 0), minutes=int(minutes or 0))
        whole = whole.replace(tzinfo=timezone(-offset if ahead == "-" else offset))
    after = float((fraction or "0").replace(",", "."))
    return whole.timestamp() + after, whole.replace(fold=1).timestamp() + after
