"""The numbers behind figures: values of the runs of a setting at the places that all of them have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from simsfl.cli.report.runs import Run

STEPS, SENT, ROUNDS = "training step", "sent and received per client [MB]", "round"
HOURS, ENERGY = "hours of the fleet", "energy per client [Wh]"
"""What values are shown against: names of horizontal axes, of which the last two are for runs with a fleet."""
_POINTS = 1000
"""Most points of a curve that has a value for each step."""


@dataclass(frozen=True)
class Curve:
    """Values of the runs of a setting, at n places."""

    at: Mapping[str, np.ndarray]
    """The places by the name of their axis, of shape ``[n]`` each."""
    values: np.ndarray
    """The values, of shape ``[runs, n]``."""
    own_std: np.ndarray | None = None
    """Standard deviation within a single run, of shape ``[n]``, where that has one."""

    @cached_property
    def mean(self) -> np.ndarray:
        """Return the mean over runs, of shape ``[n]``."""
        return self.values.mean(axis=0)

    @cached_property
    def std(self) -> np.ndarray | None:
        """Return the sample standard deviation over several runs, or that within one, of shape ``[n]``, or None."""
        return self.values.std(axis=0, ddof=1) if len(self.values) > 1 else self.own_std

    def thinned(self) -> Curve:
        """Return the curve with evenly spaced ones of its places, `_POINTS` at most, the first and last among them."""
        count = self.values.shape[1]
        few = np.unique(np.linspace(0, count - 1, _POINTS).astype(int))
        own_std = None if self.own_std is None else self.own_std[few]
        return Curve({axis: places[few] for axis, places in self.at.items()}, self.values[:, few], own_std)


def of_steps(runs: Sequence[Run], values: Sequence[Sequence[float]]) -> Curve | None:
    """Return the values of each step, as far as all runs that have begun have come; None if none has.

    Args:
        runs: runs of a setting.
        values: the values of each run's steps; empty for one that has not begun.
    """
    begun = [(run, own) for run, own in zip(runs, values, strict=True) if own]
    if not begun:
        return None
    count = min(len(own) for _, own in begun)
    steps = np.arange(1, count + 1)
    at = {STEPS: steps}
    for axis, places in _spent([run for run, _ in begun]).items():
        each = [np.interp(steps, run.steps, own) for (run, _), own in zip(begun, places, strict=True)]
        at[axis] = np.mean(each, axis=0)
    return Curve(at, np.array([own[:count] for _, own in begun]))


def of_rounds(runs: Sequence[Run], values: Sequence[Mapping[int, float]]) -> Curve | None:
    """Return the values at the rounds that all runs with values have in common; None if there are no such rounds.

    Args:
        runs: runs of a setting.
        values: the values of each run, by round; empty for one that has none.
    """
    kept = [(run, own) for run, own in zip(runs, values, strict=True) if own]
    rounds = sorted(set.intersection(*(set(own) for _, own in kept))) if kept else []
    if not rounds:
        return None
    at = {ROUNDS: np.array(rounds)}
    spent = {STEPS: [run.steps for run, _ in kept], **_spent([run for run, _ in kept])}
    for axis, places in spent.items():
        # a round is evaluated before it is recorded
        at[axis] = np.mean([[own[min(number, len(own) - 1)] for number in rounds] for own in places], axis=0)
    return Curve(at, np.array([[own[number] for number in rounds] for _, own in kept]))


def of_each_round(runs: Sequence[Run], key: str, scale: float = 1.0) -> Curve | None:
    """Return a value of the records of rounds, as `of_rounds` does; rounds in which it is None are left out.

    Args:
        runs: runs of a setting.
        key: name of the value, a field of `simsfl.runs.metrics.RoundRecord`.
        scale: what the values are multiplied by.
    """
    return of_rounds(runs, [_by_round(run.history.rounds, key, scale) for run in runs])


def knn(runs: Sequence[Run]) -> Curve | None:
    """Return the kNN accuracy at each evaluation in percent, as `of_rounds` does."""
    return of_rounds(runs, [_by_round(run.history.evaluations, "knn_top1", 1.0) for run in runs])


def spread(runs: Sequence[Run]) -> Curve | None:
    """Return the spread of the networks' outputs in percent of the highest possible, as `of_rounds` does."""
    return of_rounds(runs, [{one.round: one.percent for one in run.spreads} for run in runs])


