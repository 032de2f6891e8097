"""Devices in a simulation: some clients of the cohort are real, and the others are simulated as usual."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simsfl.algorithm.aggregation import is_sync_step
from simsfl.algorithm.gathering import completed_rounds
from simsfl.algorithm.observer import Observer
from simsfl.algorithm.plan import RoundPlan
from simsfl.algorithm.wire import NOBODY, DeviceStatus, Wire
from simsfl.cli.session import Stopped
from simsfl.config.constraints import DEVICES, check
from simsfl.hw_profile.devices.hub import Ask, Hub
from simsfl.hw_profile.devices.messages import Message, digest
from simsfl.rounds.recorder import about_part, array, averaged
from simsfl.runs.client_trace import STATE, VIEWS
from simsfl.simulation import Simulation
from simsfl.ui.arguments import seeds_of

log = logging.getLogger("devices")

_WAIT_SECONDS = 0.2
"""Seconds between two looks while no client is left in the round."""
_LARGER = 1000.0
"""How many times as large as the simulation's numbers a device's numbers may be."""


class DeviceLoop(Observer, Wire):
    """Replaces what the simulation computed for devices by what they send, and sends them what they need.

    A device that does not answer in time, or has gone, is absent from then on. A device that comes, or comes back,
    takes part from the next averaging on, where all clients have the same weights, or from the next round on. If all
    clients of the cohort are devices and the last of them goes in the middle of a step, the simulation's own results
    stand in for those that were lost in that step, and the next step waits until a device is there.

    Args:
        simulation: the simulation to observe, whose `wire` this becomes.
        hub: communicates with the devices.
        timeout: seconds that a device has for an answer.

    Attributes:
        waiting: called now and then while devices are waited for.
        is_over: returns whether the run is to end; asked while nobody is left in the round.
        missed: number of answers that were due and did not come.
        done: number of steps that each client's device has taken part in.
        due: number of steps that each client's device would have taken part in without absences.

    Raises:
        ValueError: the run has a setting that devices do not support.
    """

    def __init__(self, simulation: Simulation, hub: Hub, timeout: float):
        check(simulation.config, DEVICES)
        self.simulation, self.hub, self.timeout = simulation, hub, timeout
        self.waiting: Callable[[], None] = lambda: None
        self.is_over: Callable[[], bool] = lambda: False
        self.missed = 0
        self.due, self.done = dict.fromkeys(hub.accounts, 0), dict.fromkeys(hub.accounts, 0)
        self._learns = simulation.parts.hyper.clients_learn
        self._names = averaged(simulation.parts, learns=self._learns)
        self._positions: dict[int, int] = {}
        """Positions in the cohort of the round's clients that are devices, connected or not."""
        self._there: list[int] = []
        self._absent: Collection[int] = NOBODY
        simulation.observers.append(self)
        simulation.wire = self

    def end(self, how: str) -> None:
        """Stop observing, and tell the devices how the run has ended."""
        self.simulation.observers.remove(self)
        self.simulation.wire = Wire()
        self.hub.end(how)

    def round_begins(self, plan: RoundPlan) -> None:
        """Send the cohort's devices what they need for the round, and wait until a client is there; see `Observer`.

        Raises:
            Stopped: the run is to end while no client is in the round.
        """
        self._plan = plan
        self._positions = {
            client: position for position, client in enumerate(plan.cohort.tolist()) if client in self.hub.accounts
        }
        self._there, self._absent = [], NOBODY
        self._admit()
        self._wait_for_somebody()
        if self._nobody_is_left():
            raise Stopped

    def step_is_over(self) -> None:
        """Wait before the next step until a client is left in the round; see `Observer`."""
        if self.simulation.progress.step_index < self.simulation.parts.steps:
            self._wait_for_somebody()

    def up(self, smashed_2Nchw: Tensor) -> tuple[Tensor, Collection[int]]:
        """Return the smashed data with those of the devices in place, and the absent clients' positions; see `Wire`."""
        for client in self._positions:
            self.due[client] += 1
        if not self._there:
            return smashed_2Nchw, self._absent
        whole = smashed_2Nchw.clone().unflatten(0, (2, -1))
        for client, sent in self._collect().items():
            rows = self._rows(client)
            self._put(client, sent, {"query": whole[0, rows], "key": whole[1, rows]})
        for client in self._there:
            self.done[client] += 1
        return whole.flatten(0, 1), self._absent

    def down(self, gradient_Nchw: Tensor) -> Tensor:
        """Send the devices their gradients, or without learning the signal to go on; see `Wire`."""
        step = self.simulation.progress.step_index
        asks = self._ask("weights", step) if self._syncs(step) and self._names else self._ask("smashed", step + 1)
        for client in self._there:
            arrays = {"gradient": array(gradient_Nchw[self._rows(client)])} if self._learns else {}
            self._tell(client, "gradient", step, arrays, asks)
        return gradient_Nchw

    def models_up(self) -> Collection[int]:
        """Put the devices' own weights into the cohort's state before it is averaged; see `Wire`."""
        if self._names and self._there:
            cohort = self.simulation.state.cohort
            for client, sent in self._collect().items():
                position = self._positions[client]
                self._put(client, sent, {name: getattr(cohort, name)[position] for name in self._names})
        return self._absent

    def averaged(self) -> None:
        """Send the devices the average, and admit new devices; see `Observer`."""
        step = self.simulation.progress.step_index - 1
        if self._names:
            for client in self._there:
                self._tell(client, "average", step, self._have(client, self._names), self._ask("smashed", step + 1))
        if step + 1 < self.simulation.parts.steps:
            self._admit()

    def devices(self) -> list[DeviceStatus]:
        """Return the status of each client that may be a device; see `Wire`."""
        present, simulation = self.hub.present(), self.simulation
        at_work = self._there if simulation.progress.finished_rounds < simulation.config.rounds else ()
        presence = {
            client: "away" if client not in present else "at work" if client in at_work else "here"
            for client in self.hub.accounts
        }
        return [DeviceStatus(c, presence[c], **asdict(account)) for c, account in self.hub.accounts.items()]

    def _admit(self) -> None:
        """Send the round to the cohort's devices that are connected but not in the round."""
        for client in self._positions.keys() & self.hub.present() - set(self._there):
            fresh = self.hub.is_fresh(client)
            message = self._round(client, whole=fresh)
            if self.hub.send(client, message, self._ask("smashed", message.step), whole=fresh):
                self._there.append(client)
        self._see_absent()

    def _see_absent(self) -> None:
        absent = frozenset(position for client, position in self._positions.items() if client not in self._there)
        if len(absent) < len(self.simulation.parts.hyper.batches):
            self._absent = absent

    def _nobody_is_left(self) -> bool:
        return not self._there and len(self._positions) == len(self.simulation.parts.hyper.batches)

    def _collect(self) -> dict[int, Mapping[str, np.ndarray]]:
        """Return what the devices in the round answer, by client; those that do not answer leave the round."""
        answers = self.hub.collect(self._there, self.timeout, self.waiting)
        self.missed += len(self._there) - len(answers)
        self._there = [client for client in self._there if client in answers]
        self._see_absent()
        return {client: message.arrays for client, message in answers.items()}

    def _wait_for_somebody(self) -> None:
        """Wait until a client is in the round, or the run is to end."""
        if self._nobody_is_left():
            log.warning("no client is left in the round: waiting")
        while self._nobody_is_left() and not self.is_over():
            self.hub.wait(_WAIT_SECONDS)
            self.waiting()
            self._admit()

    @torch.no_grad()
    def _put(self, client: int, arrays: Mapping[str, np.ndarray], places: Mapping[str, Tensor]) -> None:
        """Copy what a device has sent to where the simulation's own results are; refuse it if it is malformed.

        The device's images may differ from the simulation's, so its numbers may, too, but not by a factor of
        `_LARGER`.
        """
        for name, place in places.items():
            sent, shape = arrays.get(name), tuple(place.shape)
            limit = _LARGER * max(1.0, float(place.abs().max()))
            if sent is None or sent.shape != shape or sent.dtype != np.float32 or not np.abs(sent).max() <= limit:
                allowed = f"float32 of shape {shape}, {limit:.1e} at most"
                self.hub.dismiss(client, f"{name}: has another shape, type or size; allowed: {allowed}")
                self._there.remove(client)
                self._see_absent()
                return
        for name, place in places.items():
            place.copy_(torch.from_numpy(arrays[name]))

    def _rows(self, client: int) -> slice:
        """Return the client's rows in the cohort's batch."""
        batches, position = self.simulation.parts.hyper.batches, self._positions[client]
        first = sum(batches[:position])
        return slice(first, first + batches[position])

    def _syncs(self, step: int) -> bool:
        return is_sync_step(step, self.simulation.parts.steps, self.simulation.config.syncs_per_round)

    def _ask(self, kind: str, step: int) -> Ask | None:
        """Return the answer that is expected for a step of the present round; None after its last step."""
        return (kind, self.simulation.progress.round_index, step) if step < self.simulation.parts.steps else None

    def _tell(self, client: int, kind: str, step: int, arrays: Mapping[str, np.ndarray], asks: Ask | None) -> None:
        self.hub.send(
            client, Message(kind, self.hub.run, client, self.simulation.progress.round_index, step, arrays), asks
        )

    def _have(self, client: int, names: Iterable[str]) -> dict[str, np.ndarray]:
        """Return the client's state in the simulation, by name; empty arrays are left out."""
        cohort, position = self.simulation.state.cohort, self._positions[client]
        return {name: array(getattr(cohort, name)[position]) for name in names if getattr(cohort, name).shape[1]}

    def _round(self, client: int, *, whole: bool) -> Message:
        """Return the message that begins a round, or what is left of it, at a device.

        It has weights (with `whole` the whole state), view parameters, rows of the client's images, learning rates, and
        the steps after which there is an averaging.
        """
        simulation, position = self.simulation, self._positions[client]
        (group,) = self._plan.groups
        places = {row: place for place, row in enumerate(simulation.parts.partition[client].tolist())}
        rows = group.indices[:, position].tolist()
        done = completed_rounds(simulation.state, self._plan.cohort) * simulation.parts.steps
        arrays = self._have(client, STATE if whole else self._names)
        arrays |= {f"views/{name}": array(getattr(group.views, name)[:, :, position]) for name in VIEWS}
        arrays["rows"] = np.array([[places[row] for row in step] for step in rows])
        about = {
            "lr": [
                float(simulation.parts.client_lr(simulation.progress.round_index, done + step)[position])
                for step in range(simulation.parts.steps)
            ],
            "syncs": [step for step in range(simulation.parts.steps) if self._syncs(step)],
        }
        return Message(
            "round",
            self.hub.run,
            client,
            simulation.progress.round_index,
            simulation.progress.step_index,
            arrays,
            about,
        )


