"""The timeline of a run in a fleet: when each round begins, who can come, how long it takes, and what it costs.

All of it follows from the run's config and the fleet alone, round after round from the first, so that it can be told
while a run trains, and again at any time later.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, replace

import numpy as np

from simsfl.algorithm.plan import Attendance
from simsfl.fleet.clock import RoundTime, round_time
from simsfl.fleet.costs import Costs
from simsfl.fleet.readiness import HOUR, Readiness
from simsfl.fleet.selection import Selected
from simsfl.runs.metrics import FleetRecord, GroupStanding

log = logging.getLogger(__name__)
_LONGEST = 30 * 24 * HOUR
"""Seconds after which the server gives up waiting until enough clients are available."""
_KEPT = 4
"""Rounds whose story is kept: the latest, for the next is drawn while one trains."""


@dataclass(frozen=True)
class Ledger:
    """How a fleet of M clients stands when a round begins.

    Attributes:
        clock: seconds since the run began.
        waited: seconds of these since the round before, in which too few clients were available.
        joules: ``[M]`` what batteries hold; infinite for mains power.
        rounds: ``[M]`` rounds that each client came to.
        ready: ``[M]`` bool: who can take part.
    """

    clock: float
    waited: float
    joules: np.ndarray
    rounds: np.ndarray
    ready: np.ndarray


@dataclass(frozen=True)
class ToldRound:
    """A round in the fleet's time, with the C clients of its cohort.

    Attributes:
        begin: how the fleet stood when it began.
        cohort: ``[C]`` ids.
        came: ``[C]`` bool: which of them came.
        late: ``[C]`` bool: which did not because they would have missed the deadline.
        time: how long it took.
        joules: ``[C]`` energy of each client, NaN where its power is not known; those who did not come have 0.
        server_joules: energy of the server, NaN if its power is not known.
        up: ``[C]`` bytes that each client sent.
        down: ``[C]`` bytes that it received.
    """

    begin: Ledger
    cohort: np.ndarray
    came: np.ndarray
    late: np.ndarray
    time: RoundTime
    joules: np.ndarray
    server_joules: float
    up: np.ndarray
    down: np.ndarray


class Timeline:
    """The rounds of a run in a fleet.

    Args:
        costs: what the run's work takes the clients.
        attendance: who trains in each round.
        averaged: ``[S]`` bool: whether an averaging follows each step of a round.
        deadline: seconds of a step, without the server's, after which a client counts as absent; None for none.
        over_select: how many times as many clients as a cohort has are drawn, of which the fastest are kept.
        decides: whether the fleet has a say in who trains; if not, attendance is as it is given, and the run is told
            for a fleet that it knew nothing of.

    Attributes:
        costs: as above.
        attendance: who trains in each round, with the fleet's say.

    Raises:
        ValueError: nobody meets the deadline, or a file of times cannot be read.
    """

    def __init__(
        self,
        costs: Costs,
        attendance: Attendance,
        averaged: np.ndarray,
        *,
        deadline: float | None = None,
        over_select: float = 1.0,
        decides: bool = True,
    ):
        self.costs, self._averaged, self._deadline = costs, averaged, deadline
        self._readiness = Readiness(costs, attendance.seed)
        first = np.cumsum([0, *(group.cohort for group in attendance.groups[:-1])])
        sizes = [len(group.clients) for group in attendance.groups]
        self._position = np.repeat(first, sizes)  # of each client, one in the cohort that has batches of its size
        self._cohort = sum(group.cohort for group in attendance.groups)
        self._lock = threading.RLock()  # rounds are drawn ahead, in a thread of its own
        nothing = np.zeros(len(costs.member), np.int64)
        start = Ledger(0.0, 0.0, self._readiness.first, nothing, nothing.astype(bool))
        self._needed = min(costs.fleet.server.waits_for, len(costs.member))
        if self._needed < costs.fleet.server.waits_for:
            log.warning(
                "fleet: waits_for is %d, and there are %d clients, so the server waits for all of them",
                costs.fleet.server.waits_for,
                self._needed,
            )
        self._first = self._waited(start, 0)
        self._ledgers, self._told = {0: self._first}, dict[int, ToldRound]()
        self.attendance = attendance
        if decides:
            self._check_deadline()
            selected = Selected(attendance.sampler.in_fleet(self), self, deadline, over_select)
            self.attendance = replace(attendance, sampler=selected)

    def before(self, round_index: int) -> Ledger:
        """Return how the fleet stands when a round, counted from 0, begins.

        Raises:
            ValueError: nobody is available any more.
        """
        with self._lock:
            latest = max((number for number in self._ledgers if number <= round_index), default=0)
            self._ledgers.setdefault(latest, self._first)
            for number in range(latest, round_index):
                self._ledgers[number + 1] = self._waited(self._ended(self.told(number)), number + 1)
                _forget(self._ledgers)
            return self._ledgers[round_index]

    def told(self, round_index: int) -> ToldRound:
        """Return what happens in a round, counted from 0."""
        with self._lock:
            if round_index not in self._told:
                self._told[round_index] = self._tell(round_index)
                _forget(self._told)
            return self._told[round_index]

    def step_seconds(self, ledger: Ledger, clients: np.ndarray) -> np.ndarray:
        """Return the seconds ``[n]`` of a step of some clients, without the server's, if all the cohort takes part."""
        devices = self.costs.devices(clients, self._position[clients], sharing=self._cohort)
        return devices.step_seconds(ledger.clock)

    def step_joules(self, ledger: Ledger, clients: np.ndarray) -> np.ndarray:
        """Return the energy ``[n]`` of a step of some clients, in joules; NaN where their power is not known."""
        devices = self.costs.devices(clients, self._position[clients], sharing=self._cohort)
        return self.costs.joules(clients, devices.before + devices.after, devices.step_seconds(ledger.clock))

    def level(self, ledger: Ledger) -> np.ndarray:
        """Return how full the batteries are, ``[M]`` from 0 to 1; 1 for mains power."""
        capacity = self._readiness.capacity
        return np.divide(ledger.joules, capacity, out=np.ones_like(capacity), where=np.isfinite(capacity))

    def record(self, round_index: int) -> FleetRecord:
        """Return the record of a round, counted from 0."""
        with self._lock:
            own = self.told(round_index)
        level, limited = self.level(self._ended(own)), np.isfinite(self._readiness.capacity)
        groups = {}
        for index, group in enumerate(self.costs.groups):
            drawn, mine = self.costs.member[own.cohort] == index, self.costs.member == index
            battery = float(level[mine].mean()) if limited[mine].any() else None
            counts = (int(who.sum()) for who in (drawn, drawn & own.late, drawn & ~own.came & ~own.late))
            groups[group.name] = GroupStanding(*counts, battery, self.costs.known(index))
        waited = own.begin.waited
        return FleetRecord(
            round=round_index + 1,
            seconds=own.time.seconds + waited,
            clock=own.begin.clock + own.time.seconds,
            phases=own.time.phases | {"away": waited},
            wh=_known(own.joules.sum() / HOUR),
            server_wh=_known(own.server_joules / HOUR),
            bytes_up=int(own.up.sum()),
            bytes_down=int(own.down.sum()),
            groups=groups,
        )

    def _tell(self, round_index: int) -> ToldRound:
        """Work out a round."""
        costs, begin = self.costs, self.before(round_index)
        cohort, absences = self.attendance.draw(round_index)
        steps, positions = len(self._averaged), np.arange(len(cohort))
        present = np.ones((steps, len(cohort)), bool)
        for step in range(steps):
            present[step, list(absences.in_step(step))] = False
        came = np.ones(len(cohort), bool)
        came[list(absences.missing)] = False
        late = np.zeros(len(cohort), bool)
        if self._deadline is not None:
            late = ~came & begin.ready[cohort] & (self.step_seconds(begin, cohort) > self._deadline)
        devices = costs.devices(cohort, positions, sharing=int(came.sum()))
        time = round_time(devices, present, self._averaged, costs.server_seconds, came, begin.clock)
        slow = list(absences.slow)  # they also compute in the steps that they miss
        time.compute[slow] = np.minimum(absences.factor * time.compute[slow], time.seconds - time.transfer[slow])
        models = self._averaged.sum() * came * costs.model_bytes
        up, down = (own * present.sum(axis=0) + models for own in (costs.step_up, costs.step_down))
        joules = np.where(came, costs.joules(cohort, time.compute, time.seconds), 0.0)
        server, works = costs.fleet.server, time.phases["server"]
        watts = [np.nan if own is None else own for own in (server.idle_watts, server.busy_watts)]
        server_joules = watts[0] * (begin.waited + time.seconds - works) + watts[1] * works
        return ToldRound(begin, cohort, came, late, time, joules, server_joules, up, down)

    def _ended(self, told: ToldRound) -> Ledger:
        """Return how the fleet stands at the end of a round, before it waits for the next one."""
        begin, rounds = told.begin, told.begin.rounds.copy()
        rounds[told.cohort] += told.came
        joules = begin.joules.copy()
        joules[told.cohort] -= np.nan_to_num(told.joules)  # batteries have a power that is known
        end = begin.clock + told.time.seconds
        return replace(begin, clock=end, joules=self._readiness.charged(joules, begin.clock, end), rounds=rounds)

    def _waited(self, ledger: Ledger, number: int) -> Ledger:
        """Return the ledger at the time from which enough clients are available for the round of a number."""
        clock, joules = ledger.clock, ledger.joules
        while (ready := self._readiness.ready(clock, joules)).sum() < self._needed:
            if clock - ledger.clock > _LONGEST:
                raise ValueError(
                    f"fleet: for 30 days before round {number + 1}, fewer than {self._needed} of its clients are "
                    "available with batteries that are not too low; allowed: a fleet that has them"
                )
            look = self._readiness.next_look(clock)
            joules, clock = self._readiness.charged(joules, clock, look), look
        return replace(ledger, clock=clock, waited=clock - ledger.clock, joules=joules, ready=ready)

    def _check_deadline(self) -> None:
        """Raise a ValueError if nobody meets the deadline."""
        fastest = self.step_seconds(self._first, np.arange(len(self.costs.member))).min()
        if self._deadline is not None and fastest > self._deadline:
            raise ValueError(
                f"deadline: {self._deadline:g} is less than the {fastest:.3g} s of a step of the fastest client; "
                "allowed: more"
            )


def _forget(stories: dict[int, object]) -> None:
    """Forget all but the rounds that were worked out last."""
    while len(stories) > _KEPT:
        del stories[next(iter(stories))]


def _known(value: float) -> float | None:
    """Return a number, None where it is not known."""
    return None if np.isnan(value) else float(value)
