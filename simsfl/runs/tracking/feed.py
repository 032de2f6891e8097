"""What hands the records of a run to its trackers, and goes on without those that fail."""

from __future__ import annotations

import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

from simsfl.config.catalogue import TRACKERS
from simsfl.runs.tracking import Tracked, Tracker
from simsfl.runs.tracking.rows import Row, Rows
from simsfl.system.messages import shortened

_SECONDS = 1.0
"""Seconds of records that are handed to trackers at once, so that fast steps do not wait for each of them."""
_MOST = 100_000
"""Most rows that are handed to trackers at once."""
log = logging.getLogger(__name__)


def check_installed(names: Iterable[str]) -> None:
    """Raise a ValueError if the package of one of the trackers `names` is not installed."""
    for name in names:
        package = TRACKERS[name].package
        if package and find_spec(package) is None:
            there = [other for other, kind in TRACKERS.items() if not kind.package or find_spec(kind.package)]
            raise ValueError(
                f"track: {package} is not installed; allowed: {', '.join(there)}, or pip install simsfl[track]"
            )


class Feed:
    """Hands records to trackers while its context is entered.

    A tracker that raises anything is warned of once, and gets nothing more. It never reaches the caller.

    Args:
        names: names of the trackers.
        run: the run that they follow.
        records: the records that the run has so far, as dicts of `simsfl.runs.metrics.to_dict`.
    """

    def __init__(self, names: Sequence[str], run: Tracked, records: Iterable[Mapping[str, Any]] = ()):
        self._names, self._run, self._records = names, run, records
        self._trackers: dict[str, Tracker] = {}
        self._rows, self._waiting, self._finished = Rows(), [], False

    def __enter__(self) -> Feed:
        for name in self._names:
            with self._sparing(name):
                self._trackers[name] = TRACKERS[name].code.load()(self._run)
        self._handed = time.monotonic()
        for record in self._records if self._trackers else ():
            self._add(self._rows.of(record))
        self._hand_over()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._hand_over()
        for name, tracker in list(self._trackers.items()):
            with self._sparing(name):
                tracker.close(finished=self._finished)

    @property
    def names(self) -> list[str]:
        """Return the names of the trackers that have not failed."""
        return list(self._trackers)

    def take(self, record: Mapping[str, Any]) -> None:
        """Take the next record, a dict of `simsfl.runs.metrics.to_dict`."""
        if self._trackers:
            self._add(self._rows.of(record))
            if time.monotonic() - self._handed >= _SECONDS:
                self._hand_over()

    def finish(self, summary: Mapping[str, Any], draw: Callable[[Path], Mapping[str, Path]]) -> None:
        """Take what a finished run has beside its records.

        Args:
            summary: the content of ``summary.json``.
            draw: function that draws the run's images into an empty directory, and returns the PNG files by name.
        """
        self._finished = True
        self._add(self._rows.last(summary))
        self._hand_over()
        if not any(tracker.images for tracker in self._trackers.values()):
            return
        with tempfile.TemporaryDirectory() as scratch:
            try:
                drawn = draw(Path(scratch))
            except Exception as error:  # whatever cannot be drawn, the run is finished
                log.warning("track: images could not be drawn (%s)", _reason(error))
                return
            for name, tracker in list(self._trackers.items()):
                with self._sparing(name):
                    for title, file in drawn.items():
                        tracker.image(title, file)

    def _add(self, row: Row | None) -> None:
        """Let a row wait to be handed over, if there is one."""
        if row:
            self._waiting.append(row)
        if len(self._waiting) == _MOST:
            self._hand_over()

    def _hand_over(self) -> None:
        """Hand the waiting rows to all trackers."""
        rows, self._waiting, self._handed = self._waiting, [], time.monotonic()
        for name, tracker in list(self._trackers.items()) if rows else ():
            with self._sparing(name):
                tracker.log(rows)

    @contextmanager
    def _sparing(self, name: str) -> Iterator[None]:
        """Keep what a tracker raises inside from the run: warn of it, and forget the tracker."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of libraries about each other
                yield
        except Exception as error:  # whatever other people's code raises
            log.warning("track: %s has failed (%s); the run goes on without it", name, _reason(error))
            if failed := self._trackers.pop(name, None):
                with suppress(Exception):
                    failed.close(finished=False)


def _reason(error: Exception) -> str:
    """Return an error of somebody's code in words, on one line."""
    return shortened(" ".join(str(error).split()) or type(error).__name__, 200)
