"""A run told for a fleet: how long each of its rounds takes there, and what it costs each client."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from simsfl.algorithm.absence import Reliability
from simsfl.algorithm.aggregation import is_sync_step
from simsfl.algorithm.plan import draw_cohort
from simsfl.config import RunConfig
from simsfl.cost.model import COLOURS, operations, server_flops
from simsfl.fleet.clock import Devices, RoundTime, round_time
from simsfl.fleet.profiles import Profile, Times, Work, read_profile
from simsfl.fleet.settings import Fleet, Spread
from simsfl.setup import assembly
from simsfl.setup.parts import Parts
from simsfl.system.randomness import Purpose, numpy_generator

_BITS = 1e6 / 8
"""Bytes of a megabit."""
_NETWORK = (
    "image_size",
    "arch",
    "width",
    "norm",
    "cut_layer",
    "bottleneck",
    "client_residual",
    "weight_standardisation",
)
"""Fields of the config that a client's work depends on, besides its batch and what it learns from."""


@dataclass(frozen=True)
class Group:
    """A group of the fleet, ready to be used.

    Attributes:
        name: what it is called.
        profile: what was measured on its device.
        times: what its device takes for a client's work in this run, by images of a batch; before any slowdown.
        idle_watts: power of a client that waits, sends or receives; None if it is not known.
        busy_watts: power of a client that computes; None if it is not known.
    """

    name: str
    profile: Profile
    times: Mapping[int, Times]
    idle_watts: float | None
    busy_watts: float | None


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


