"""The runs that a report is about, as they are read from their directories."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simsfl.config.plugins import Plugin
from simsfl.runs.directory import RunDirectory
from simsfl.runs.metrics import History, read_records
from simsfl.runs.records import AttackRecord, Summary, read
from simsfl.ui.plot_text import literal
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

    @property
    def label(self) -> str:
        """Return the name as figures show it."""
        return literal(self.name)

    @property
    def spreads(self) -> list[Spread]:
        """Return the spread of the network's outputs at each evaluation."""
        return spreads(self.config, self.history)


def read_run(path: Path, name: str) -> Run:
    """Read the files of a run directory.

    Args:
        path: the run directory.
        name: the run's name in the report.

    Raises:
        ValueError: a file is missing or damaged.
    """
    directory = RunDirectory(path)
    content = directory.read_config()
    history, steps, losses = History(), [0], []
    if directory.metrics.exists():
        for record, _ in read_records(directory.metrics):
            history.feed(record)
            if record["event"] == "step":
                losses.append(record["loss"])
            if record["event"] == "round":
                steps.append(len(losses))
    if summary := directory.read_summary():
        directory.check_metrics(summary)
    attacks = {file.stem: read(file, AttackRecord) for file in sorted(directory.attacks.glob("*.json"))}
    config = content.config.to_dict()
    more = content.by_rule, losses, content.plugins
    return Run(name, path, config, content.reasons, history, steps, summary, attacks, *more)
