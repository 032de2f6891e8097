"""The standard streams of a program: every character can be written, and errors in writing them have an exit code.

Nothing here needs more than Python, so that a program can say which package is missing.
"""

from __future__ import annotations

import codecs
import logging
import os
import signal
import sys
import warnings
from contextlib import suppress
from typing import Any, TextIO

from simsfl.system.messages import escaped, visible

log = logging.getLogger(__name__)

_ASCII = str.maketrans("▁▂▃▄▅▆▇█", ".:-=+*%#") | str.maketrans(
    {"±": "+-", "°": "deg ", "†": "*", "‡": "**", "…": "..."}
)
"""What stands for characters that a stream cannot encode; others are written as in a Python string."""
_LOST: list[OSError] = []
"""The error because of which stdout is no longer written, if there was one."""


def set_up() -> None:
    """Have stdout and stderr of this process take every character, and have warnings printed, a line each.

    A program calls this once, at its start. What the encoding of a stream lacks, such as ``±`` in ASCII, is replaced.
    """
    codecs.register_error("legible", _legible)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not where it was closed before the start
            stream.reconfigure(errors="legible")
    logging.basicConfig(handlers=[_Printing()])
    warnings.showwarning = _log_warning


def ended(code: int) -> int:
    """Return the exit code of a program that ends with `code`, once all of its output is written.

    Where the program itself went well, it is 128 + SIGPIPE if the reader of stdout ended before the program, as other
    tools end, and 1 with a line on stderr if stdout could not be written, such as on a full disk.
    """
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        lose(error)
    error = lost()
    if code or error is None:
        return code
    if isinstance(error, BrokenPipeError):
        return 128 + signal.SIGPIPE
    print_error(f"output: stdout cannot be written ({error.strerror}); allowed: a file or pipe with room")
    return 1


def lost() -> OSError | None:
    """Return the error because of which stdout is no longer written; None while it is."""
    return _LOST[0] if _LOST else None


def lose(error: OSError) -> None:
    """Go on without stdout, because of an error in writing it, of which `ended` makes the exit code."""
    _LOST.append(error)
    discard(sys.stdout)


def discard(stream: TextIO) -> None:
    """Discard what is written to a stream from now on, and what it has not written yet."""
    with suppress(OSError), open(os.devnull, "wb") as nowhere:  # noqa: PTH123
        os.dup2(nowhere.fileno(), stream.fileno())


def print_error(text: str) -> None:
    """Print an error on stderr, as one line."""
    _print_line(f"error: {text}")


def print_lines(text: str) -> None:
    """Print a text of several lines on stderr."""
    for line in text.split("\n"):
        _print_line(line)


def _print_line(text: str) -> None:
    """Print a line on stderr, whatever is in the text; nothing if stderr cannot be written."""
    try:
        if sys.stderr is not None:
            print(visible(text), file=sys.stderr, flush=True)
    except OSError:
        discard(sys.stderr)


class Formatter(logging.Formatter):
    """A formatter of log files that shows text of others as `visible` does."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the message with what goes before it, on one line."""
        return visible(super().formatMessage(record))


class _Printing(logging.Handler):
    """Prints what is logged on stderr, a line each."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        _print_line(f"{record.levelname.lower()}: {record.getMessage()}")


def _log_warning(message: Warning | str, *where: Any) -> None:
    """Log a warning of Python or of a library, without the place in the code that causes it."""
    log.warning("%s", message)


def _legible(error: UnicodeError) -> tuple[str, int]:
    """Return what replaces characters that cannot be encoded, and where to go on (an error handler of `codecs`)."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return escaped(error.object[error.start : error.end].translate(_ASCII)), error.end
