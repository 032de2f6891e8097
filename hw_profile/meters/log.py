"""A log that a USB meter wrote, aligned by its time stamps."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from datetime import datetime, timezone
from math import isfinite
from pathlib import Path

from simsfl.hw_profile.meters.energy import Readings, Span

NAMES = {
    "time": ("time", "timestamp", "date", "datetime", "date time", "unix", "epoch"),
    "power": ("power", "watt", "watts", "w", "mw", "p"),
    "voltage": ("voltage", "volt", "volts", "v", "mv", "u", "vbus"),
    "current": ("current", "ampere", "amperes", "amp", "amps", "a", "ma", "i", "ibus"),
}
"""What columns may be called, but for a unit behind it."""
UNITS = {"time": "m?s", "power": "m?w", "voltage": "m?v", "current": "m?a"}
"""What they may be in. Set apart from the name, for Ws and VA are no watts and volts."""
MILLI = {"mw", "mv", "ma"}
MILLISECONDS = 1e11
"""Unix seconds are less for another 3,000 years."""
STAMP = re.compile(r"(\d{4})[-/](\d\d)[-/](\d\d)[T ](\d\d:\d\d:\d\d)([.,]\d+)?\s*(Z|[+-]\d\d:?\d\d)?", re.IGNORECASE)
"""ISO 8601, also as `datetime.fromisoformat` of Python 3.10 does not read it."""


class Log:
    """Readings of a log, all at once; it is read when the work is over.

    Args:
        path: a file with a header line, its columns separated by commas, semicolons or tabs: a time (unix seconds or
            milliseconds, or ISO 8601; local time where it has no zone), and power, or voltage and current.
    """

    name, uncertainty, estimated = "csv", 0.01, False

    def __init__(self, path: str):
        if not path or not Path(path).is_file():
            raise ValueError(f"meter: there is no log {path or '(no name given)'}; allowed: csv:FILE")
        self.path = Path(path)
        self._read()  # what is wrong with it should be told before the work
        self.source = f"a USB meter's log, {self.path.name}, by time stamps (uncertainty assumed)"

    def readings(self, span: Span) -> Readings:
        """All of them.

        Raises:
            ValueError: it cannot be read, or has nothing of the `span`.
        """
        found = sorted(self._read())
        if not found or found[-1][0] < span[0] or found[0][0] > span[1]:
            own = f"is of {clock(found[0][0])} to {clock(found[-1][0])}" if found else "has no readings"
            raise ValueError(
                f"meter: {self.path} {own}, and the run was {clock(span[0])} to {clock(span[1])}; allowed: a log of "
                "that time, with both clocks right"
            )
        return found

    def _read(self) -> Readings:
        try:
            return self._rows()
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"meter: {self.path} cannot be read ({error}); allowed: a CSV file") from error

    def _rows(self) -> Readings:
        with self.path.open(encoding="utf-8-sig", newline="") as file:
            lines = file.read().splitlines()
        separator = max(",;\t", key=lines[0].count) if lines else ","
        header, *rows = csv.reader(lines or [""], delimiter=separator)
        columns = {kind: column(header, kind) for kind in NAMES}
        wanted = ["power"] if columns["power"] else ["voltage", "current"]
        if not columns["time"] or not all(columns[kind] for kind in wanted):
            raise ValueError(
                f"meter: {self.path} has columns {', '.join(header) or '(none)'}; allowed: time, and power, or voltage "
                "and current"
            )
        found = []
        for number, row in enumerate(rows, start=2):
            try:
                if len(row) > len(header):
                    raise ValueError(f"{len(row)} fields under {len(header)} names")
                watts = 1.0
                for kind in wanted:
                    index, factor = columns[kind]
                    watts *= factor * decimal(row[index])
                found.append((seconds(row[columns["time"][0]]), watts))
            except (ValueError, IndexError) as error:
                if row:
                    raise ValueError(
                        f"meter: {self.path}, line {number}: {error}; allowed: numbers, and unix or ISO 8601 times"
                    ) from error
        return found


def column(header: Sequence[str], kind: str) -> tuple[int, float] | None:
    """The first that is called such, and what makes its numbers watts, volts or amperes."""
    for index, title in enumerate(header):
        match = re.fullmatch(rf"([a-z ]+?)(?:\s*[\[(/_ ]\s*({UNITS[kind]})\s*[\])]?)?", title.strip().lower())
        if match and match[1] in NAMES[kind]:
            return index, 1e-3 if MILLI & set(match.groups()) else 1.0
    return None


def decimal(text: str) -> float:
    """A number, with a point or a comma."""
    value = float(text.strip().replace(",", "."))
    if not isfinite(value):
        raise ValueError(f"{text!r} is no reading")
    return value


def seconds(text: str) -> float:
    """Unix seconds of a time."""
    text = text.strip()
    if re.fullmatch(r"\d{1,20}([.,]\d+)?", text):
        value = decimal(text)
        while value > MILLISECONDS:  # or micro-, or nanoseconds
            value /= 1000
        return value
    found = STAMP.fullmatch(text)
    if not found:
        raise ValueError(f"{text!r} is no time")
    year, month, day, clock_time, fraction, zone = found.groups()
    moment = f"{year}-{month}-{day} {clock_time}{(zone or '').upper()}"
    whole = datetime.strptime(moment, "%Y-%m-%d %H:%M:%S" + ("%z" if zone else ""))
    return whole.timestamp() + decimal(fraction or "0")


def clock(time: float) -> str:
    """A time for people."""
    return datetime.fromtimestamp(time, timezone.utc).astimezone().strftime("%Y-%m-%d %H:%M:%S")
