"""Callbacks: code of others that follows a run's records, and may add figures to them.

>>> from simsfl.runs.metrics import StepRecord
>>> class Doubled(Callback):
...     def on_record(self, record):
...         return {"doubled": 2 * record.loss} if record.event == "step" else None
>>> with_added([Doubled()], StepRecord(round=1, step=1, loss=1.5, contrast_top1=0.0)).added
{'doubled': 3.0}
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from simsfl.config import RunConfig
from simsfl.runs.metrics import Added, OneRecord, Record
from simsfl.system.messages import kind_of

__all__ = ["Callback"]

if TYPE_CHECKING:
    from simsfl.simulation import Simulation

_ADDED = "allowed: a dict of finite numbers, texts, booleans and None by name, or None"
"""What a callback may add to a record, as the end of an error."""


class Callback:
    """The base class of callbacks, whose methods do nothing.

    A subclass that is a dataclass has its fields as options. Steps on CUDA are still recorded and replayed, because a
    callback gets their records afterwards. What it keeps in itself is gone when a run is resumed; what it has added to
    records is in ``metrics.jsonl``.
    """

    @classmethod
    def of(cls, config: RunConfig) -> Callback:
        """Return the callback that a config with every rule applied means."""
        return cls(**config.options_of("callback", cls))

    def on_start(self, simulation: Simulation) -> None:
        """React to the beginning of training, or to its going on after the run was loaded."""

    def on_record(self, record: Record) -> Mapping[str, Added] | None:
        """React to a record, in the order of ``metrics.jsonl``; return figures to add to it, by name, or None.

        `simsfl.runs.metrics` has their kinds: steps, averagings, absences, evaluations, rounds, what a fleet does in
        them, and probes; it is not told of changed plugins. Figures are finite numbers, texts, booleans or None, which
        the seed has to determine if a resumed run is to end as one that was not.
        """
        return None

    def on_checkpoint(self, path: Path) -> None:
        """React to a checkpoint that has been written into the run directory `path` since training began."""


def checked(callbacks: Iterable[object]) -> list[Callback]:
    """Return callbacks that were given in Python as a list; raise a ValueError if one of them is none."""
    allowed = "allowed: a list of objects of subclasses of simsfl.extend.Callback"
    if not isinstance(callbacks, Iterable):
        raise ValueError(f"callbacks: {kind_of(callbacks)} is no list; {allowed}")
    found: list[Callback] = []
    for one in callbacks:
        if isinstance(one, type):
            raise ValueError(f"callbacks: the class {one.__name__} is no object; {allowed}, such as {one.__name__}()")
        if not isinstance(one, Callback):
            raise ValueError(f"callbacks: {kind_of(one)} is no Callback; {allowed}")
        found.append(one)
    return found


def with_added(callbacks: Iterable[Callback], record: OneRecord) -> OneRecord:
    """Hand a record to callbacks; return it with what they add.

    Raises:
        ValueError: a callback adds something other than figures, or without a name.
    """
    added = dict(record.added)
    for callback in callbacks:
        own = callback.on_record(record)
        if not isinstance(own, Mapping | None):
            raise ValueError(f"callback: on_record of {type(callback).__name__} returns {kind_of(own)}; {_ADDED}")
        for name, value in (own or {}).items():
            figure = value.item() if isinstance(value, np.generic) else value
            right = isinstance(figure, bool | int | float | str | None) and isinstance(name, str)
            if not right or (isinstance(figure, float) and not math.isfinite(figure)):
                raise ValueError(f"callback: {type(callback).__name__} adds {name!r} = {value!r}; {_ADDED}")
            added[name] = figure
    return replace(record, added=added) if added != record.added else record
