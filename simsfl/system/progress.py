"""Progress on stderr: bars where that is a terminal, removed in the end, and a line now and then elsewhere."""

from __future__ import annotations

import time
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
_SECONDS = 30.0
"""Seconds between lines about what takes long, where there is no bar."""


def watched(items: Sequence[_Item], text: str) -> Iterator[_Item]:
    """Yield the items, with a progress bar while a loop goes through them, or a line now and then without a terminal.

    Args:
        items: what the loop goes through.
        text: label of the bar, or beginning of the lines.
    """
    console = Output(stderr=True)
    if not console.redraws:
        said = time.monotonic()
        for number, item in enumerate(items):
            if number and time.monotonic() - said >= _SECONDS:
                console.say(f"{text}: {number:,} of {len(items):,} done")
                said = time.monotonic()
            yield item
        return
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
