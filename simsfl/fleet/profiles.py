"""Device profiles: what a device takes for a client's work, measured, and scaled to work that was not measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from simsfl.system.decoding import Amount, Ordinal, decode, read_json
from simsfl.system.messages import shortened

PHASES = ("views", "query", "momentum", "key", "backward", "sgd", "sync")
"""Phases of a client's step and averaging, as ``pi_bench.py`` measures them."""


@dataclass(frozen=True)
class Work:
    """What a client computes in a step, in numbers that its time grows with.

    Attributes:
        images: images of a batch.
        pixels: pixels of an image, counted once for all colours.
        forward: operations of a forward pass, for an image.
        backward: operations of a backward pass, for an image.
        weights: weights of the client model.
        named: the network and its cut, by field of the config; equal names mean the same network.
        views: views of an image that go forward: the query's, and with a momentum model the key's.
        graded: views of an image that a backward pass follows; 0 for clients that do not learn.
    """

    images: int
    pixels: int
    forward: int
    backward: int
    weights: int
    named: Mapping[str, Any]
    views: int = 2
    graded: int = 1

    def amounts(self) -> dict[str, float]:
        """Return what the time of each of the `PHASES` is proportional to."""
        return {
            "views": self.images * self.pixels * self.views,
            "query": self.images * self.forward * max(1, self.graded),
            "momentum": self.weights,
            "key": self.images * self.forward * max(0, self.views - max(1, self.graded)),
            "backward": self.images * self.backward * self.graded,
            "sgd": self.weights if self.graded else 0,
            "sync": self.weights,
        }

    def distance(self, other: Work) -> float:
        """Return how many times as much work one is as the other, from 1 on: the work of the passes, which is most."""
        own, others = (
            work.images * (work.views * work.forward + work.graded * work.backward) for work in (self, other)
        )
        return max(own, others) / max(1, min(own, others))


@dataclass(frozen=True)
class Times:
    """What a device takes for some work.

    Attributes:
        seconds: seconds of each of the `PHASES`.
        measured: whether this very work was measured; else it is scaled.
    """

    seconds: Mapping[str, float]
    measured: bool

    @property
    def before(self) -> float:
        """Return the seconds of a step before the client sends: views, and the passes forward."""
        return sum(self.seconds[phase] for phase in ("views", "query", "momentum", "key"))

    @property
    def after(self) -> float:
        """Return the seconds of a step after the gradient has come."""
        return self.seconds["backward"] + self.seconds["sgd"]


@dataclass(frozen=True)
class Profile:
    """What was measured on a device.

    Attributes:
        device: name of the device.
        points: measured work, and the seconds of each of the `PHASES`.
        idle_watts: power of the device while it waits; None where it was not measured.
        busy_watts: power while it works; None where it was not measured.
    """

    device: str
    points: Sequence[tuple[Work, Mapping[str, float]]]
    idle_watts: float | None = None
    busy_watts: float | None = None

    def times(self, work: Work) -> Times:
        """Return what the device takes for some work: as measured, or scaled from the nearest work that was.

        The time of each phase is scaled by `Work.amounts`: operations for the passes, pixels for the views, and weights
        for what goes over the model.
        """
        for point, seconds in self.points:
            if point == work:
                return Times(seconds, measured=True)
        point, seconds = min(self.points, key=lambda own: own[0].distance(work))
        own, wanted = point.amounts(), work.amounts()
        if not own["key"] and wanted["key"]:  # the same pass as the query's
            own["key"], seconds = own["query"], {**seconds, "key": seconds["query"]}
        scaled = {phase: seconds[phase] * wanted[phase] / own[phase] if own[phase] else 0.0 for phase in PHASES}
        return Times(scaled, measured=False)

    def error(self) -> float | None:
        """Return the largest relative error of a step's time that scaling makes between the measured points.

        Each point is scaled from the others (leave one out); None where there is a single one.
        """
        if len(self.points) < 2:
            return None
        errors = []
        for index, (work, seconds) in enumerate(self.points):
            others = replace(self, points=[*self.points[:index], *self.points[index + 1 :]])
            scaled, true = others.times(work), Times(seconds, measured=True)
            errors.append(abs((scaled.before + scaled.after) / (true.before + true.after) - 1))
        return max(errors)


@dataclass(frozen=True)
class _Energy:
    """The part of a result's energy that a profile uses, in watts."""

    mean_watts: Amount
    idle_before: Amount
    idle_after: Amount


@dataclass(frozen=True)
class _Network:
    """The part of a result's trace that a profile uses."""

    batch_size: Ordinal
    image_size: Ordinal
    arch: str
    width: Ordinal
    norm: str
    cut_layer: Ordinal
    bottleneck: str | None
    client_residual: bool
    weight_standardisation: bool
    head: str
    key_dim: Ordinal


def read_profile(paths: Sequence[Path], work_of: Callable[[Mapping[str, Any]], Work]) -> Profile:
    """Return what was measured on a device, from one ``result.json`` of ``pi_bench.py`` or several.

    Args:
        paths: the files.
        work_of: returns the work of a client, given the fields of its network and its batch size.

    Raises:
        ValueError: a file is no such result, or they are of different devices.
    """
    points, devices, watts = [], {}, []
    for path in paths:
        content = read_json(path)
        try:
            network = decode(_Network, _some(content["trace"], _Network))
            latency = {
                phase: float(content["latency"][phase]["mean"]) for phase in PHASES if phase in content["latency"]
            }
            energy = content["energy"] and decode(_Energy, _some(content["energy"], _Energy))
            devices[content["board"]["model"]] = path
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path} is no result of pi_bench.py ({shortened(str(error))})") from error
        points.append((work_of(vars(network)), {phase: latency.get(phase, 0.0) for phase in PHASES}))
        if energy:
            watts.append(((energy.idle_before + energy.idle_after) / 2, energy.mean_watts))
    if len(devices) > 1:
        raise ValueError(f"{' and '.join(map(str, devices.values()))} are of different devices; allowed: of one")
    idle, busy = np.mean(watts, axis=0).tolist() if watts else (None, None)
    return Profile(next(iter(devices)), points, idle, busy)


def _some(values: Mapping[str, Any], kind: type) -> dict[str, Any]:
    """Return those of some values that are fields of a record."""
    names = {field.name for field in fields(kind)}
    return {name: value for name, value in values.items() if name in names}
