"""What each client of a fleet has spent over the rounds of a run, and the table of it."""

from __future__ import annotations

import csv
import io

import numpy as np

from simsfl.fleet.costs import Costs
from simsfl.fleet.readiness import HOUR
from simsfl.fleet.timeline import ToldRound
from simsfl.runs.fleet_totals import COLUMNS


class Clients:
    """Sums over rounds for each of M clients.

    Args:
        clients: their number M.

    Attributes:
        drawn: ``[M]`` rounds for which each was drawn.
        came: ``[M]`` rounds to which it came.
        late: ``[M]`` rounds to which it did not because it would have missed the deadline.
        compute: ``[M]`` seconds in which it computed.
        transfer: ``[M]`` seconds in which it sent or received.
        wait: ``[M]`` seconds of rounds to which it came in which it waited.
        joules: ``[M]`` energy, NaN where it is not known.
        up: ``[M]`` bytes that it sent.
        down: ``[M]`` bytes that it received.
    """

    def __init__(self, clients: int):
        self.drawn, self.came, self.late = (np.zeros(clients, np.int64) for _ in range(3))
        self.compute, self.transfer, self.wait, self.joules = (np.zeros(clients) for _ in range(4))
        self.up, self.down = (np.zeros(clients, np.int64) for _ in range(2))

    def add(self, told: ToldRound) -> None:
        """Add a round."""
        cohort, time = told.cohort, told.time
        self.drawn[cohort] += 1
        self.came[cohort] += told.came
        self.late[cohort] += told.late
        self.compute[cohort] += time.compute
        self.transfer[cohort] += time.transfer
        waited = time.seconds * told.came - time.compute - time.transfer
        self.wait[cohort] += np.maximum(waited, 0)  # rounding may take it below zero
        self.joules[cohort] += told.joules
        self.up[cohort] += told.up
        self.down[cohort] += told.down

    def table(self, costs: Costs) -> str:
        """Return the table as CSV, with a line for each client and `COLUMNS`."""
        away = self.drawn - self.came - self.late
        wh = ("" if np.isnan(joules) else f"{joules / HOUR:.6g}" for joules in self.joules)
        names = (costs.groups[index].name for index in costs.member)
        seconds = ([f"{value:.6g}" for value in values] for values in (self.compute, self.transfer, self.wait))
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(COLUMNS)
        counts = self.drawn, self.came, self.late, away
        rows.writerows(zip(range(len(away)), names, *counts, *seconds, wh, self.up, self.down, strict=True))
        return text.getvalue()
