"""What is told of a run in a fleet: figures of the groups, of the whole run, and of each evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from simsfl.fleet.clock import PHASES
from simsfl.fleet.costs import Costs
from simsfl.fleet.profiles import SCALED
from simsfl.fleet.telling import ToldRound

_HOUR = 3600.0


def told(costs: Costs, rounds: Iterable[ToldRound], evaluations: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what ``fleet.json`` holds.

    Args:
        costs: what the run takes the clients of the fleet.
        rounds: the rounds of the run, from the first.
        evaluations: records of evaluations, of which those of told rounds are placed in the fleet's time.

    Returns:
        ``groups``: of each group its clients, device, seconds of a step, whether these were measured or follow from a
        published speed, and what its clients spent on average; ``phases``: seconds in which everyone waited for each
        phase; ``evaluations``: round, kNN accuracy in percent, hours, Wh and MB of a client up to then; ``hours`` and
        ``server_seconds``, those of a step. What is not known is None.
    """
    clients = len(costs.member)
    compute, transfer, present, joules = (np.zeros(clients) for _ in range(4))
    phases, elapsed, traffic = dict.fromkeys(PHASES, 0.0), 0.0, 0
    reached = {0: (0.0, 0.0, 0.0)}
    for number, own in enumerate(rounds, start=1):
        for phase, seconds in own.time.phases.items():
            phases[phase] += float(seconds)
        compute[own.cohort] += own.time.compute
        transfer[own.cohort] += own.time.transfer
        present[own.cohort] += own.time.seconds * own.came
        joules[own.cohort] += own.joules
        elapsed, traffic = elapsed + float(own.time.seconds), traffic + own.up + own.down
        reached[number] = elapsed / _HOUR, float(joules.mean()) / _HOUR, traffic / clients / 1e6
    return {
        "hours": elapsed / _HOUR,
        "server_seconds": costs.server_seconds,
        "phases": phases,
        "groups": [_group(costs, index, compute, transfer, present, joules) for index in range(len(costs.groups))],
        "evaluations": [
            {"round": own["round"], "knn_top1": own["knn_top1"]}
            | {name: _known(value) for name, value in zip(_REACHED, reached[own["round"]], strict=True)}
            for own in evaluations
            if own["round"] in reached
        ],
    }


_REACHED = ("hours", "wh_per_client", "mb_per_client")
"""What a client has spent on average by an evaluation."""


def _group(costs: Costs, index: int, *spent: np.ndarray) -> dict[str, Any]:
    """Return figures of a group.

    Args:
        costs: what the run takes the clients of the fleet.
        index: number of the group.
        spent: ``[M]`` seconds of computing, of sending and receiving, and of rounds, and joules, of each client.
    """
    own, mine = costs.groups[index], costs.member == index
    compute, transfer, present, joules = (values[mine].mean() if mine.any() else 0.0 for values in spent)
    slower = float(np.median(costs.slowdown[mine])) if mine.any() else 1.0
    steps = [slower * (times.before + times.after) for times in own.times.values()]
    return {
        "name": own.name,
        "clients": int(mine.sum()),
        "device": own.profile.device,
        "step_seconds": float(np.mean(steps)),
        "measured": all(times.measured for times in own.times.values()) and slower == 1.0,
        "published": own.profile.flops is not None,
        "scaling_error": own.profile.error() if SCALED in {times.source for times in own.times.values()} else None,
        "up_mbit_s": float(np.median(costs.up[mine])) * 8 / 1e6 if mine.any() else None,
        "down_mbit_s": float(np.median(costs.down[mine])) * 8 / 1e6 if mine.any() else None,
        "idle_watts": own.idle_watts,
        "busy_watts": own.busy_watts,
        "compute_seconds": float(compute),
        "transfer_seconds": float(transfer),
        "wait_seconds": max(0.0, float(present - compute - transfer)),  # rounding may take it below zero
        "wh": _known(float(joules) / _HOUR),
    }


def _known(value: float) -> float | None:
    """Return a number, None where it is not known."""
    return None if np.isnan(value) else value
