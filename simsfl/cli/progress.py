"""A progress bar for long loops."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import track

_Item = TypeVar("_Item")


def watched(items: Sequence[_Item], text: str) -> Iterable[_Item]:
    """Return the items, with a progress bar on stderr while a loop goes through them, if that is a terminal.

    Args:
        items: what the loop goes through.
        text: label of the bar.
    """
    console = Console(stderr=True)
    return track(items, text, console=console, transient=True, disable=not console.is_terminal)
