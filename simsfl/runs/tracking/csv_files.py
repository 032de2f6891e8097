"""Tables of a run's records, which every program can read."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import IO, Any

from simsfl.runs.tracking import Tracked, Tracker
from simsfl.runs.tracking.rows import EVENTS, Row

_FIRST = ["steps", "round"]
"""The columns that every table begins with."""


class Csv(Tracker):
    """Tables in RUN/csv, one for each kind of record: step.csv, round.csv, evaluation.csv and others."""

    images = False

    def __init__(self, run: Tracked):
        super().__init__(run)
        self._place, self._tables = run.path / "csv", {}
        self._place.mkdir(exist_ok=True)
        for path in map(self._path, EVENTS):
            if path.exists() and _columns(path)[:2] != _FIRST:
                raise FileExistsError(f"{path} was not written by simsfl")
        for path in map(self._path, EVENTS):
            path.unlink(missing_ok=True)

    def log(self, rows: Sequence[Row]) -> None:
        """Append the rows to their tables."""
        for event, own in groupby(sorted(rows, key=lambda row: row.event), key=lambda row: row.event):
            self._append(event, [{"steps": row.steps, "round": row.round, **row.figures} for row in own])

    def close(self, *, finished: bool) -> None:
        """Close the files."""
        for table in self._tables.values():
            table.close()

    def _path(self, event: str) -> Path:
        """Return the path of the table of a kind of rows."""
        return self._place / f"{event}.csv"

    def _append(self, event: str, lines: list[dict[str, Any]]) -> None:
        """Append lines to a table, which is written anew where some of them have a column that it lacks."""
        table = self._tables.get(event)
        known = table.columns if table else _FIRST
        columns = list(dict.fromkeys([*known, *(name for line in lines for name in line)]))
        if table is None or columns != known:
            if table:
                table.close()
                lines = [*_lines(self._path(event)), *lines]
            table = self._tables[event] = _Table(self._path(event), columns)
        table.append(lines)


class _Table:
    """A table that is open to append lines to; an earlier one at its path is replaced."""

    def __init__(self, path: Path, columns: list[str]):
        self.columns = columns
        self._file: IO[str] = path.open("w", newline="", encoding="utf-8")
        self._writer = csv.DictWriter(self._file, columns)
        self._writer.writeheader()

    def append(self, lines: list[dict[str, Any]]) -> None:
        """Append lines, and give them to the operating system."""
        self._writer.writerows(lines)
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _columns(path: Path) -> list[str]:
    """Return the columns of a table that is there."""
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        return next(csv.reader(file), [])


def _lines(path: Path) -> list[dict[str, str]]:
    """Return the lines of a table that is there."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
