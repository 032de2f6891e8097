"""What a run's work takes the clients of a fleet: seconds of computing and of messages, and power."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from simsfl.config import RunConfig
from simsfl.config.fleet import Fleet, GroupOfDevices, Spread, Traced
from simsfl.cost.model import COLOURS, ClientCost, operations, server_flops
from simsfl.fleet.clock import Devices
from simsfl.fleet.links import BITS, Links, Trace, read_trace
from simsfl.fleet.profile_files import files_of, network_of, read_profile
from simsfl.fleet.profiles import MEASURED, PUBLISHED, SCALED, Profile, Times, Work
from simsfl.models import FlatModule, SplitModel
from simsfl.models.described import client_of
from simsfl.system.randomness import Purpose, numpy_generator


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
        fleet: the fleet.
        groups: its groups.
        member: ``[M]`` number of each client's group.
        server_seconds: seconds that the server takes for a step; None in federated learning, which has none.
        slowdown: ``[M]`` how many times as long each client takes as the measured device.
        rates: bytes that each client sends, and receives, in a second, both ``[M]``; those of a trace on average.
        step_up: ``[C]`` bytes of a step that each position of a cohort sends.
        step_down: ``[C]`` bytes of a step that it receives.
        model_bytes: bytes of the model, each way, for an averaging.

    Raises:
        ValueError: a file of the fleet cannot be read, or the run is of a kind whose time is not known.
    """

    def __init__(
        self,
        config: RunConfig,
        model: SplitModel,
        cost: ClientCost,
        batches: Sequence[int],
        fleet: Fleet,
    ):
        if config.loss_threshold:
            raise ValueError(
                f"fleet: rounds that save communication (loss_threshold {config.loss_threshold:g}) are not told; "
                "allowed: without it"
            )
        learns, split = config.client_lr > 0, bool(model.server.size and model.smashed_shape[0])
        graded = config.views_graded if learns else 0
        works = {batch: _work(config, model.client, batch, config.views_sent, graded) for batch in set(batches)}
        self.fleet, self.clients = fleet, config.clients
        self.groups = [_group(own, works, fleet.path.parent) for own in fleet.groups]
        self.member = _members(fleet, config.clients, config.seed)
        rng = numpy_generator(config.seed, Purpose.FLEET, 1)
        self.slowdown = _by_client([own.slowdown for own in fleet.groups], self.member, rng)
        both = [[own.up_mbit_s for own in fleet.groups], [own.down_mbit_s for own in fleet.groups]]
        traces = [
            [_trace(own, rate, fleet.path.parent) for own, rate in zip(fleet.groups, rates, strict=True)]
            for rates in both
        ]
        self.rates = [BITS * _by_client(rates, self.member, rng) for rates in both]
        for own, rate in zip(traces, self.rates, strict=True):
            for index, trace in enumerate(own):
                if trace:
                    rate[self.member == index] = trace.mean
        self._traces = traces
        self._offset = numpy_generator(config.seed, Purpose.FLEET, 2).random(config.clients)
        self._latency = np.array([own.latency_ms for own in fleet.groups])[self.member] / 1000
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

    def known(self, index: int) -> str:
        """Return how the times of a group, counted from 0, are known: "measured", "scaled" or "published".

        They are measured if all that its clients compute was, on a device that is as fast as they are.
        """
        sources = {times.source for times in self.groups[index].times.values()}
        if PUBLISHED in sources:
            return PUBLISHED
        same = (self.slowdown[self.member == index] == 1).all()
        return MEASURED if same and sources == {MEASURED} else SCALED

    def devices(self, clients: np.ndarray, positions: np.ndarray, *, sharing: int) -> Devices:
        """Return what some clients take.

        Args:
            clients: ``[n]`` their ids.
            positions: ``[n]`` their positions in the cohort, which say the size of their batches.
            sharing: how many clients share the server's link, each with the same part of it.
        """
        seconds = self._seconds[self.member[clients], self._size[positions]] * self.slowdown[clients, None]
        server = self.fleet.server
        return Devices(
            *seconds.T,
            step_up=self.step_up[positions],
            step_down=self.step_down[positions],
            model=np.full(len(clients), self.model_bytes),
            up=self._links(0, clients, server.up_mbit_s, sharing),
            down=self._links(1, clients, server.down_mbit_s, sharing),
        )

    def _links(self, way: int, clients: np.ndarray, mbit_s: float | None, sharing: int) -> Links:
        """Return the links of some clients, up (0) or down (1), given the server's own, which is shared."""
        found = []
        for index, trace in enumerate(self._traces[way]):
            who = np.flatnonzero(self.member[clients] == index)
            if trace and len(who):
                found.append((trace, who, self._offset[clients[who]] * trace.times[-1]))
        most = np.inf if mbit_s is None else mbit_s * BITS / max(1, sharing)
        return Links(self._latency[clients], self.rates[way][clients], most, tuple(found))

    def joules(self, clients: np.ndarray, compute: np.ndarray, seconds: np.ndarray | float) -> np.ndarray:
        """Return the energy ``[n]`` of some clients, in joules; NaN where their power is not known.

        Args:
            clients: ``[n]`` their ids.
            compute: ``[n]`` seconds in which they compute.
            seconds: seconds, or ``[n]`` of them, of which they wait, send or receive in the rest.
        """
        own = np.array([[group.idle_watts, group.busy_watts] for group in self.groups], dtype=float)  # None is NaN
        idle, busy = own[self.member[clients]].T
        return busy * compute + idle * (seconds - compute)


