"""Progress bars on stderr, which are shown where that is a terminal and removed in the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from simsfl.system.console import Output
from simsfl.system.messages import visible

_Item = TypeVar("_Item")


def watched(items: Sequence[_Item], text: str) -> Iterator[_Item]:
    """Yield the items, with a progress bar while a loop goes through them.

    Args:
        items: what the loop goes through.
        text: label of the bar.
    """
    with bar(TaskProgressColumn(), TimeRemainingColumn()) as progress:
        yield from progress.track(items, description=visible(text))


def bar(*more: ProgressColumn) -> Progress:
    """Return a progress bar with description, bar and elapsed time, whose tasks the caller updates in its context.

    Args:
        more: further columns, behind these.
    """
    columns = TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn()
    console = Output(stderr=True)
    return Progress(*columns, *more, console=console, transient=True, disable=not console.redraws)
