"""What programs print: a console that shows text of others as it is, and outlives its reader, disk and terminal."""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from simsfl.system.messages import visible
from simsfl.system.programs import pasted
from simsfl.system.streams import discard, lose, lost

log = logging.getLogger(__name__)


class Output(Console):
    """A console for stdout (or stderr), on which every text is shown as it is.

    Square brackets and colons mean nothing, and `visible` is applied to whatever would control the terminal. Rich would
    exit at once if the reader ended before the program, as in ``| head``, and lose the work that is under way; this
    console goes on in silence, and `simsfl.system.streams.ended` returns the exit code for it.

    Args:
        dashboard: whether a live view is wanted: "on" even if this is no terminal, "auto" on a terminal, or "off".
        options: further arguments of `rich.console.Console`.

    Attributes:
        redraws: whether this is a terminal that can draw over what it shows. FORCE_COLOR, which rich takes for a
            terminal, asks for colours alone.
        live: whether to show a live view.
    """

    def __init__(self, dashboard: str = "off", **options: Any):
        stream = options.get("file") or (sys.stderr if options.get("stderr") else sys.stdout)
        terminal = dashboard == "on" or (stream is not None and stream.isatty())
        options["color_system"] = Console(force_terminal=terminal or None, **options).color_system
        super().__init__(force_terminal=terminal, markup=False, emoji=False, **options)
        self.redraws = terminal and not self.is_dumb_terminal
        self.live = self.redraws and dashboard != "off"
        if dashboard == "on" and not self.live:
            log.warning("dashboard: a terminal whose TERM is %s shows no live view, but lines", os.environ["TERM"])

    @property
    def lost(self) -> OSError | None:
        """Return the error because of which stdout is no longer written; None while it is."""
        return lost()

    def say(self, *parts: str | tuple[str, str]) -> None:
        """Print a line of parts that may have a style: ``say("output ", ("runs/x", "bold"))``.

        A terminal that is not as wide would go on within a word, so there the line is broken between words, unless one
        of them has no room in a line: such as a path, which may be copied. Elsewhere it is one line, however long.
        """
        styled = [part if isinstance(part, tuple) else (part, "") for part in parts]
        line = Text.assemble(*((visible(text), style) for text, style in styled))
        has_room = all(cell_len(word) <= self.width for word in line.plain.split())
        self.print(line, soft_wrap=not (self.redraws and has_room))

    def say_whole(self, text: str) -> None:
        """Print a line into which nothing is inserted, whatever the width of the terminal, so that it can be pasted."""
        self.print(Text(visible(text)), soft_wrap=True)

    def say_command(self, why: tuple[str, str] | str, words: Sequence[str]) -> None:
        """Print what a command is for, and the command on a line of its own, which can be pasted as a whole.

        Args:
            why: the line before it, which may have a style.
            words: the words of the command, as a shell is to read them.
        """
        self.say(why)
        self.say_whole(pasted(words))

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a string to be printed, such as a cell of a table, of which every line is `visible`."""
        return super().render_str(_visible_lines(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the segments of anything that is printed, of which every line is `visible`."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(_visible_lines(segment.text), segment.style)

    def on_broken_pipe(self) -> None:
        """Go on in silence, since the reader has ended."""
        self._go_on_without(BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)))

    def _check_buffer(self) -> None:
        """Write what is printed; rich itself passes over no error but that of a broken pipe."""
        try:
            super()._check_buffer()
        except OSError as error:
            self._go_on_without(error)

    def _go_on_without(self, error: OSError) -> None:
        """Print nothing from now on, because of an error in writing.

        A terminal that is closed sends SIGHUP, and a program that goes on after that is meant to (nohup).
        """
        self.quiet = True
        if self.stderr or (error.errno == errno.EIO and self.is_terminal):
            discard(self.file)
        else:
            lose(error)


def _visible_lines(text: str) -> str:
    """Return a text with its line breaks, of which every line is `visible`."""
    return text if text.isprintable() else "\n".join(map(visible, text.split("\n")))
