"""Device profiles: what a device takes for a client's work, measured, and scaled to work that was not measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from simsfl.system.decoding import Ordinal

PHASES = ("views", "query", "momentum", "key", "backward", "sgd", "sync")
"""Phases of a client's step and averaging, as ``pi_bench.py`` measures them."""
PASSES = ("query", "key", "backward")
"""Phases that are passes through a model."""
MEASURED, SCALED, PUBLISHED = "measured", "scaled", "published"
"""How the times of some work are known."""
FEWEST = 3
"""Largest number of points with which there is no choice between `RULES`."""


@dataclass(frozen=True)
class Network:
    """The fields of a config that a client's work depends on, besides its batch and what it learns from."""

    image_size: Ordinal
    arch: str
    width: Ordinal
    norm: str
    cut_layer: Ordinal
    bottleneck: str | None
    client_residual: bool
    weight_standardisation: bool
    options: dict[str, str | bool | int | float | None] = field(default_factory=dict)


_KEPT = ("arch", "options", "norm", "weight_standardisation")
"""Fields of a network that have to be equal: what they change is not in proportion to what is counted."""


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
        source: how they are known: ``measured``, if this very work was; ``scaled`` from other work that was; or
            computed from a ``published`` speed.
    """

    seconds: Mapping[str, float]
    source: str

    @property
    def measured(self) -> bool:
        """Return whether this very work was measured."""
        return self.source == MEASURED

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
    """What is known of a device.

    Attributes:
        device: name of the device.
        points: measured work, and the seconds of each of the `PHASES`.
        idle_watts: power of the device while it waits; None where it is not known.
        busy_watts: power while it works; None where it is not known.
        flops: operations in a second, where these are published instead of points; else None.
        of_others: whether all points are of other networks than what is asked for, such as another cut layer.
    """

    device: str
    points: Sequence[tuple[Work, Mapping[str, float]]]
    idle_watts: float | None = None
    busy_watts: float | None = None
    flops: float | None = None
    of_others: bool = False

    def fitting(self, work: Work) -> Profile:
        """Return the profile for some work, with the points alone that it can be scaled from.

        Raises:
            ValueError: no point is of such a network.
        """
        points = [point for point in self.points if not _differences(point[0], work)]
        if points or self.flops:
            return replace(self, points=points, of_others=all(point.named != work.named for point, _ in points))
        nearest = min((_differences(point, work) for point, _ in self.points), key=len)
        raise ValueError(
            f"{'; '.join(nearest)}; allowed: a profile of the run's {', '.join(_KEPT)}, which pi_bench.py measures "
            "with --arch, or with --replay of a trace of the run"
        )

    def times(self, work: Work) -> Times:
        """Return what the device takes for some work: as measured, scaled by `rule`, or by its published speed."""
        if self.flops:
            amounts = work.amounts()
            return Times({phase: amounts[phase] / self.flops * (phase in PASSES) for phase in PHASES}, PUBLISHED)
        for point, seconds in self.points:
            if point == work:
                return Times(seconds, MEASURED)
        return Times(RULES[self.rule](self.points, work), SCALED)

    @property
    def rule(self) -> str:
        """Return the name of the one of `RULES` whose errors between the measured points have the smallest mean.

        With few points there is no choice, and it is the first.
        """
        if len(self.points) <= FEWEST:
            return next(iter(RULES))
        return min(RULES, key=lambda rule: sum(self._errors(rule)))

    def error(self) -> float | None:
        """Return the largest relative error of a step's time that scaling makes between the measured points.

        Each point is scaled from the others (leave one out), and if the profile is `of_others`, from those of other
        networks; None where there are none.
        """
        return max(self._errors(self.rule), default=None)

    def _errors(self, rule: str) -> list[float]:
        """Return the relative error of each point's step, as `error` describes it, by one of the `RULES`."""
        errors = []
        for work, seconds in self.points:
            others = [one for one in self.points if (one[0].named != work.named if self.of_others else one[0] != work)]
            if others:
                scaled, true = Times(RULES[rule](others, work), SCALED), Times(seconds, MEASURED)
                errors.append(abs((scaled.before + scaled.after) / (true.before + true.after) - 1))
        return errors


_Points = Sequence[tuple[Work, Mapping[str, float]]]


def _nearest(points: _Points, work: Work) -> dict[str, float]:
    """Return the seconds of each phase, in proportion to those of the point whose passes are most alike."""
    nearest = min(points, key=lambda own: own[0].distance(work))
    return {
        phase: sum(seconds * wanted / own for own, seconds in known)
        for phase, wanted, known in _samples([nearest], work)
    }


def _line(points: _Points, work: Work) -> dict[str, float]:
    """Return the seconds of each phase on a line: those that it takes in any case, and those in proportion to its work.

    Neither is negative, and relative errors are smallest in the sense of least squares.
    """
    from scipy.optimize import nnls  # noqa: PLC0415  (a board that is measured does without it)

    found = {}
    for phase, wanted, known in _samples(points, work):
        found[phase] = 0.0
        if known:
            own, seconds = np.array(known).T
            largest = own.max()  # so that both columns are of the same size
            (fixed, slope), _ = nnls(np.stack([1 / seconds, own / largest / seconds], axis=1), np.ones(len(known)))
            found[phase] = float(fixed + slope * wanted / largest)
    return found


def _own_line(points: _Points, work: Work) -> dict[str, float]:
    """Return what `_line` returns of the points of the very network, if there are two or more; else of all."""
    own = [point for point in points if point[0].named == work.named]
    return _line(own if len(own) > 1 else points, work)


def _samples(points: _Points, work: Work) -> Iterator[tuple[str, float, list[tuple[float, float]]]]:
    """Yield each phase, how much of it some work has, and how much of it each point has, with its seconds.

    Points without such a phase are left out, and so are all where the work has none of it. Where no point has a pass
    of keys, that of the query stands for it, which is the same.
    """
    amounts = [(point.amounts(), seconds) for point, seconds in points]
    for phase, wanted in work.amounts().items():
        known: list[tuple[float, float]] = []
        for like in (phase, "query") if phase == "key" else (phase,):
            known = known or [
                (own[like], seconds[like]) for own, seconds in amounts if own[like] and seconds[like] and wanted
            ]
        yield phase, wanted, known


RULES: Mapping[str, Callable[[_Points, Work], dict[str, float]]] = {
    "nearest": _nearest,
    "line": _line,
    "line of the network": _own_line,
}
"""Ways to scale the seconds of measured points to other work, by name."""


def _differences(point: Work, work: Work) -> list[str]:
    """Return how a network differs in what scaling does not know of, such as "arch is resnet18 there, resnet8 here"."""
    pairs = ((name, point.named.get(name), work.named.get(name)) for name in _KEPT)
    return [f"{name} is {there} there, and {here} here" for name, there, here in pairs if there != here]
