"""A console whose reader may go away."""

from __future__ import annotations

import os
import sys

from rich.console import Console


class Output(Console):
    """A console whose reader may go away, as in ``| head``; rich would exit at once, and lose what is under way."""

    deserted = False
    """Whether it has gone."""

    def is_live(self, dashboard: str) -> bool:
        """Whether there is to be a live view, as ``--dashboard`` asks."""
        return dashboard == "on" or (dashboard == "auto" and self.is_terminal)

    def on_broken_pipe(self) -> None:
        """Print nowhere from now on."""
        self.deserted = self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
