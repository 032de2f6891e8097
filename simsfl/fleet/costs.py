"""What a run's work takes the clients of a fleet: seconds of computing and of messages, and power."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from simsfl.config import RunConfig
from simsfl.cost.model import COLOURS, ClientCost, operations, server_flops
from simsfl.fleet.clock import Devices
from simsfl.fleet.profile_files import files_of, network_of, read_profile
from simsfl.fleet.profiles import Profile, Times, Work
from simsfl.fleet.settings import Fleet, GroupOfDevices, Spread
from simsfl.models import FlatModule, SplitModel
from simsfl.setup import assembly
from simsfl.setup.defaults import resolve
from simsfl.system.randomness import Purpose, numpy_generator

_BITS = 1e6 / 8
"""Bytes of a megabit."""


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


class Costs:
    """What a run's work takes the clients of a fleet.

    Args:
        config: the run's config, with every rule applied.
        model: its network.
        cost: bytes that its messages have.
        batches: ``[C]`` images per step of each position of a cohort.
        fleet: the fleet.

    Attributes:
        groups: the fleet's groups.
        member: ``[M]`` number of each client's group.
        server_seconds: seconds that the server takes for a step; None in federated learning, which has none.
        slowdown: ``[M]`` how many times as long each client takes as the measured device.
        up: ``[M]`` bytes that each client sends in a second.
        down: ``[M]`` bytes that it receives in a second.
        step_up: ``[C]`` bytes of a step that each position of a cohort sends.
        step_down: ``[C]`` bytes of a step that it receives.
        model_bytes: bytes of the model, each way, for an averaging.

    Raises:
        ValueError: a profile cannot be read, or the run is of a kind whose time is not known.
    """

    def __init__(self, config: RunConfig, model: SplitModel, cost: ClientCost, batches: Sequence[int], fleet: Fleet):
        if config.loss_threshold:
            raise ValueError("fleet: rounds that save communication (--loss-threshold) are not told; allowed: without")
        learns, split = config.client_lr > 0, bool(model.server.size and model.smashed_shape[0])
        graded = config.views_graded if learns else 0
        works = {batch: _work(config, model.client, batch, config.views_sent, graded) for batch in set(batches)}
        self.groups = [_group(own, works, fleet.path.parent) for own in fleet.groups]
        self.member = fleet.members(config.clients, config.seed)
        rng = numpy_generator(config.seed, Purpose.FLEET, 1)
        self.slowdown = _by_client([own.slowdown for own in fleet.groups], self.member, rng)
        self.up = _BITS * _by_client([own.up_mbit_s for own in fleet.groups], self.member, rng)
        self.down = _BITS * _by_client([own.down_mbit_s for own in fleet.groups], self.member, rng)
        self._latency = np.array([own.latency_ms for own in fleet.groups])[self.member] / 1000
        self._server = fleet.server
        sizes, self._size = np.unique(batches, return_inverse=True)
        self._seconds = np.array([[_three(own.times[size]) for size in sizes.tolist()] for own in self.groups])
        images = np.array(batches) * split
        self.step_up = images * config.views_sent * cost.image_bytes
        self.step_down = images * graded * cost.gradient_bytes
        self.model_bytes = cost.sync_bytes if learns else cost.statistics_bytes
        self.server_seconds = None
        if split:
            work = sum(batches) * server_flops(model, **config.server_passes)
            given = fleet.server.step_ms
            self.server_seconds = work / (1e9 * fleet.server.gflop_s) if given is None else given / 1000

    def devices(self, clients: np.ndarray, positions: Sequence[int] | None = None, *, sharing: int) -> Devices:
        """Return what some clients take.

        Args:
            clients: ``[n]`` their ids.
            positions: ``[n]`` their positions in the cohort, which say the size of their batches; None for all
                positions in their order.
            sharing: how many clients share the server's link, each with the same part of it.
        """
        at = np.arange(len(clients)) if positions is None else np.asarray(positions)
        seconds = self._seconds[self.member[clients], self._size[at]] * self.slowdown[clients, None]
        up, down = self.up[clients], self.down[clients]
        if self._server.up_mbit_s:
            up = np.minimum(up, self._server.up_mbit_s * _BITS / sharing)
        if self._server.down_mbit_s:
            down = np.minimum(down, self._server.down_mbit_s * _BITS / sharing)

        def travel(size: np.ndarray, rate: np.ndarray) -> np.ndarray:
            return np.where(size > 0, self._latency[clients] + size / rate, 0.0)

        model = np.full(len(clients), self.model_bytes)
        return Devices(
            *seconds.T,
            up=travel(self.step_up[at], up),
            down=travel(self.step_down[at], down),
            model_up=travel(model, up),
            model_down=travel(model, down),
        )

    def watts(self, clients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the power ``[n]`` of clients while they wait, and while they compute; NaN where it is not known."""
        own = np.array([[group.idle_watts, group.busy_watts] for group in self.groups], dtype=float)  # None is NaN
        return own[self.member[clients], 0], own[self.member[clients], 1]


def _three(times: Times) -> tuple[float, float, float]:
    """Return the first three times of `Devices`, in their order."""
    return times.before, times.after, times.seconds["sync"]


def _by_client(values: Sequence[float | Spread], member: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a number for each client, ``[M]``, given that of each group, or how it is spread over its clients."""
    drawn = [own.draw(len(member), rng) if isinstance(own, Spread) else np.full(len(member), own) for own in values]
    return np.stack(drawn)[member, np.arange(len(member))]


def _group(own: GroupOfDevices, works: Mapping[int, Work], folder: Path) -> Group:
    """Return a group of a fleet file, given the work of a client by images of a batch, and what paths start from."""
    devices = [own.device] if isinstance(own.device, str) else own.device
    try:
        files = [file for device in devices for file in files_of(device, folder)]
        profile = read_profile(files, _work_of_file, own.dtype).fitting(next(iter(works.values())))
    except ValueError as error:
        raise ValueError(f"fleet: group {own.name}: device: {error}") from error
    times = {batch: profile.times(work) for batch, work in works.items()}
    idle = profile.idle_watts if own.idle_watts is None else own.idle_watts
    busy = profile.busy_watts if own.busy_watts is None else own.busy_watts
    return Group(own.name, profile, times, idle, busy)


def _work_of_file(network: Mapping[str, Any], batch: int, views: int, graded: int) -> Work:
    """Return the work that ``pi_bench.py`` measured; see `simsfl.fleet.profile_files.WorkOf`."""
    config = resolve(RunConfig(**network, device="cpu"))
    return _work(config, assembly.network(config, weights=False).client, batch, views, graded)


def _work(config: RunConfig, client: FlatModule, batch: int, views: int, graded: int) -> Work:
    """Return the work of a client model; see `Work` for the arguments."""
    one = operations(client, (COLOURS, config.image_size, config.image_size), of_images=True)
    size, images, named = config.image_size**2, config.passes_per_image * batch, network_of(config.network())
    return Work(images, size, one.forward, one.backward, client.size, named, views, graded)
