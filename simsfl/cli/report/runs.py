"""The runs that a report is about, as they are read from their directories."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from simsfl.config.plugins import Plugin
from simsfl.runs.directory import RunDirectory
from simsfl.runs.fleet_totals import FleetClients, read_clients
from simsfl.runs.history import History
from simsfl.runs.records import AttackRecord, Summary, read
from simsfl.runs.tail import Tail
from simsfl.ui.spread import Spread, spreads


@dataclass(frozen=True)
class Run:
    """What a report shows of a run, read from its run directory."""

    name: str
    """Name of the run, unique in the report."""
    path: Path
    """The run directory."""
    config: dict[str, Any]
    """Fields of the run's `RunConfig`."""
    reasons: dict[str, str]
    """Why a field of the config is what it is, by name; see `simsfl.setup.parts.Parts`."""
    history: History
    """The records so far."""
    steps: list[int]
    """Steps done at the end of each round, after a 0 for the start."""
    summary: Summary | None
    """Content of ``summary.json``; None where the run has not ended."""
    attacks: dict[str, AttackRecord]
    """Results that ``attack.py`` wrote, by decoder."""
    by_rule: Collection[str] = ()
    """Names of the fields of the config that rules have filled in."""
    losses: Sequence[float] = ()
    """Loss of each step."""
    plugins: Sequence[Plugin] = ()
    """Code from outside simsfl that the run began with."""
    contrast_top1: Sequence[float] = ()
    """Contrastive accuracy of each step, in percent."""
    fleet_clients: FleetClients | None = None
    """What each client has done in the fleet that the run has records of; None where that is not known."""

    @property
    def spreads(self) -> list[Spread]:
        """Return the spread of the network's outputs at each evaluation."""
        return spreads(self.config, self.history)


class RunReader:
    """Reads a run directory, again and again while the run goes on; records that were read are not read again.

    Args:
        path: the run directory.
        name: the run's name.
    """

    def __init__(self, path: Path, name: str):
        self.name, self.directory, self._sha256 = name, RunDirectory(path), ""

    def _start(self) -> None:
        """Forget what was read."""
        self._tail, self._history, self._steps = Tail(self.directory.metrics), History(), [0]
        self._losses: list[float] = []
        self._contrast_top1: list[float] = []

    def read(self) -> Run:
        """Return the run as it is now; what it shares with what was returned before has grown.

        Raises:
            ValueError: a file is missing or damaged.
        """
        directory, content = self.directory, self.directory.read_config()
        if content.sha256 != self._sha256 or self._tail.cut_back():
            self._start()
        self._sha256 = content.sha256
        for record in self._tail.records():
            self._history.feed(record)
            if record["event"] == "step":
                self._losses.append(record["loss"])
                self._contrast_top1.append(record["contrast_top1"])
            if record["event"] == "round":
                self._steps.append(len(self._losses))
        if summary := directory.read_summary():
            directory.check_metrics(summary)
        attacks = {file.stem: read(file, AttackRecord) for file in sorted(directory.attacks.glob("*.json"))}
        config = content.config.to_dict()
        told = _fleet_clients(directory.fleet_clients, self._history, config["clients"])
        more = content.by_rule, self._losses, content.plugins, self._contrast_top1, told
        read_ = self.name, directory.path, config, content.reasons, self._history, self._steps, summary, attacks
        return Run(*read_, *more)


def _fleet_clients(path: Path, history: History, count: int) -> FleetClients | None:
    """Return what the clients of a run have done in its fleet, if the file at `path` is of the records in `history`.

    It is of others while a run that was ended goes on for more rounds.

    Args:
        path: the table of clients, which may be missing.
        history: the records of the run.
        count: number of its clients.
    """
    if not history.fleet or not path.is_file():
        return None
    clients = read_clients(path)
    return clients if clients.is_of(history.fleet, count) else None


def read_run(path: Path, name: str) -> Run:
    """Read the files of a run directory.

    Args:
        path: the run directory.
        name: the run's name in the report.

    Raises:
        ValueError: a file is missing or damaged.
    """
    return RunReader(path, name).read()


def unique_names(paths: Sequence[Path]) -> list[str]:
    """Return the last part of each path, numbered where it is not unique: ``run-1``, ``run-2``.

    Parts that differ only in how Unicode composes their letters look the same, so they count as equal.

    >>> unique_names([Path("a/run"), Path("b/run"), Path("c/run-1")])
    ['run-2', 'run-3', 'run-1']
    """
    last = [unicodedata.normalize("NFC", path.resolve().name) for path in paths]
    names = [name if last.count(name) == 1 else "" for name in last]
    for position, name in enumerate(last):
        if not names[position]:
            names[position] = next(numbered for i in count(1) if (numbered := f"{name}-{i}") not in names)
    return names
