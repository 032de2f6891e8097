"""What is told of a run in a fleet: figures of the groups, of the whole run, and of each evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from simsfl.fleet.clock import PHASES
from simsfl.fleet.costs import Costs
from simsfl.fleet.links import BITS
from simsfl.fleet.profiles import SCALED
from simsfl.fleet.readiness import HOUR
from simsfl.fleet.spent import Clients
from simsfl.fleet.timeline import ToldRound


def told(
    costs: Costs, rounds: Iterable[ToldRound], evaluations: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, Any], Clients]:
    """Return what ``fleet.json`` holds, and what each client has spent.

    Args:
        costs: what the run takes the clients of the fleet.
        rounds: the rounds of the run, from the first.
        evaluations: records of evaluations, of which those of told rounds are placed in the fleet's time.

    Returns:
        ``groups``: of each group its clients, device, seconds of a step, whether these were measured or follow from a
        published speed, and what its clients spent on average; ``phases``: seconds in which everyone waited for each
        phase; ``evaluations``: round, kNN accuracy in percent, hours, Wh and MB of a client up to then; ``hours``,
        ``server_seconds``, those of a step, and ``server_wh``. What is not known is None.
    """
    clients, server = Clients(len(costs.member)), 0.0
    phases, reached = dict.fromkeys(PHASES, 0.0), {0: (0.0, 0.0, 0.0)}
    for number, own in enumerate(rounds, start=1):
        clients.add(own)
        for phase, seconds in own.time.phases.items():
            phases[phase] += float(seconds)
        phases["away"] += own.begin.waited
        server += own.server_joules
        elapsed = own.begin.clock + own.time.seconds
        traffic = clients.up.mean() + clients.down.mean()
        reached[number] = elapsed / HOUR, float(clients.joules.mean()) / HOUR, traffic / 1e6
    story = {
        "hours": reached[max(reached)][0],
        "server_seconds": costs.server_seconds,
        "server_wh": _known(server / HOUR),
        "phases": phases,
        "groups": [
            described(costs, index) | _spent(clients, costs.member == index) for index in range(len(costs.groups))
        ],
        "evaluations": [
            {"round": own["round"], "knn_top1": own["knn_top1"]}
            | {name: _known(value) for name, value in zip(_REACHED, reached[own["round"]], strict=True)}
            for own in evaluations
            if own["round"] in reached
        ],
    }
    return story, clients


_REACHED = ("hours", "wh_per_client", "mb_per_client")
"""What a client has spent on average by an evaluation."""


def described(costs: Costs, index: int) -> dict[str, Any]:
    """Return what is known of a group, counted from 0, before any round is told."""
    own, mine = costs.groups[index], costs.member == index
    up, down = costs.rates
    slower = float(np.median(costs.slowdown[mine])) if mine.any() else 1.0
    steps = [slower * (times.before + times.after) for times in own.times.values()]
    scaled = SCALED in {times.source for times in own.times.values()}
    return {
        "name": own.name,
        "clients": int(mine.sum()),
        "device": own.profile.device,
        "step_seconds": float(np.mean(steps)),
        "times": costs.known(index),
        "scaling_rule": own.profile.rule if scaled else None,
        "scaling_error": own.profile.error() if scaled else None,
        "up_mbit_s": float(np.median(up[mine])) / BITS if mine.any() else None,
        "down_mbit_s": float(np.median(down[mine])) / BITS if mine.any() else None,
        "idle_watts": own.idle_watts,
        "busy_watts": own.busy_watts,
    }


def _spent(clients: Clients, mine: np.ndarray) -> dict[str, Any]:
    """Return what some clients, ``[M]`` bool, have spent on average."""
    parts = (clients.compute, clients.transfer, clients.wait, clients.joules)
    compute, transfer, wait, joules = (float(values[mine].mean()) if mine.any() else 0.0 for values in parts)
    seconds = {"compute_seconds": compute, "transfer_seconds": transfer, "wait_seconds": wait}
    return seconds | {"wh": _known(joules / HOUR)}


def _known(value: float) -> float | None:
    """Return a number, None where it is not known."""
    return None if np.isnan(value) else value
