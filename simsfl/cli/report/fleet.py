"""Figures about runs in a fleet: accuracy against its time and energy, what these go into, and who is left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from simsfl import Simulation
from simsfl.cli.report import curves
from simsfl.cli.report.curves import ENERGY, HOURS, SENT
from simsfl.cli.report.drawing import band, below, legend, style, subplots
from simsfl.cli.report.runs import Run
from simsfl.runs.fleet_totals import FleetClients, fared, phase_seconds, times_known
from simsfl.ui.fleet import ENERGY_UNITS, HATCHES, TIME_UNITS, WAITS, unit_for
from simsfl.ui.plot_text import literal

_BINS = 20
"""Bins of histograms of clients."""
_NEVER, _LATE = "#888888", "#ee6677"
"""Colours of clients that never came, and of those that were late too often."""
_LINES = {"measured": "-", "scaled": "--", "published": ":"}
"""Lines of curves against time and energy, by how the times of the devices are known that are known least."""
_SPENT = {
    HOURS: ("time of the fleet", TIME_UNITS),
    ENERGY: ("energy per client", ENERGY_UNITS),
    SENT: ("traffic per client", (("kB", 1e3), ("MB", 1.0), ("GB", 1e-3))),
}
"""What accuracy is drawn against: its name, and the units that it may have."""
_ABOVE = {
    **{"loc": "lower center", "bbox_to_anchor": (0.45, 1), "frameon": False},
    **{"fontsize": 7, "handlelength": 1, "columnspacing": 0.8},
}
"""Where and how a legend stands above its axes."""


def fleet_figures(settings: Mapping[str, Sequence[Run]]) -> dict[str, tuple[str, Figure]]:
    """Draw the figures of those runs that have a fleet, with their titles, by file name; none where no run has one.

    Args:
        settings: the runs of each setting, by its label.
    """
    told = {label: [run for run in own if run.history.fleet] for label, own in settings.items()}
    if not any(told.values()):
        return {}
    return {
        "fleet": ("Accuracy against time, energy and traffic of the fleet", _accuracy(told)),
        "fleet_work": ("What the fleet waits for, and who is late or away", _work(told)),
    }


def _accuracy(settings: Mapping[str, Sequence[Run]]) -> Figure:
    """Draw kNN accuracy against the time, and against energy and traffic of a client, on average over all clients."""
    figure, axes = subplots(1, 3, figsize=(7.2, 2.8), sharey=True)
    found = {label: curves.knn(own) if own else None for label, own in settings.items()}
    known = {label: _known_least(own) for label, own in settings.items()}
    kinds = set()
    for axis, (places, (name, units)) in zip(axes, _SPENT.items(), strict=True):
        drawn = {label: curve for label, curve in found.items() if curve and places in curve.at}
        unit, scale = unit_for(max((curve.at[places].max() for curve in drawn.values()), default=1.0), units)
        for number, label in enumerate(settings):
            if curve := drawn.get(label):
                how = style(number) | {"marker": ".", "markersize": 4}
                if places != SENT:  # bytes are counted in any case
                    how["linestyle"] = _LINES[known[label]]
                    kinds.add(known[label])
                band(axis, places, replace(curve, at={places: scale * curve.at[places]}), how, label)
        axis.set_xlabel(f"{name} [{unit}]")
        axis.locator_params(axis="x", nbins=4)
        if not drawn:
            axis.text(0.5, 0.5, "not known", ha="center", va="center", transform=axis.transAxes)
    axes[0].set_ylabel("kNN accuracy [%]")
    lines = [Line2D([], [], color="black", linestyle=_LINES[kind], label=f"times {kind}") for kind in _LINES]
    axes[0].legend(**_ABOVE, handles=[line for kind, line in zip(_LINES, lines, strict=True) if kind in kinds], ncols=3)
    legend(figure, axes[2], room=1)
    return figure


def _known_least(runs: Sequence[Run]) -> str:
    """Return how the times of those devices are known, of all runs, that are known least."""
    return times_known([record for run in runs for record in run.history.fleet])[1]


def _work(settings: Mapping[str, Sequence[Run]]) -> Figure:
    """Draw what everyone waits for, who of each group did not come, and time and energy of all clients."""
    clients = {label: [run.fleet_clients for run in own if run.fleet_clients] for label, own in settings.items()}
    known = any(clients.values())
    height = 2.3 + 0.12 * len(settings) + 2.2 * known
    figure, axes = subplots(1 + known, 2, figsize=(7.2, height), squeeze=False)
    _waits(axes[0, 0], settings)
    _absent(axes[0, 1], settings)
    if known:
        _spread(axes[1], clients)
    if len(settings) > 1:
        below(figure, {label: Patch(color=style(number)["color"]) for number, label in enumerate(settings)})
    return figure


def _waits(axis: Any, settings: Mapping[str, Sequence[Run]]) -> None:
    """Draw the time of each setting as a bar of what everyone waited for, on average over its runs."""
    left = np.zeros(len(settings))
    seconds = [[phase_seconds(run.history.fleet) for run in own] or [{}] for own in settings.values()]
    hours = {phase: [np.mean([one.get(phase, 0.0) for one in own]) / 3600 for own in seconds] for phase in WAITS}
    unit, scale = unit_for(max(map(sum, zip(*hours.values(), strict=True))), TIME_UNITS)
    for phase, (name, colour) in WAITS.items():
        widths = scale * np.array(hours[phase])
        if widths.any():
            bars = axis.barh(range(len(settings)), widths, left=left, color=colour, label=name, height=0.6)
            if phase == "compute":
                for bar, own in zip(bars, settings.values(), strict=True):
                    bar.set(hatch=HATCHES[_known_least(own)], edgecolor="white")
        left += widths
    axis.set(yticks=[], ylim=(len(settings) - 0.4, -0.6), xlim=(0, 1.05 * left.max() or None))
    if len(settings) > 1:
        for number in range(len(settings)):  # beside each bar, the colour of its setting
            place = {"transform": axis.get_yaxis_transform(), "clip_on": False}
            axis.plot(-0.03, number, "s", color=style(number)["color"], markersize=6, **place)
    axis.set_xlabel(f"time that all wait [{unit}] (hatched: scaled; dotted: published)", fontsize=8)
    axis.legend(**_ABOVE, ncols=len(WAITS))


def _absent(axis: Any, settings: Mapping[str, Sequence[Run]]) -> None:
    """Draw the share of those drawn of each group that was late, and above it that which was away, by setting."""
    found = [fared([record for run in own for record in run.history.fleet]) for own in settings.values()]
    names = list(dict.fromkeys(name for own in found for name in own))
    width, most = 0.8 / len(settings), 1.0
    for number, own in enumerate(found):
        at = np.arange(len(names)) + (number - (len(settings) - 1) / 2) * width
        drawn, late, away = (
            np.array([own.get(name, {}).get(what, 0) for name in names]) for what in ("drawn", "late", "away")
        )
        late, away = (100 * counts / np.maximum(1, drawn) for counts in (late, away))
        most, colour = max(most, *(late + away)), style(number)["color"]
        axis.bar(at, late, width, color=colour)
        axis.bar(at, away, width, bottom=late, color=colour, alpha=0.35)
    axis.set_xticks(range(len(names)), [literal(name, 16) for name in names], fontsize=8)
    axis.set(ylabel="of those drawn [%]", ylim=(0, 1.05 * most))
    axis.grid(visible=False, axis="x")
    kinds = [Patch(color="black", label="late"), Patch(color="black", alpha=0.35, label="away")]
    axis.legend(**_ABOVE, handles=kinds, ncols=2)


def _spread(axes: Any, clients: Mapping[str, Sequence[FleetClients]]) -> None:
    """Draw histograms of time and energy of clients on two axes: of a single setting by group, else by setting."""
    if len(clients) == 1:
        ((_, own),) = clients.items()
        groups = sorted({name for one in own for name in one.group.tolist()})
        parts = {literal(name): [(one, one.group == name) for one in own] for name in groups}
    else:
        parts = {label: [(one, np.ones(len(one.group), bool)) for one in own] for label, own in clients.items()}
    kinds = ("hours", "time of a client in rounds", TIME_UNITS), ("wh", "energy of a client", ENERGY_UNITS)
    for axis, (what, label, units) in zip(axes, kinds, strict=True):
        values = {name: [getattr(one, what)[mine] for one, mine in own] for name, own in parts.items() if own}
        known = {name: flat for name, own in values.items() if len(flat := _known(np.concatenate(own)))}
        unit, scale = unit_for(max((flat.max() for flat in known.values()), default=1.0), units)
        axis.set(xlabel=f"{label} [{unit}]", ylabel="clients [%]")
        if not known:
            axis.text(0.5, 0.5, "not known", ha="center", va="center", transform=axis.transAxes)
            continue
        known = {name: scale * flat for name, flat in known.items()}
        edges = np.histogram_bin_edges(np.concatenate(list(known.values())), _BINS)
        for number, name in enumerate(parts):
            if name in known:
                share = 100 * np.histogram(known[name], edges)[0] / len(known[name])
                axis.stairs(share, edges, color=style(number)["color"], linewidth=1.3, label=name)
    if len(clients) == 1:
        axes[0].legend(fontsize=7)


def _known(values: np.ndarray) -> np.ndarray:
    """Return those of some numbers that are not NaN."""
    return values[~np.isnan(values)]


def excluded(run: Run, clients: FleetClients, simulation: Simulation) -> Figure:
    """Draw the share of each class's images that clients hold who are left out, beside the accuracy on that class.

    Args:
        run: the run.
        clients: what its clients have done in the fleet.
        simulation: the run, with its images.
    """
    labels = simulation.dataset.train_labels.cpu().numpy()
    counts = simulation.parts.partition.class_counts(labels)
    held = np.maximum(1, counts.sum(axis=0))
    never, late = (100 * counts[who].sum(axis=0) / held for who in (clients.never, clients.mostly_late))
    order = np.argsort(never + late, kind="stable")[::-1]
    names = [literal(simulation.dataset.classes[label], 16) for label in order]
    top1 = run.history.value("evaluation", "class_top1") or []
    figure, axes = subplots(1, 2, figsize=(7.2, 1.2 + min(0.22 * len(order), 4)), sharey=True)
    at = np.arange(len(order))
    axes[0].barh(at, never[order], color=_NEVER, label="held by clients that never came")
    left = never[order]
    axes[0].barh(at, late[order], left=left, color=_LATE, label="by those late in more than half of their draws")
    axes[1].barh(at, [top1[label] or 0.0 if label < len(top1) else 0.0 for label in order], color="#4477aa")
    axes[0].set_yticks(at, names if len(names) <= 20 else [""] * len(names), fontsize=8)
    most = 1.05 * max(1.0, *(never + late))
    axes[0].set(xlabel="of the images of the class [%]", xlim=(0, most), ylim=(len(order) - 0.5, -0.5))
    axes[1].set_xlabel("kNN accuracy on the class [%]")
    for axis in axes:
        axis.grid(visible=False, axis="y")
    figure.legend(fontsize=7, ncols=2, loc="outside lower center")
    return figure