class Telling:
    """Tells the rounds of a run for a fleet.

    Args:
        parts: the run.
        fleet: the fleet.

    Attributes:
        groups: the fleet's groups.
        member: ``[M]`` number of each client's group.
        server_seconds: seconds that the server takes for a step; None in federated learning, which has none.
        slowdown: ``[M]`` how many times as long each client takes as the measured device.
        up: ``[M]`` bytes that each client sends in a second.
        down: ``[M]`` bytes that it receives in a second.

    Raises:
        ValueError: a profile cannot be read, or the run is of a kind whose time is not known.
    """

    def __init__(self, parts: Parts, fleet: Fleet):
        config = parts.config
        if config.loss_threshold:
            raise ValueError("fleet: rounds that save communication (--loss-threshold) are not told; allowed: without")
        self._parts, self._split = parts, bool(parts.model.server.size and parts.model.smashed_shape[0])
        works = {batch: _work_of_run(config, parts, batch) for batch in set(parts.batches)}
        self.groups = [_group(own, works, fleet.path.parent) for own in fleet.groups]
        self.member = fleet.members(config.clients, config.seed)
        self.server_seconds = _server_seconds(parts, fleet) if self._split else None
        rng = numpy_generator(config.seed, Purpose.FLEET, 1)
        self.slowdown = _by_client([own.slowdown for own in fleet.groups], self.member, rng)
        self.up = _BITS * _by_client([own.up_mbit_s for own in fleet.groups], self.member, rng)
        self.down = _BITS * _by_client([own.down_mbit_s for own in fleet.groups], self.member, rng)
        self._latency = np.array([own.latency_ms for own in fleet.groups])[self.member] / 1000
        self._server = fleet.server

    def round(self, round_index: int) -> ToldRound:
        """Tell a round counted from 0."""
        parts, config = self._parts, self._parts.config
        drawn = draw_cohort(parts.groups, round_index, config.seed, parts.sampler, parts.images)
        cohort = np.concatenate([own.clients for own in drawn])
        away = {client for own in drawn for client in own.missing}
        reliability = Reliability(config.dropout, config.straggler, config.straggler_factor)
        absences = reliability.draw(cohort.tolist(), away, config.seed, round_index)
        present = np.ones((parts.steps, len(cohort)), bool)
        for step in range(parts.steps):
            present[step, list(absences.in_step(step))] = False
        came = np.ones(len(cohort), bool)
        came[list(absences.missing)] = False
        averaged = np.array([is_sync_step(s, parts.steps, config.syncs_per_round) for s in range(parts.steps)])
        devices, up, down, model = self._devices(cohort, int(came.sum()))
        time = round_time(devices, present, averaged, self.server_seconds, came)
        steps, averagings = present.sum(axis=0), averaged.sum() * came
        sent = int((up * steps + model * averagings).sum()), int((down * steps + model * averagings).sum())
        idle, busy = self._watts(cohort)
        joules = np.where(came, busy * time.compute + idle * (time.seconds - time.compute), 0.0)
        return ToldRound(cohort, came, time, joules, *sent)

    def _devices(self, cohort: np.ndarray, coming: int) -> tuple[Devices, np.ndarray, np.ndarray, int]:
        """Return what the cohort's clients take, the bytes ``[C]`` of a step up and down, and those of a model.

        The server's link is shared equally by all clients that come.
        """
        parts, config = self._parts, self._parts.config
        batches, learns = np.array(parts.batches), config.client_lr > 0
        times = [self.groups[self.member[c]].times[b] for c, b in zip(cohort, parts.batches, strict=True)]
        slower = self.slowdown[cohort]
        up = batches * config.views_sent * parts.cost.image_bytes if self._split else 0 * batches
        down = batches * config.views_graded * parts.cost.gradient_bytes if self._split and learns else 0 * batches
        model = parts.cost.sync_bytes if learns else parts.cost.statistics_bytes
        rate_up, rate_down = self.up[cohort], self.down[cohort]
        if self._server.up_mbit_s:
            rate_up = np.minimum(rate_up, self._server.up_mbit_s * _BITS / coming)
        if self._server.down_mbit_s:
            rate_down = np.minimum(rate_down, self._server.down_mbit_s * _BITS / coming)
        latency = self._latency[cohort]

        def travel(size: np.ndarray | int, rate: np.ndarray) -> np.ndarray:
            return np.where(np.asarray(size) > 0, latency + size / rate, 0.0)

        devices = Devices(
            before=slower * [own.before for own in times],
            after=slower * [own.after for own in times],
            averaging=slower * [own.seconds["sync"] for own in times],
            up=travel(up, rate_up),
            down=travel(down, rate_down),
            model_up=travel(model, rate_up),
            model_down=travel(model, rate_down),
        )
        return devices, up, down, model

    def _watts(self, cohort: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the power ``[C]`` of the cohort's clients while they wait, and while they compute; NaN if unknown."""
        own = np.array([[group.idle_watts, group.busy_watts] for group in self.groups], dtype=float)  # None is NaN
        return own[self.member[cohort], 0], own[self.member[cohort], 1]


def _by_client(values: Sequence[float | Spread], member: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a number for each client, ``[M]``, given that of each group, or how it is spread over its clients."""
    drawn = [own.draw(len(member), rng) if isinstance(own, Spread) else np.full(len(member), own) for own in values]
    return np.stack(drawn)[member, np.arange(len(member))]


def _group(own: Any, works: Mapping[int, Work], folder: Path) -> Group:
    """Return a group of a fleet file, given the work of a client by images of a batch, and what paths start from."""
    files = [own.device] if isinstance(own.device, str) else own.device
    try:
        profile = read_profile([folder / file for file in files], _work_of_result)
    except ValueError as error:
        raise ValueError(f"fleet: group {own.name}: device: {error}") from error
    times = {batch: profile.times(work) for batch, work in works.items()}
    idle = profile.idle_watts if own.idle_watts is None else own.idle_watts
    busy = profile.busy_watts if own.busy_watts is None else own.busy_watts
    return Group(own.name, profile, times, idle, busy)


def _work_of_run(config: RunConfig, parts: Parts, batch: int) -> Work:
    """Return the work of a client of a run with a batch of some images."""
    learns = config.client_lr > 0
    return _work(config, parts.model.client, batch, config.views_sent, config.views_graded if learns else 0)


def _work_of_result(fields: Mapping[str, Any]) -> Work:
    """Return the work that ``pi_bench.py`` measured, given the fields of its network and its batch size."""
    config = RunConfig(**{name: value for name, value in fields.items() if name != "batch_size"})
    model = assembly.network(config, weights=False)
    return _work(config, model.client, fields["batch_size"], views=2, graded=1)


def _work(config: RunConfig, client: Any, batch: int, views: int, graded: int) -> Work:
    """Return the work of a client model; see `Work` for the arguments."""
    one = operations(client, (COLOURS, config.image_size, config.image_size), of_images=True)
    passes, named = config.passes_per_image, {name: getattr(config, name) for name in _NETWORK}
    size = config.image_size**2
    return Work(passes * batch, size, one.forward, one.backward, client.size, named, views, graded)


def _server_seconds(parts: Parts, fleet: Fleet) -> float:
    """Return the seconds that the server takes for a step."""
    if fleet.server.step_ms is not None:
        return fleet.server.step_ms / 1000
    work = sum(parts.batches) * server_flops(parts.model, **parts.config.server_passes)
    return work / (1e9 * fleet.server.gflop_s)
