"""Devices in a simulation: some of the cohort's clients are real, and the rest of it is as it is without them."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hub import Hub
from messages import Message
from simsfl.arguments import seeds_of
from simsfl.capture import CapturedStep
from simsfl.observer import Observer
from simsfl.plan import RoundPlan, draw_cohort
from simsfl.recorder import about_part, array, averaged
from simsfl.simulation import Simulation
from simsfl.state import completed_rounds
from simsfl.step import Batch, Outcome
from simsfl.sync import is_sync_step
from simsfl.trace import STATE, VIEWS
from simsfl.wire import Wire

log = logging.getLogger(__name__)


class DeviceLoop(Observer, Wire):
    """Puts what devices send where the simulation has computed it, and brings them what they need.

    Args:
        simulation: whose `observer` and `wire` it becomes.
        hub: where the devices are.
        timeout: seconds that a device has for a step, after which the round goes on without it.

    Attributes:
        lost: rounds, steps and clients that did not answer in time.

    Raises:
        ValueError: there is something in the run that devices do not do.
    """

    def __init__(self, simulation: Simulation, hub: Hub, timeout: float):
        check(simulation)
        self.simulation, self.hub, self.timeout = simulation, hub, timeout
        self.lost: list[tuple[int, int, int]] = []
        self._there: dict[int, int] = {}
        simulation.observer = simulation.wire = self
        if isinstance(simulation.train_step, CapturedStep):  # a graph has no devices in it
            simulation.train_step = simulation.train_step.train_step

    def end(self) -> None:
        """The run is over: the devices may go."""
        for client in list(self.hub.devices):
            self._tell("bye", client, {})
        self.simulation.observer, self.simulation.wire = Observer(), Wire()

    def round_begins(self, plan: RoundPlan) -> None:
        """See `Observer`: the devices of the cohort get what they need for the round."""
        self.hub.attend()
        cohort = plan.cohort.tolist()
        remote = {client: position for position, client in enumerate(cohort) if client in self.hub.clients}
        self._there = {client: position for client, position in remote.items() if client in self.hub.devices}
        self.absent = frozenset(position for client, position in remote.items() if client not in self._there)
        for client, position in list(self._there.items()):
            self.hub.send(client, self._round(plan, client, position))
        self._drop([client for client in self._there if client not in self.hub.devices])

    def up(self, smashed_2Nchw: Tensor) -> Tensor:
        """See `Wire`."""
        answers = self._collect("smashed")
        batches = self.simulation.hyper.batches
        whole = smashed_2Nchw.clone().unflatten(0, (2, sum(batches)))
        for client, position in list(self._there.items()):
            first = sum(batches[:position])
            rows = slice(first, first + batches[position])
            sent = [answers[client].arrays.get(name) for name in ("query", "key")]
            shape = tuple(whole[0, rows].shape)
            if any(part is None or part.shape != shape or part.dtype != np.float32 for part in sent):
                log.warning("client %d sent other than smashed data of shape %s", client, shape)
                self._drop([client])
                continue
            for side, part in zip(whole, sent, strict=True):
                side[rows] = torch.from_numpy(part).to(whole)
        return whole.flatten(0, 1)

    def down(self, gradient_Nchw: Tensor) -> None:
        """See `Wire`."""
        batches = self.simulation.hyper.batches
        rows = gradient_Nchw.split(list(batches))
        for client, position in self._there.items():
            self._tell("gradient", client, {"gradient": array(rows[position])})

    def averaging(self) -> None:
        """See `Observer`: the devices' own weights are averaged."""
        cohort, names = self.simulation.state.cohort, averaged(self.simulation, learns=True)
        answers = self._collect("weights", self.simulation.step_index - 1)
        for client, position in list(self._there.items()):
            given = answers[client].arrays
            own = {name: getattr(cohort, name)[position] for name in names}
            if any(name not in given or given[name].shape != tuple(row.shape) for name, row in own.items()):
                log.warning("client %d sent other than its weights", client)
                self._drop([client])
                continue
            with torch.no_grad():
                for name, row in own.items():
                    row.copy_(torch.from_numpy(given[name]))

    def averaged(self) -> None:
        """See `Observer`: the devices go on with the average."""
        cohort = self.simulation.state.cohort
        for client, position in self._there.items():
            received = {name: array(getattr(cohort, name)[position]) for name in averaged(self.simulation, learns=True)}
            self._tell("average", client, received, self.simulation.step_index - 1)

    def stepped(self, batch: Batch, outcome: Outcome) -> None:
        """See `Observer`: those who have come are heard."""
        self.hub.attend()

    def _collect(self, kind: str, step: int | None = None) -> dict[int, Message]:
        """Answers of all devices that are there; those that do not answer are not, from then on."""
        step = self.simulation.step_index if step is None else step
        everyone = len(self.simulation.hyper.batches)
        while True:
            answers = self.hub.collect(kind, self._there, self.simulation.round_index, step, self.timeout)
            missing = [client for client in self._there if client not in answers]
            if answers or len(self.absent) + len(missing) < everyone:
                break
            log.warning("no client is left in the round: waiting")
        for client in missing:
            self.lost.append((self.simulation.round_index + 1, step + 1, client))
        self._drop(missing)
        return answers

    def _drop(self, clients: Collection[int]) -> None:
        """The round goes on without them."""
        for client in clients:
            self.absent |= {self._there.pop(client)}
            self.hub.forget(client)

    def _tell(self, kind: str, client: int, arrays: dict[str, np.ndarray], step: int | None = None) -> None:
        simulation = self.simulation
        step = simulation.step_index if step is None else step
        self.hub.send(client, Message(kind, self.hub.run, client, simulation.round_index, step, arrays))

    def _round(self, plan: RoundPlan, client: int, position: int) -> Message:
        """All that a device needs for a round: weights, which images, which views, learning rates."""
        simulation = self.simulation
        cohort, steps = simulation.state.cohort, simulation.steps
        (group,) = plan.groups
        own = simulation.partition[client]
        places = {row: place for place, row in enumerate(own.tolist())}
        rows = group.indices[:, position].tolist()
        done = completed_rounds(simulation.state, plan.cohort) * steps
        rates = [float(simulation.client_lr(done + step)[position]) for step in range(steps)]
        fresh = client in self.hub.fresh
        self.hub.fresh.discard(client)
        names = [
            name for name in (STATE if fresh else averaged(simulation, learns=True)) if getattr(cohort, name).shape[1]
        ]
        arrays = {name: array(getattr(cohort, name)[position]) for name in names}
        arrays |= {f"views/{name}": array(getattr(group.views, name)[:, :, position]) for name in VIEWS}
        arrays["rows"] = np.array([[places[row] for row in step] for step in rows])
        syncs = simulation.config.syncs_per_round
        about = {
            "lr": rates,
            "first": simulation.step_index,
            "syncs": [step for step in range(steps) if is_sync_step(step, steps, syncs)],
        }
        return Message("round", self.hub.run, client, simulation.round_index, 0, arrays, about)


