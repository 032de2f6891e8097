"""The figure about a run in a fleet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from simsfl.ui.fleet import ENERGY_UNITS, HATCHES, TIME_UNITS, WAITS, unit_for
from simsfl.ui.plot_text import literal

_PARTS = {"compute": WAITS["compute"][1], "transfer": WAITS["up"][1], "wait": "#bbbbbb"}
"""Colours of what a client does in a round."""
_STYLE = {"figure.dpi": 120, "axes.grid": True, "grid.alpha": 0.25, "font.size": 9}


def draw(story: Mapping[str, Any]) -> Figure:
    """Draw accuracy against time and energy, what the time goes into, and what the clients of each group do.

    Args:
        story: what `simsfl.cli.fleet.story.told` returns.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(9, 6), layout="constrained")
        (time, energy), (phases, groups) = figure.subplots(2, 2)
        _curve(time, story["evaluations"], "hours", "time of the fleet", TIME_UNITS)
        _curve(energy, story["evaluations"], "wh_per_client", "energy of a client, on average", ENERGY_UNITS)
        _phases(phases, story["phases"])
        _groups(groups, story["groups"])
    return figure


def _curve(
    axes: mpl.axes.Axes,
    evaluations: list[Mapping[str, Any]],
    name: str,
    label: str,
    units: Sequence[tuple[str, float]],
) -> None:
    """Draw kNN accuracy against what has been spent, if that is known, in one of some units."""
    known = [own for own in evaluations if own[name] is not None]
    unit, scale = unit_for(max((own[name] for own in known), default=1.0), units)
    points = [(scale * own[name], own["knn_top1"]) for own in known]
    axes.set(xlabel=f"{label} [{unit}]", ylabel="kNN top-1 [%]")
    if points:
        axes.plot(*zip(*points, strict=True), "o-", color=_PARTS["compute"], markersize=4)
    else:
        axes.text(0.5, 0.5, "not known: the fleet gives\nno power", ha="center", va="center", transform=axes.transAxes)


def _phases(axes: mpl.axes.Axes, phases: Mapping[str, float]) -> None:
    """Draw the time in which everyone waited for each phase."""
    names, colours = zip(*WAITS.values(), strict=True)
    unit, scale = unit_for(max(phases.values()) / 3600, TIME_UNITS)
    axes.barh(names, [scale * phases[phase] / 3600 for phase in WAITS], color=colours)
    axes.invert_yaxis()
    axes.set(xlabel=f"time that all wait for it [{unit}]")


def _groups(axes: mpl.axes.Axes, groups: list[Mapping[str, Any]]) -> None:
    """Draw how clients of each group spend their rounds; scaled times are hatched, published ones dotted."""
    parts = ("compute", "computing"), ("transfer", "sending, receiving"), ("wait", "waiting")
    hours = {part: np.array([own[f"{part}_seconds"] / 3600 for own in groups]) for part, _ in parts}
    unit, scale = unit_for(sum(hours.values()).max(), TIME_UNITS)
    left = np.zeros(len(groups))
    labels = [literal(f"{own['name']} ({own['clients']:,})", 24) for own in groups]
    for part, name in parts:
        bars = axes.barh(labels, scale * hours[part], left=left, color=_PARTS[part], label=name)
        for bar, own in zip(bars, groups, strict=True):
            if part == "compute":
                bar.set(hatch=HATCHES[own["times"]], edgecolor="white")
        left += scale * hours[part]
    axes.invert_yaxis()
    axes.set(xlabel=f"time of a client [{unit}] (hatched: scaled; dotted: published)")
    axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1), ncols=3, fontsize=8, frameon=False)
