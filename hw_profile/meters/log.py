"""Power from a log that a USB meter wrote, aligned with the work by its time stamps."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from simsfl.hw_profile.meters.energy import Readings, Span
from simsfl.hw_profile.meters.log_columns import DECIMAL_SIGNS, numbers, times
from simsfl.hw_profile.meters.log_text import Table, decoded, table

_NAMES = {
    "time": ("time", "timestamp", "date", "datetime", "date time", "unix", "epoch"),
    "power": ("power", "watt", "watts", "w", "mw", "p"),
    "voltage": ("voltage", "volt", "volts", "v", "mv", "u", "vbus"),
    "current": ("current", "ampere", "amperes", "amp", "amps", "a", "ma", "i", "ibus"),
}
"""Accepted names of columns, by what they hold; a unit may follow."""
_UNITS = {"time": "[mun]?s|utc|gmt", "power": "m?w", "voltage": "m?v", "current": "m?a"}
"""Patterns of the accepted units; they are separate from the names because Ws and VA are not watts and volts."""
_MILLI = {"mw", "mv", "ma"}
_COMPUTER = 0.5, 100.0
"""Watts between which the median power of a computer is expected, where a log does not say what its commas mean."""
_OUT_OF_ORDER = 1.0
"""Largest number of seconds by which a line may be earlier than the one before; some loggers write several at once."""
_AROUND = 60.0
"""Seconds before and after a measurement in which the times of a log have to be beyond doubt."""
_ALLOWED = "columns of time, and power, or voltage and current, with numbers, and unix or ISO 8601 times"


@dataclass(frozen=True)
class _Title:
    """What the name of a column says."""

    index: int
    """Place of the column."""
    kind: str
    """What the column holds: one of `_NAMES`."""
    name: str
    """The name without its unit, in lower case."""
    unit: str
    """The unit in lower case; may be empty."""
    factor: float
    """Factor that makes watts, volts or amperes of the numbers."""


@dataclass(frozen=True)
class _Columns:
    """Places of the columns that are needed."""

    time: Sequence[int]
    """Index of the column of times; or of those of the date and the time of day."""
    utc: bool
    """Whether the column's name says that its times are in UTC."""
    factors: dict[int, float]
    """Index of each column whose product is the power, and the factor that makes watts, volts or amperes of it."""


@dataclass(frozen=True)
class _Rows:
    """What a log holds, in the order of its lines, as arrays ``[n]``."""

    times: np.ndarray
    """Unix seconds."""
    second_times: np.ndarray
    """Unix seconds of the second meaning of a local time; usually equal to `times`."""
    watts: np.ndarray
    """Power in watts."""
    lines: Sequence[int]
    """Number of the line in the file."""


