"""Progress bars on stderr, which are shown where that is a terminal and removed in the end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn, track

_Item = TypeVar("_Item")


def watched(items: Sequence[_Item], text: str) -> Iterable[_Item]:
    """Return the items, with a progress bar while a loop goes through them.

    Args:
        items: what the loop goes through.
        text: label of the bar.
    """
    console = Console(stderr=True)
    return track(items, text, console=console, transient=True, disable=not console.is_terminal)


def bar(*more: ProgressColumn) -> Progress:
    """Return a progress bar with description, bar and elapsed time, whose tasks the caller updates in its context.

    Args:
        more: further columns, behind these.
    """
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    console = Console(stderr=True)
    return Progress(*columns, *more, console=console, transient=True, disable=not console.is_terminal)
