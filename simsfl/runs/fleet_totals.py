"""What the records of a fleet's rounds add up to, and the table of what each of its clients has done."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from simsfl.system.messages import shortened
from simsfl.system.reading import open_regular

_COUNTS = ("drawn", "came", "late", "away")
_SECONDS = ("compute_seconds", "transfer_seconds", "wait_seconds")
COLUMNS = ("client", "group", *_COUNTS, *_SECONDS, "wh", "bytes_up", "bytes_down")
"""Columns of ``fleet/clients.csv``.

"drawn" counts rounds for which a client was drawn, "came" those of them to which it came, "late" those to which it did
not because of a deadline, "away" the others. Seconds are those of computing, of messages, and of waiting in rounds to
which it came. The energy "wh" is empty where it is not known.
"""


def watt_hours(records: Sequence[Mapping[str, Any]], key: str = "wh") -> float | None:
    """Return the energy in Wh of all rounds together; None where that of a round is not known, or there is no round.

    Args:
        records: records of a fleet's rounds, as dicts.
        key: whose energy, "wh" of the clients or "server_wh".
    """
    own = [record[key] for record in records]
    return None if None in own or not own else sum(own)


def phase_seconds(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the seconds in which everyone waited for each phase, summed over rounds."""
    names = dict.fromkeys(name for record in records for name in record["phases"])
    return {name: sum(record["phases"].get(name, 0.0) for record in records) for name in names}


def fared(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """Return how many clients were "drawn", "late" and "away", summed over rounds, by the name of their group.

    >>> one = {"groups": {"boards": {"drawn": 5, "late": 2, "away": 1, "battery": None}}}
    >>> fared([one, one])
    {'boards': {'drawn': 10, 'late': 4, 'away': 2}}
    """
    names = dict.fromkeys(name for record in records for name in record["groups"])
    standings = {name: [record["groups"][name] for record in records if name in record["groups"]] for name in names}
    return {
        name: {what: sum(one[what] for one in own) for what in ("drawn", "late", "away")}
        for name, own in standings.items()
    }


_LESS_KNOWN = ("measured", "scaled", "published")
"""How times of devices can be known, from those that are known best."""


def times_known(records: Sequence[Mapping[str, Any]]) -> tuple[dict[str, str], str]:
    """Return how the times of each group's devices are known, by its name, and how those of the least known are.

    >>> groups = {"boards": {"times": "measured"}, "phones": {"times": "scaled"}}
    >>> times_known([{"groups": groups}])
    ({'boards': 'measured', 'phones': 'scaled'}, 'scaled')
    """
    known = {name: own["times"] for record in records for name, own in record["groups"].items()}
    return known, max(known.values(), key=_LESS_KNOWN.index, default=_LESS_KNOWN[0])


@dataclass(frozen=True)
class FleetClients:
    """What each of the M clients of a run has done in a fleet, over all rounds.

    Attributes:
        group: ``[M]`` name of its group.
        drawn: ``[M]`` rounds in whose cohort it was.
        came: ``[M]`` rounds that it came to.
        late: ``[M]`` rounds that it did not come to because it would have missed the deadline.
        away: ``[M]`` rounds that it did not come to for another reason.
        hours: ``[M]`` hours that it spent in rounds: computing, sending, receiving and waiting.
        wh: ``[M]`` energy that it took, in Wh; NaN where its power is not known.
    """

    group: np.ndarray
    drawn: np.ndarray
    came: np.ndarray
    late: np.ndarray
    away: np.ndarray
    hours: np.ndarray
    wh: np.ndarray

    @property
    def never(self) -> np.ndarray:
        """Return ``[M]`` bool: which clients never came."""
        return self.came == 0

    @property
    def mostly_late(self) -> np.ndarray:
        """Return ``[M]`` bool: which clients came at times, but were late in more than half of their draws."""
        return ~self.never & (2 * self.late > self.drawn)

    def is_of(self, records: Sequence[Mapping[str, Any]], clients: int) -> bool:
        """Return whether these are the clients of the fleet, and of the rounds, that a run has records of.

        Args:
            records: the records of its rounds in the fleet.
            clients: number of its clients.
        """
        counted = {
            str(name): {what: int(getattr(self, what)[self.group == name].sum()) for what in ("drawn", "late", "away")}
            for name in np.unique(self.group)
        }
        mine, theirs = ({n: own for n, own in all_.items() if own["drawn"]} for all_ in (counted, fared(records)))
        return mine == theirs and len(self.group) == clients


def read_clients(path: Path) -> FleetClients:
    """Read ``fleet/clients.csv`` of a run directory, which has a line for each client, in the order of their ids.

    Raises:
        ValueError: the file is no such table.
    """
    try:
        with open_regular(path) as file:
            lines = list(csv.DictReader(io.StringIO(file.read().decode(), newline=""), strict=True))
        numbers = {name: np.array([float(line[name]) for line in lines]) for name in ("client", *_COUNTS, *_SECONDS)}
        wh = np.array([float(line["wh"] or "nan") for line in lines])
        groups = np.array([line["group"] for line in lines], dtype=str)
    except KeyError as error:
        raise ValueError(f"fleet: {path} has no column {error}; allowed: as simsfl has written it") from error
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise ValueError(f"fleet: {path} is no table of a fleet's clients ({shortened(str(error))})") from error
    if not np.array_equal(numbers["client"], np.arange(len(lines))):
        raise ValueError(f"fleet: {path} does not have each client once, in the order of their ids")
    hours = sum(numbers[name] for name in _SECONDS) / 3600
    return FleetClients(groups, *(numbers[name] for name in _COUNTS), hours=hours, wh=wh)