def about_run(simulation: Simulation) -> dict[str, Any]:
    """What a device is told of the run when it comes."""
    held = {str(client): int(count) for client, count in enumerate(simulation.partition.sizes)}
    about = about_part(simulation, 0)  # what it says of the client is the same of all
    return {
        **about,
        "averaged": averaged(simulation, learns=True),
        "config": simulation.config.to_dict(),
        "images_held": held,
    }


def chosen_clients(simulation: Simulation, asked: str | None, count: int) -> list[int]:
    """The clients that are devices.

    Raises:
        ValueError: there are no such clients, or not so many.
    """
    clients = simulation.config.clients
    if asked is not None:
        ids = seeds_of(asked, "device_clients")
        if not all(client < clients for client in ids):
            raise ValueError(f"device_clients: {asked} are not all clients; allowed: 0 to {clients - 1}, by comma")
        return ids
    first = draw_cohort(simulation.groups, simulation.finished_rounds, simulation.config.seed)[0]
    if count > len(first):
        raise ValueError(f"devices: {count} are more than the cohort; allowed: 1 to {len(first)}")
    return sorted(first.tolist()[:count])


def check(simulation: Simulation) -> None:
    """Raise a ValueError for runs that devices take no part in."""
    config = simulation.config
    if config.method != "mocosfl" or config.supervised:
        raise ValueError("devices: take part in contrastive split learning alone; allowed: --method mocosfl")
    for name in ("unequal", "loss_threshold", "ressfl_lambda", "aux_dataset", "divergence_tau"):
        if getattr(config, name):
            raise ValueError(f"{name}: is not for runs with devices; allowed: without it")
    if config.client_lr == 0:
        raise ValueError("client_lr: frozen clients' devices are not supported; allowed: more than 0")
    if config.precision != "fp32":
        raise ValueError(f"precision: {config.precision} is not for runs with devices; allowed: fp32")
