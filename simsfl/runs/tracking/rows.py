"""What trackers get of the records of a run: figures by name, at the number of steps that the run had done."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from simsfl.runs.metrics import Added

_SUMMARY = "summary"
EVENTS = ("step", "sync", "evaluation", "fleet", "round", "probe", _SUMMARY)
"""Kinds of rows: those of records (`simsfl.runs.metrics`), and the row of ``summary.json``.

Absences and changes of plugins are lists without figures, and have no rows.
"""
_OVER_CLIENTS = ("mean", "worst_tenth", "std")
"""What the three numbers of `simsfl.runs.metrics.EvaluationRecord.clients_top1` are."""
_NO_FIGURES = ("event", "round", "step", "class_top1", "clients_top1")
"""Entries of records that are said otherwise, or are lists wherever they are not None."""
_MEASURED = (
    *("seconds", "client_steps_per_second", "images_per_second"),
    *("peak_memory_bytes", "client_flops_per_step"),
)
"""Entries of ``summary.json`` that no record has."""


@dataclass(frozen=True)
class Row:
    """The figures of one record."""

    number: int
    """Number of rows before it; the same whether or not the run was interrupted."""
    event: str
    """Its kind, one of `EVENTS`."""
    steps: int
    """Steps that the run had done: the horizontal axis of curves."""
    round: int
    """Round of the record, from 1; 0 for the untrained network."""
    figures: dict[str, Added]
    """Numbers, texts and booleans by name, with what callbacks have added."""

    def numbers(self) -> dict[str, float]:
        """Return the numbers among the figures by names such as ``step/loss`` and ``probe/linear/top1``.

        The names have letters, digits and ``_-. /`` alone, which all trackers take.

        >>> Row(7, "probe", 90, 3, {"kind": "semi-10%", "top1": 60.5, "features": "backbone"}).numbers()
        {'probe/semi-10/top1': 60.5}
        """
        begin = "/".join(filter(None, (self.event, str(self.figures.get("kind") or ""))))
        return {
            re.sub(r"[^\w.\- /]", "", f"{begin}/{name}", flags=re.ASCII): float(value)
            for name, value in self.figures.items()
            if isinstance(value, bool | int | float)
        }


class Rows:
    """Makes rows of the records of a run, which come in the order of ``metrics.jsonl``."""

    def __init__(self) -> None:
        self._number = self._steps = self._round = 0

    def of(self, record: Mapping[str, Any]) -> Row | None:
        """Return the row of a record, a dict of `simsfl.runs.metrics.to_dict`; None if such records have none.

        >>> Rows().of({"event": "step", "round": 1, "step": 1, "loss": 2.5, "added": {"mine": 3}}).figures
        {'loss': 2.5, 'mine': 3}
        """
        event = record["event"]
        if event not in EVENTS:
            return None
        self._steps += event == "step"
        self._round = record["round"]
        done = self._steps + (event == "sync")  # the record of an averaging comes before that of its step
        return self._next(event, done if self._round else 0, _figures(record))

    def last(self, summary: Mapping[str, Any]) -> Row:
        """Return the row of a finished run's ``summary.json``, of what no record has."""
        return self._next(_SUMMARY, self._steps, {name: summary[name] for name in _MEASURED})

    def _next(self, event: str, steps: int, figures: dict[str, Added]) -> Row:
        """Return the next row, with its number."""
        self._number += 1
        return Row(self._number - 1, event, steps, self._round, figures)


def _figures(record: Mapping[str, Any]) -> dict[str, Added]:
    """Return the figures of a record by name, without lists, such as accuracies by class or distances by client.

    Of a fleet's groups, the clients that were late or away are counted together.
    """
    over_clients = zip(_OVER_CLIENTS, record.get("clients_top1") or (), strict=False)
    own = {name: value for name, value in record.items() if isinstance(value, Added) and name not in _NO_FIGURES}
    own |= {f"clients_top1_{name}": value for name, value in over_clients}
    if record["event"] == "fleet":
        own |= {what: sum(group[what] for group in record["groups"].values()) for what in ("late", "away")}
    return own | {name: value for name, value in record.get("added", {}).items() if name not in own}