def absent(runs: Sequence[Run]) -> Curve | None:
    """Return the percentage of the clients drawn that were late or away in each round, as `of_rounds` does."""
    return of_rounds(
        runs, [{one["round"]: _absent(one["groups"].values()) for one in run.history.fleet} for run in runs]
    )


def _absent(groups: Iterable[Mapping[str, int]]) -> float:
    """Return the percentage of the clients drawn of some groups that were late or away."""
    groups = list(groups)
    return 100.0 * sum(own["late"] + own["away"] for own in groups) / max(1, sum(own["drawn"] for own in groups))


def divergence(runs: Sequence[Run]) -> Curve | None:
    """Return the mean over the cohort of its models' distances to their average, at each averaging, against rounds.

    The standard deviation of a single run is that over the cohort. None where no run has recorded it.
    """
    recorded = [run.history.syncs for run in runs if run.history.syncs]
    if not recorded:
        return None
    count, steps = min(map(len, recorded)), max(record["step"] for syncs in recorded for record in syncs)
    at = np.array([record["round"] - 1 + record["step"] / steps for record in recorded[0][:count]])
    mean, std = (
        np.array([[record[key] for record in syncs[:count]] for syncs in recorded])
        for key in ("divergence_mean", "divergence_std")
    )
    return Curve({ROUNDS: at}, mean, std[0])


def smoothed(curve: Curve) -> Curve:
    """Return a curve of steps with the means over a window of a fortieth of them around each, smaller at the ends.

    >>> def values(*own):
    ...     return smoothed(Curve({}, np.array([own]))).values[0].tolist()
    >>> values(0.0, 1.0, 2.0, 3.0), values(*[0.0, 3.0, 0.0] * 40)[1:4]
    ([0.0, 1.0, 2.0, 3.0], [1.0, 1.0, 1.0])
    """
    count = curve.values.shape[1]
    total = np.cumsum(np.pad(curve.values, ((0, 0), (1, 0))), axis=1)
    at = np.arange(count)
    reach = np.minimum(count // 80, np.minimum(at, count - 1 - at))
    return Curve(curve.at, (total[:, at + reach + 1] - total[:, at - reach]) / (2 * reach + 1))


def _by_round(records: Sequence[Mapping[str, Any]], key: str, scale: float) -> dict[int, float]:
    """Return a value of records, multiplied by `scale`, by round; those that are None are left out."""
    return {record["round"]: scale * record[key] for record in records if record[key] is not None}


def _spent(runs: Sequence[Run]) -> dict[str, list[list[float]]]:
    """Return what each run has spent in the beginning and at the end of each round, by the axes that all runs have."""
    each = [_spent_by(run) for run in runs]
    return {axis: [own[axis] for own in each] for axis in each[0] if all(axis in own for own in each)}


def _spent_by(run: Run) -> dict[str, list[float]]:
    """Return what a run has spent in the beginning and at the end of each round, by axis: traffic, time and energy."""
    rounds = run.history.rounds
    found = {SENT: [0.0] + [(one["bytes_up_per_client"] + one["bytes_down_per_client"]) / 1e6 for one in rounds]}
    fleet = run.history.fleet[: len(rounds)]
    if fleet and len(fleet) == len(rounds):
        found[HOURS] = [0.0] + [one["clock"] / 3600 for one in fleet]
        if all(one["wh"] is not None for one in fleet):
            found[ENERGY] = [0.0, *np.cumsum([one["wh"] for one in fleet]) / run.config["clients"]]
    return found
