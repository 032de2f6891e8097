"""Power from a log that a USB meter wrote, aligned with the work by its time stamps."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from datetime import datetime, timezone
from math import isfinite
from pathlib import Path

from simsfl.hw_profile.meters.energy import Readings, Span

_NAMES = {
    "time": ("time", "timestamp", "date", "datetime", "date time", "unix", "epoch"),
    "power": ("power", "watt", "watts", "w", "mw", "p"),
    "voltage": ("voltage", "volt", "volts", "v", "mv", "u", "vbus"),
    "current": ("current", "ampere", "amperes", "amp", "amps", "a", "ma", "i", "ibus"),
}
"""Accepted names of columns, by what they hold; a unit may follow."""
_UNITS = {"time": "m?s", "power": "m?w", "voltage": "m?v", "current": "m?a"}
"""Patterns of the accepted units; they are separate from the names because Ws and VA are not watts and volts."""
_MILLI = {"mw", "mv", "ma"}
_MILLISECONDS = 1e11
"""Larger numbers are not unix seconds but milliseconds or finer; seconds stay below it for 3,000 years."""
_STAMP = re.compile(r"(\d{4})[-/](\d\d)[-/](\d\d)[T ](\d\d:\d\d:\d\d)([.,]\d+)?\s*(Z|[+-]\d\d:?\d\d)?", re.IGNORECASE)
"""Pattern of an ISO 8601 time, including forms that `datetime.fromisoformat` of Python 3.10 does not read."""


class Log:
    """Readings of a meter's log, all at once; the log is read after the work.

    Args:
        path: a text file with a header line and columns separated by commas, semicolons or tabs: a time (unix seconds
            or milliseconds, or ISO 8601, in local time where it has no zone), and power, or voltage and current.

    Raises:
        ValueError: the file does not exist, or is not such a log.
    """

    name, uncertainty, estimated = "csv", 0.01, False

    def __init__(self, path: str):
        if not path or not Path(path).is_file():
            raise ValueError(f"meter: there is no log {path or '(no name given)'}; allowed: csv:FILE")
        self.path = Path(path)
        self._read()  # so that errors in the file show before the work
        self.source = f"a USB meter's log, {self.path.name}, by time stamps (uncertainty assumed)"

    def readings(self, span: Span) -> Readings:
        """Return all readings of the log, in order of time.

        Args:
            span: the span that the log has to overlap.

        Raises:
            ValueError: the log cannot be read, or has no readings in the span.
        """
        found = sorted(self._read())
        if not found or found[-1][0] < span[0] or found[0][0] > span[1]:
            own = f"is of {_clock(found[0][0])} to {_clock(found[-1][0])}" if found else "has no readings"
            raise ValueError(
                f"meter: {self.path} {own}, and the run was {_clock(span[0])} to {_clock(span[1])}; allowed: a log of "
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
        columns = {kind: _column(header, kind) for kind in _NAMES}
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
                    watts *= factor * _decimal(row[index])
                found.append((_seconds(row[columns["time"][0]]), watts))
            except (ValueError, IndexError) as error:
                if row:
                    raise ValueError(
                        f"meter: {self.path}, line {number}: {error}; allowed: numbers, and unix or ISO 8601 times"
                    ) from error
        return found


def _column(header: Sequence[str], kind: str) -> tuple[int, float] | None:
    """Return the index of the first column of a kind, and the factor that makes its numbers watts, volts or amperes.

    The result is None where no title matches.
    """
    for index, title in enumerate(header):
        match = re.fullmatch(rf"([a-z ]+?)(?:\s*[\[(/_ ]\s*({_UNITS[kind]})\s*[\])]?)?", title.strip().lower())
        if match and match[1] in _NAMES[kind]:
            return index, 1e-3 if _MILLI & set(match.groups()) else 1.0
    return None


def _decimal(text: str) -> float:
    """Return a number written with a point or a comma; raise a ValueError unless it is finite."""
    value = float(text.strip().replace(",", "."))
    if not isfinite(value):
        raise ValueError(f"{text!r} is no reading")
    return value


def _seconds(text: str) -> float:
    """Return the unix seconds of a time; raise a ValueError if it is neither a unix nor an ISO 8601 time."""
    text = text.strip()
    if re.fullmatch(r"\d{1,20}([.,]\d+)?", text):
        value = _decimal(text)
        while value > _MILLISECONDS:  # milli-, micro- or nanoseconds
            value /= 1000
        return value
    found = _STAMP.fullmatch(text)
    if not found:
        raise ValueError(f"{text!r} is no time")
    year, month, day, clock_time, fraction, zone = found.groups()
    moment = f"{year}-{month}-{day} {clock_time}{(zone or '').upper()}"
    whole = datetime.strptime(moment, "%Y-%m-%d %H:%M:%S" + ("%z" if zone else ""))
    return whole.timestamp() + _decimal(fraction or "0")


def _clock(time: float) -> str:
    """Return a time for people, in the local time zone."""
    return datetime.fromtimestamp(time, timezone.utc).astimezone().strftime("%Y-%m-%d %H:%M:%S")
