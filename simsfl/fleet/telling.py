"""A run told for a fleet: how long each of its rounds takes there, and what it costs each client."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simsfl.algorithm.aggregation import is_sync_step
from simsfl.fleet.clock import RoundTime, round_time
from simsfl.fleet.costs import Costs
from simsfl.setup.parts import Parts


@dataclass(frozen=True)
class ToldRound:
    """A round in the fleet's time.

    Attributes:
        cohort: ``[C]`` ids of its clients.
        came: ``[C]`` bool: which of them came.
        time: how long it took.
        joules: ``[C]`` energy of each client, NaN where its power is not known; those who did not come have 0.
        up: bytes that all clients sent.
        down: bytes that they received.
    """

    cohort: np.ndarray
    came: np.ndarray
    time: RoundTime
    joules: np.ndarray
    up: int
    down: int


def told_round(parts: Parts, costs: Costs, round_index: int) -> ToldRound:
    """Tell a round, counted from 0, of a run.

    Args:
        parts: the run.
        costs: what its work takes the clients of the fleet.
        round_index: the round.
    """
    config = parts.config
    cohort, absences = parts.attendance.draw(round_index)
    present = np.ones((parts.steps, len(cohort)), bool)
    for step in range(parts.steps):
        present[step, list(absences.in_step(step))] = False
    came = np.ones(len(cohort), bool)
    came[list(absences.missing)] = False
    averaged = np.array([is_sync_step(s, parts.steps, config.syncs_per_round) for s in range(parts.steps)])
    devices = costs.devices(cohort, sharing=int(came.sum()))
    time = round_time(devices, present, averaged, costs.server_seconds, came)
    steps, models = present.sum(axis=0), averaged.sum() * came * costs.model_bytes
    idle, busy = costs.watts(cohort)
    joules = np.where(came, busy * time.compute + idle * (time.seconds - time.compute), 0.0)
    up, down = (int((own * steps + models).sum()) for own in (costs.step_up, costs.step_down))
    return ToldRound(cohort, came, time, joules, up, down)
