"""What programs print: a console that shows text of others as it is, and outlives its reader, disk and terminal."""

from __future__ import annotations

import codecs
import errno
import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, ClassVar

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from simsfl.system.messages import escaped, visible

log = logging.getLogger(__name__)

_ASCII = str.maketrans("▁▂▃▄▅▆▇█", ".:-=+*%#") | str.maketrans(
    {"±": "+-", "°": "deg ", "†": "*", "‡": "**", "…": "..."}
)
"""What stands for characters that a stream cannot encode; others are written as in a Python string."""


class Output(Console):
    """A console for stdout (or stderr), on which every text is shown as it is.

    Square brackets and colons mean nothing, and `visible` is applied to whatever would control the terminal. Rich would
    exit at once if the reader ended before the program, as in ``| head``, and lose the work that is under way; this
    console goes on in silence, and `ended` returns the exit code for it.

    Args:
        dashboard: whether a live view is wanted: "on" even if this is no terminal, "auto" on a terminal, or "off".
        options: further arguments of `rich.console.Console`.

    Attributes:
        redraws: whether this is a terminal that can draw over what it shows. FORCE_COLOR, which rich takes for a
            terminal, asks for colours alone.
        live: whether to show a live view.
        lost: the error because of which stdout is no longer written; None while it is.
    """

    lost: ClassVar[OSError | None] = None

    def __init__(self, dashboard: str = "off", **options: Any):
        stream = options.get("file") or (sys.stderr if options.get("stderr") else sys.stdout)
        terminal = dashboard == "on" or (stream is not None and stream.isatty())
        options["color_system"] = Console(force_terminal=terminal or None, **options).color_system
        super().__init__(force_terminal=terminal, markup=False, emoji=False, highlight=False, **options)
        self.redraws = terminal and not self.is_dumb_terminal
        self.live = self.redraws and dashboard != "off"
        if dashboard == "on" and not self.live:
            log.warning("dashboard: a terminal whose TERM is %s shows no live view, but lines", os.environ["TERM"])

    def say(self, *parts: str | tuple[str, str]) -> None:
        """Print one line, however long, of parts that may have a style: ``say("output ", ("runs/x", "bold"))``."""
        styled = [part if isinstance(part, tuple) else (part, "") for part in parts]
        self.print(Text.assemble(*((visible(text), style) for text, style in styled)), soft_wrap=True)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a string to be printed, such as a cell of a table, of which every line is `visible`."""
        return super().render_str(_visible_lines(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the segments of anything that is printed, of which every line is `visible`."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(_visible_lines(segment.text), segment.style)

    def on_broken_pipe(self) -> None:
        """Go on in silence, since the reader has ended."""
        self._lose(BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)))

    def _check_buffer(self) -> None:
        """Write what is printed; rich does not care for errors such as a full disk."""
        try:
            super()._check_buffer()
        except OSError as error:
            self._lose(error)

    def _lose(self, error: OSError) -> None:
        """Discard all output from now on; note why, unless a terminal was closed.

        A closed terminal sends SIGHUP, and a program that goes on after that is meant to (nohup).
        """
        self.quiet = True
        closed = error.errno == errno.EIO and self.is_terminal
        if not self.stderr and not closed:
            Output.lost = error
        with suppress(OSError), open(os.devnull, "wb") as nowhere:  # noqa: PTH123
            os.dup2(nowhere.fileno(), self.file.fileno())


def _visible_lines(text: str) -> str:
    """Return a text with its line breaks, of which every line is `visible`."""
    return text if text.isprintable() else "\n".join(map(visible, text.split("\n")))


def print_error(text: str) -> None:
    """Print an error on stderr, as one line."""
    Output(stderr=True).say(f"error: {text}")


def set_up() -> None:
    """Have stdout and stderr of this process take every character, and warnings be printed; called once by a program.

    What the encoding of a stream lacks, such as ``±`` in ASCII, is replaced.
    """
    codecs.register_error("legible", _legible)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # None where it was closed before the start
            stream.reconfigure(errors="legible")
    logging.basicConfig(handlers=[_Warnings()])
    warnings.showwarning = _show_warning


def ended(code: int) -> int:
    """Return the exit code of a program that ends with `code`, once all of its output is written.

    Where the program itself went well, it is 128 + SIGPIPE if the reader of stdout ended before the program, as other
    tools end, and 1 with a line on stderr if stdout could not be written, such as on a full disk.
    """
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        Output()._lose(error)
    if code or Output.lost is None:
        return code
    if isinstance(Output.lost, BrokenPipeError):
        return 128 + signal.SIGPIPE
    print_error(f"output: stdout cannot be written ({Output.lost.strerror}); allowed: a file or pipe with room")
    return 1


class Formatter(logging.Formatter):
    """A formatter of log files that shows text of others as `visible` does."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the message with what goes before it, on one line."""
        return visible(super().formatMessage(record))


def _show_warning(message: Warning | str, *where: Any) -> None:
    """Log a warning of Python or of a library, without the place in the code that causes it."""
    log.warning("%s", message)


class _Warnings(logging.Handler):
    """Prints what is logged on stderr, a line each."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        Output(stderr=True).say(f"{record.levelname.lower()}: {record.getMessage()}")


def _legible(error: UnicodeError) -> tuple[str, int]:
    """Return what replaces characters that cannot be encoded, and where to go on (an error handler of `codecs`)."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return escaped(error.object[error.start : error.end].translate(_ASCII)), error.end