class Log:
    """Readings of a meter's log, all at once; the log is read after the work.

    Args:
        path: a text file with the names of its columns in a line of its own. Columns are separated by commas,
            semicolons, tabs or blanks: a time (unix seconds or finer, or ISO 8601, in local time where it has no zone),
            and power, or voltage and current.

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
        """Return all readings of the log, in order of time; readings of the same time are averaged.

        Args:
            span: the span in unix seconds that the log has to overlap.

        Raises:
            ValueError: the log cannot be read, has no readings in the span, or does not tell clearly which they are.
        """
        rows = self._read()
        self._check_times(rows, span)
        if not len(rows.times) or rows.times.max() < span[0] or rows.times.min() > span[1]:
            own = f"is of {_clock(rows.times.min())} to {_clock(rows.times.max())}" if len(rows.times) else "is empty"
            raise ValueError(
                f"meter: {self.path} {own}, and the run was {_clock(span[0])} to {_clock(span[1])}; allowed: a log of "
                "that time, with both clocks right"
            )
        moments, which, counts = np.unique(rows.times, return_inverse=True, return_counts=True)
        means = np.bincount(which, weights=rows.watts) / counts
        return list(zip(moments.tolist(), means.tolist(), strict=True))

    def _check_times(self, rows: _Rows, span: Span) -> None:
        """Raise a ValueError if the times around a span have two meanings, or do not run in one direction."""
        first, last = span[0] - _AROUND, span[1] + _AROUND
        near = [(own > first) & (own < last) for own in (rows.times, rows.second_times)]
        (places,) = np.any(near, axis=0).nonzero()
        doubtful = places[rows.times[places] != rows.second_times[places]]
        if len(doubtful):
            line, local = rows.lines[doubtful[0]], _clock(rows.times[doubtful[0]])
            what = f"line {line}: local time {local} is ambiguous, because the clock is changed that night"
            raise self._wrong(what, "unix times, or times with a zone")
        steps = np.diff(rows.times[places])
        if np.sign(steps).sum() < 0:  # the newest line is the first
            steps = -steps
        against = (steps < -_OUT_OF_ORDER).nonzero()[0]
        if len(against):
            line = rows.lines[places[against[0] + 1]]
            what = f"line {line}: its time is out of order, as if the clock had been set"
            raise self._wrong(what, "times in one order around the measurement")

    def _read(self) -> _Rows:
        """Return the content of the log; raise a ValueError if it cannot be read, or can be read in two ways."""
        try:
            found = table(decoded(self.path.read_bytes()), lambda names: _columns(names) is not None)
            return _rows(found, _columns(found.header))
        except OSError as error:
            raise ValueError(f"meter: {self.path} cannot be read ({error.strerror}); allowed: a text file") from error
        except ValueError as error:
            raise self._wrong(str(error)) from error

    def _wrong(self, what: str, allowed: str = _ALLOWED) -> ValueError:
        """Return the error for something in the log."""
        return ValueError(f"meter: {self.path}: {what}; allowed: {allowed}")


def _rows(found: Table, columns: _Columns) -> _Rows:
    """Return the times and the watts in a table.

    Raises:
        ValueError: a cell holds no number or no time, or it is not clear which character is the decimal sign.
    """
    moments = [" ".join(row[index] for index in columns.time) for row in found.rows]
    cells = {index: [row[index] for row in found.rows] for index in columns.factors}
    possible, read = [], []
    for sign in DECIMAL_SIGNS:
        both_times = times(moments, sign, utc=columns.utc)
        values = {index: numbers(texts, sign) for index, texts in cells.items()}
        watts = np.prod([factor * values[index] for index, factor in columns.factors.items()], axis=0)
        if np.isfinite([*both_times, watts]).all():
            possible.append(_Rows(*both_times, watts, found.lines))
        read.append([both_times[0], *values.values()])
    if not possible:
        raise _fault(found.lines, [moments, *cells.values()], read)
    return _decided(possible)


def _decided(possible: Sequence[_Rows]) -> _Rows:
    """Return the content of a log that can be read with one decimal sign, or with both.

    Where all its commas or points may separate thousands or decimals ("2,350"), the two powers differ by a factor of
    1,000 or more, so at most one is that of a computer.

    Raises:
        ValueError: neither is that of a computer.
    """
    first, last = possible[0], possible[-1]
    if np.array_equal(first.times, last.times) and np.array_equal(first.watts, last.watts):
        return first
    low, high = _COMPUTER
    likely = [rows for rows in possible if low <= np.median(np.abs(rows.watts)) <= high]
    if len(likely) != 1:
        raise ValueError("it is ambiguous whether its commas or points separate thousands or decimals")
    return likely[0]


def _fault(lines: Sequence[int], cells: Sequence[Sequence[str]], read: Sequence[Sequence[np.ndarray]]) -> ValueError:
    """Return the error for a cell that holds no number or time, or for two cells with different decimal signs.

    Args:
        lines: number of each line.
        cells: text of each line by column, the times first.
        read: the number of each line by decimal sign and column; NaN where the text holds none with this sign.
    """
    strange = np.isnan(read)  # [signs, columns, lines]
    if strange.all(axis=0).any():
        row, column = np.argwhere(strange.all(axis=0).T)[0]
        return ValueError(f"line {lines[row]}: {cells[column][row]!r} is no {'reading' if column else 'time'}")
    (row, column), (other_row, other_column) = (np.argwhere(own.T)[0] for own in strange)
    return ValueError(
        f"{cells[column][row]!r} in line {lines[row]} and {cells[other_column][other_row]!r} in line "
        f"{lines[other_row]} make the decimal sign ambiguous"
    )


def _columns(names: Sequence[str]) -> _Columns | None:
    """Return the places of the columns that are needed; None if they are not there.

    Raises:
        ValueError: several columns have the same quantity in the same unit.
    """
    titles = [title for index, name in enumerate(names) if (title := _title(index, name))]
    found = {kind: [title for title in titles if title.kind == kind] for kind in _NAMES}
    wanted = ["power"] if found["power"] else ["voltage", "current"]
    if not all(found[kind] for kind in ("time", *wanted)):
        return None
    for kind in wanted:
        first, *others = found[kind]
        alike = [title.index for title in others if title.factor == first.factor]
        if alike:
            raise ValueError(f"columns {first.index + 1} and {alike[0] + 1} both hold the {kind}, which is ambiguous")
    date, clock = (next((own for own in found["time"] if own.name == name), None) for name in ("date", "time"))
    time = [date, clock] if date and clock else found["time"][:1]
    return _Columns(
        time=[title.index for title in time],
        utc=any(title.unit in ("utc", "gmt") for title in time),
        factors={found[kind][0].index: found[kind][0].factor for kind in wanted},
    )


def _title(index: int, text: str) -> _Title | None:
    """Return what the name of a column says; None if it is not known."""
    text = text.strip().lower().replace("_", " ")
    for kind, names in _NAMES.items():
        match = re.fullmatch(rf"([a-z ]+?)(?:\s*[\[({{/,: -]\s*({_UNITS[kind]})\s*[\])}}]?)?", text)
        if match and match[1] in names:
            return _Title(index, kind, match[1], match[2] or "", 1e-3 if _MILLI & set(match.groups()) else 1.0)
    return None


def _clock(time: float) -> str:
    """Return a time for people, in the local time zone."""
    return datetime.fromtimestamp(time, timezone.utc).astimezone().strftime("%Y-%m-%d %H:%M:%S")
