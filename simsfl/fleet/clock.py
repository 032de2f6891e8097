"""The virtual clock: how long a round takes a cohort of devices, and what each of them does meanwhile.

In a step each client present draws views, goes forward and sends; the server begins once the last of them has arrived,
and sends gradients back; each client then goes backward and on to its next step. So the server waits for the slowest,
and all others wait for the server. Averagings wait for all clients, too. Everything within a round is known before it,
so the clock is a recurrence over steps, with arrays over the cohort, and not a simulation of events.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simsfl.fleet.links import Links

PHASES = ("away", "compute", "up", "down", "server")
"""What the time of a round consists of: at each moment, what everyone waits for; "away" before anyone is available."""


@dataclass(frozen=True)
class Devices:
    """What a step and an averaging take the C clients of a cohort.

    Attributes:
        before: ``[C]`` seconds of computing before a client sends.
        after: ``[C]`` seconds of computing after its gradients have come.
        averaging: ``[C]`` seconds of computing for an averaging.
        step_up: ``[C]`` bytes of a step that it sends.
        step_down: ``[C]`` bytes of a step that it receives.
        model: ``[C]`` bytes of the model, each way, for an averaging.
        up: links that they send with.
        down: links that they receive with.
    """

    before: np.ndarray
    after: np.ndarray
    averaging: np.ndarray
    step_up: np.ndarray
    step_down: np.ndarray
    model: np.ndarray
    up: Links
    down: Links

    def step_seconds(self, begin: float) -> np.ndarray:
        """Return the seconds ``[C]`` of a step without the server's, for those who wait for nobody.

        Args:
            begin: seconds since the run began at which the step begins.
        """
        sent = self.before + self.up.seconds(self.step_up, begin + self.before)
        return sent + self.down.seconds(self.step_down, begin + sent) + self.after


@dataclass(frozen=True)
class RoundTime:
    """How long a round took.

    Attributes:
        seconds: seconds from its beginning to the end of its last averaging.
        phases: seconds in which everyone waited for each of the `PHASES`; they add up to `seconds`.
        compute: ``[C]`` seconds in which each client computed.
        transfer: ``[C]`` seconds in which it sent or received. In all other time it waited.
    """

    seconds: float
    phases: dict[str, float]
    compute: np.ndarray
    transfer: np.ndarray


def round_time(
    devices: Devices,
    present: np.ndarray,
    averaged: np.ndarray,
    server_seconds: float | None,
    models: np.ndarray,
    begin: float = 0.0,
) -> RoundTime:
    """Return how long a round takes.

    Args:
        devices: what the cohort's clients take.
        present: ``[S, C]`` bool: which clients take part in each step.
        averaged: ``[S]`` bool: whether an averaging follows each step.
        server_seconds: seconds that the server takes for a step; None if clients train alone, without a server.
        models: ``[C]`` bool: which clients fetch and send models; the others do not come in this round.
        begin: seconds since the run began at which the round begins.
    """
    everyone = np.zeros(len(devices.before))
    spent = {what: everyone.copy() for what in ("compute", "up", "down")}
    phases, now = dict.fromkeys(PHASES, 0.0), 0.0
    since = dict.fromkeys(spent, everyone)  # what each client has spent since all were last together

    def spend(what: str, seconds: np.ndarray, who: np.ndarray) -> None:
        own = np.where(who, seconds, 0.0)
        since[what] = since[what] + own
        spent[what] += own

    def travel(what: str, size: np.ndarray, who: np.ndarray) -> None:
        links = devices.up if what == "up" else devices.down
        spend(what, links.seconds(size, begin + now + sum(since.values())), who)

    def meet(who: np.ndarray) -> None:
        """Go on to the moment at which the last of some clients is ready."""
        nonlocal now
        last = np.argmax(np.where(who, sum(since.values()), -1.0))
        for what, seconds in since.items():
            phases[what] += seconds[last]
            now += seconds[last]
            since[what] = everyone

    travel("down", devices.model, models)
    for here, averages in zip(present, averaged, strict=True):
        spend("compute", devices.before, here)
        if server_seconds is not None:
            travel("up", devices.step_up, here)
            meet(here)
            phases["server"] += server_seconds
            now += server_seconds
            travel("down", devices.step_down, here)
        spend("compute", devices.after, here)
        if averages:
            spend("compute", devices.averaging, models)
            travel("up", devices.model, models)
            meet(models)
            travel("down", devices.model, models)
    fetched = since["down"]  # the last average, which clients fetch in the round in which they take part again
    return RoundTime(now, phases, spent["compute"], spent["up"] + spent["down"] - fetched)