def _three(times: Times) -> tuple[float, float, float]:
    """Return the first three times of `Devices`, in their order."""
    return times.before, times.after, times.seconds["sync"]


def _members(fleet: Fleet, clients: int, seed: int) -> np.ndarray:
    """Return the number of each client's group, ``[clients]`` int64.

    Those that no group names are dealt to groups at random, by an address of their own, so that groups do not depend on
    which images clients hold. A group has its share of them, rounded so that all together are all of them.

    Raises:
        ValueError: there is no such client as a group names, or one that is in no group.
    """
    result = np.full(clients, -1)
    for index, group in enumerate(fleet.groups):
        own = np.array(group.ids or (), dtype=np.int64)
        if (own >= clients).any():
            raise ValueError(
                f"fleet: group {group.name}: ids: {own.max()} is not among the run's clients; "
                f"allowed: 0 to {clients - 1}"
            )
        result[own] = index
    others = np.flatnonzero(result < 0)
    sharing = [index for index, group in enumerate(fleet.groups) if group.share is not None]
    if not sharing:
        if len(others):
            raise ValueError(f"fleet: ids: client {others[0]} is in no group; allowed: all, or a group with a share")
        return result
    edges = np.rint(np.cumsum([fleet.groups[index].share for index in sharing]) * len(others)).astype(np.int64)
    edges[-1] = len(others)
    dealt = np.searchsorted(edges, np.arange(len(others)), side="right")
    result[others] = np.array(sharing)[numpy_generator(seed, Purpose.FLEET).permutation(dealt)]
    return result


def _by_client(values: Sequence[float | Spread | Traced], member: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a number for each client, ``[M]``, given that of each group, or how it is spread over its clients.

    Where it comes from a trace, it is NaN.
    """

    def drawn(own: float | Spread | Traced) -> np.ndarray:
        if isinstance(own, Spread):
            return own.median * np.exp(own.sigma * rng.standard_normal(len(member)))
        return np.full(len(member), np.nan if isinstance(own, Traced) else own)

    return np.stack([drawn(own) for own in values])[member, np.arange(len(member))]


def _trace(own: GroupOfDevices, rate: float | Spread | Traced, folder: Path) -> Trace | None:
    """Return the trace that a rate of a group is, given what paths start from; None if it is none."""
    try:
        return read_trace(folder / rate.trace) if isinstance(rate, Traced) else None
    except ValueError as error:
        raise ValueError(f"fleet: group {own.name}: {error}") from error


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
    if own.battery and None in (idle, busy):
        raise ValueError(
            f"fleet: group {own.name}: battery: the power of its device is not known; allowed: with idle_watts and "
            "busy_watts"
        )
    return Group(own.name, profile, times, idle, busy)


def _work_of_file(network: Mapping[str, Any], batch: int, views: int, graded: int) -> Work:
    """Return the work that ``pi_bench.py`` measured; see `simsfl.fleet.profile_files.WorkOf`."""
    return _work(RunConfig(**network), client_of(network), batch, views, graded)


def _work(config: RunConfig, client: FlatModule, batch: int, views: int, graded: int) -> Work:
    """Return the work of a client model; see `Work` for the arguments."""
    one = operations(client, (COLOURS, config.image_size, config.image_size), of_images=True)
    size, images, named = config.image_size**2, config.passes_per_image * batch, network_of(config.network())
    return Work(images, size, one.forward, one.backward, client.size, named, views, graded)