def about_run(simulation: Simulation, client: int) -> dict[str, Any]:
    """Return the content of the welcome to a client's device: the run's settings, and the images it should have."""
    learns, pixels = simulation.parts.hyper.clients_learn, own_images(simulation, client)
    return {
        **about_part(simulation.parts, client),
        "learns": learns,
        "averaged": averaged(simulation.parts, learns=learns),
        "config": simulation.config.to_dict(),
        "held": {"count": len(pixels), "sha256": digest(pixels)},
    }


def own_images(simulation: Simulation, client: int) -> np.ndarray:
    """Return the client's images, ``[n, 3, H, H]`` uint8."""
    return simulation.dataset.train.pixels[torch.from_numpy(simulation.parts.partition[client])].cpu().numpy()


def chosen_clients(simulation: Simulation, asked: str | None, count: int | None) -> list[int]:
    """Return the ids of the clients that are devices.

    Args:
        simulation: the run.
        asked: ids separated by commas; None for the first clients to take part.
        count: number of devices; None for one, or for as many as are `asked` for.

    Raises:
        ValueError: an id is no client's or is given twice, `count` differs from the number of ids, or fewer clients
            take part.
    """
    clients = simulation.config.clients
    if asked is not None:
        ids = seeds_of(asked, "device_clients")
        if len(ids) < len(asked.split(",")):
            raise ValueError(f"device_clients: {asked} names one twice; allowed: each once")
        if not all(client < clients for client in ids):
            raise ValueError(
                f"device_clients: {asked} has ids that no client has; allowed: 0 to {clients - 1}, with commas"
            )
        if count not in (None, len(ids)):
            raise ValueError(f"devices: {count} is not the number of device_clients; allowed: {len(ids)}, or no flag")
        return ids
    ids, count = [], count or 1
    for index in range(simulation.config.rounds):
        ids += [client for client in simulation.parts.cohort(index).tolist() if client not in ids]
        if len(ids) >= count:
            return sorted(ids[:count])
    raise ValueError(f"devices: {count} is more than the clients that take part; allowed: 1 to {len(ids)}")
