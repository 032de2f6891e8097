"""The text of a meter's log as rows of cells: its encoding and its separator are decided once for the whole file."""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from simsfl.system.messages import count_text, shortened

_MARKS = {  # that of UTF-32 begins with that of UTF-16
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
"""Encodings by the byte order mark at the start of a file."""
_SEPARATORS = (",", ";", "\t", "|")
"""Characters that separate columns; where a header has none of them, blanks do."""
_BLANK = " "
_PREAMBLE = 50
"""Number of lines among which the header is looked for; some loggers begin with a description of the device."""
_HINT = re.compile(r'"?sep=(\\t|.)"?[,;\s]*', re.IGNORECASE)
"""Pattern of the line that tells a spreadsheet the separator."""
_STAMP = re.compile(
    r"(\d{4}[-/]\d\d?[-/]\d\d?)[ \t]+(\d\d?:\d\d:\d\d(?:[.,]\d+)?)(?:[ \t]+(Z|UTC|GMT|[+-]\d\d:?\d\d)(?!\S))?"
)
"""Pattern of a time with blanks in it."""


@dataclass(frozen=True)
class Table:
    """The rows of a log."""

    header: Sequence[str]
    """Names of the columns."""
    rows: Sequence[Sequence[str]]
    """Cells of each row, one for each name."""
    lines: Sequence[int]
    """Number of the line of each row, counted from 1."""


def decoded(data: bytes) -> str:
    """Return the text of a file in UTF-8, in UTF-16 or UTF-32 with a byte order mark, or in Windows-1252.

    A character of which the last bytes are missing at the end, because the logger is still writing, is left out.

    Raises:
        ValueError: the file has none of these encodings.
    """
    marked = next(((mark, name) for mark, name in _MARKS.items() if data.startswith(mark)), None)
    for name in [marked[1]] if marked else ["utf-8", "cp1252"]:
        with suppress(UnicodeDecodeError):
            return codecs.getincrementaldecoder(name)().decode(data[len(marked[0]) if marked else 0 :])
    raise ValueError("it is no text in UTF-8, UTF-16 with a byte order mark, or Windows-1252")


def table(text: str, is_header: Callable[[Sequence[str]], bool]) -> Table:
    """Return the rows below the header of a log.

    A last line without a line break is left out, because the logger may not have finished it. Empty rows, comments
    after ``#`` and repetitions of the header are left out, too.

    Args:
        text: content of the file.
        is_header: whether the cells of a line are the names of columns that a log needs.

    Raises:
        ValueError: there is no header, several separators fit it, or a row has another number of cells.
    """
    lines = _lines(text)
    above, separator, header = _header(lines, is_header)
    if separator == _BLANK:
        lines = _with_single_blanks(lines)
    rows, numbers = [], []
    for number, line in enumerate(lines[above:], start=above + 1):
        try:
            cells = _cells(line, separator)
        except csv.Error as error:
            raise ValueError(f"line {number}: {error}") from error
        if not any(cells) or cells[0].startswith("#") or _is_same(cells, header):
            continue
        if len(cells) < len(header) or any(cells[len(header) :]):
            raise ValueError(
                f"line {number}: {count_text(len(cells), 'field')} under {count_text(len(header), 'name')}"
            )
        rows.append(cells[: len(header)])
        numbers.append(number)
    return Table(header, rows, numbers)


def _lines(text: str) -> list[str]:
    """Return the finished lines of a text; raise a ValueError if one of them has a NUL character."""
    text = text.replace("\ufeff", "").rstrip("\0")  # marks of joined files, and space that the logger has reserved
    lines = re.split(r"\r\n|\r|\n", text)[:-1]
    for number, line in enumerate(lines, start=1):
        if "\0" in line:
            raise ValueError(f"line {number} has NUL bytes: it is damaged, or UTF-16 without a byte order mark")
    return lines


def _header(lines: Sequence[str], is_header: Callable[[Sequence[str]], bool]) -> tuple[int, str, list[str]]:
    """Return the number of lines up to the header, the separator, and the names of the columns.

    Raises:
        ValueError: there is no header, or several separators fit it.
    """
    separators, first = _SEPARATORS, []
    for number, line in enumerate(lines[:_PREAMBLE], start=1):
        hint = _HINT.fullmatch(line)
        if hint:
            separators = ("\t" if hint[1] == r"\t" else hint[1],)
            continue
        found = {separator: _names(line, separator) for separator in (*separators, _BLANK)}
        fitting = [separator for separator in separators if is_header(found[separator])]
        if not fitting and is_header(found[_BLANK]):
            fitting = [_BLANK]
        if len(fitting) > 1:
            raise ValueError(f"line {number}: the separator may be {' or '.join(map(repr, fitting))}")
        if fitting:
            return number, fitting[0], found[fitting[0]]
        if not first and line.strip():
            first = max((found[separator] for separator in separators), key=len)
    raise ValueError(f"it has columns {shortened(', '.join(first)) or '(none)'}")


def _names(line: str, separator: str) -> list[str]:
    """Return the names of the columns in a line, which plotting programs need as a comment after ``#``.

    Names that are empty at the end are left out: a spreadsheet writes separators for empty columns, too.
    """
    try:
        line = re.sub(r"^\s*#\s*", "", line)
        names = _cells(_with_single_blanks([line])[0] if separator == _BLANK else line, separator)
    except (csv.Error, ValueError):  # a quote that is not closed, or a separator that cannot be one
        return []
    return names[: max((count for count, name in enumerate(names, start=1) if name), default=0)]


def _with_single_blanks(lines: Sequence[str]) -> list[str]:
    """Return lines with one blank between columns, and none within a time or between a name and its unit."""
    text = re.sub(r"\b(date)[ \t]+(time)\b", r"\1_\2", "\n".join(lines), flags=re.IGNORECASE)
    text = re.sub(r"[ \t]+(?=[\[(])", "", text)
    text = _STAMP.sub(lambda found: f"{found[1]}T{found[2]}{found[3] or ''}", text)
    return [line.strip() for line in re.sub(r"[ \t]+", _BLANK, text).split("\n")]


def _cells(line: str, separator: str) -> list[str]:
    """Return the cells of a line without surrounding blanks; raise a `csv.Error` if a quote is not closed."""
    reader = csv.reader([line], delimiter=separator, skipinitialspace=True, strict=True)
    return [cell.strip() for cell in next(reader, [])]


def _is_same(cells: Sequence[str], header: Sequence[str]) -> bool:
    """Return whether a row is the header again, which a logger writes when it is started again."""
    return all(cell.casefold() == name.casefold() for cell, name in zip(cells, header, strict=False))
