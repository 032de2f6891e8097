"""A terminal console that survives the end of its reader."""

from __future__ import annotations

import os
import sys

from rich.console import Console


class Output(Console):
    """A console whose reader may end before it, as in ``| head``.

    Rich would exit at once and lose the work that is under way; this console prints nothing more, and the work goes on.
    """

    deserted = False
    """Whether the reader has ended."""

    def is_live(self, dashboard: str) -> bool:
        """Return whether to show a live view: always for "on", on a terminal for "auto", never for "off"."""
        return dashboard == "on" or (dashboard == "auto" and self.is_terminal)

    def on_broken_pipe(self) -> None:
        """Discard all output from now on."""
        self.deserted = self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
