"""The figure of privacy against accuracy: how well attacks reconstruct images, for each of the settings of runs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle

from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from simsfl.attacks import SIMILARITIES, spread
from simsfl.cli.report.runs import Run
from simsfl.cli.report.settings import accuracy, grouped
from simsfl.ui.plot_text import literal

_MARKERS = "osD^vPX*"
_COLOURS = [color for color in (*colormaps["tab10"].colors, *colormaps["tab20"].colors[1::2]) if len(set(color)) > 1]
"""Colours that are told apart, without grays."""


def privacy(runs: Sequence[Run]) -> Figure:
    """Draw the accuracy of representations against how well each attack reconstructs images.

    Similarity is the published one, or that with mirrored borders where an attack of an earlier version has no other.
    Colours tell settings apart, and markers attacks. Runs that differ in nothing but their seed are one point, with
    standard deviations. The accuracy is that of the linear probe, or of kNN where a run has no linear probe.
    """
    attacked = [run for run in runs if run.attacks]
    settings = grouped(attacked)
    titles = list(dict.fromkeys(title for run in attacked for title in run.attacks))
    kinds = [attack.similarities for run in attacked for attack in run.attacks.values()]
    borders = next(one for one in SIMILARITIES if all(one in own for own in kinds))
    marker = dict(zip(titles, cycle(_MARKERS), strict=False))
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    axis, colours = figure.subplots(), {}
    for number, (label, own) in enumerate(settings.items()):
        colours[label] = _COLOURS[number % len(_COLOURS)]
        for title in titles:
            points = [(run.attacks[title].similarities[borders], accuracy(run)) for run in own if title in run.attacks]
            if points:
                x = spread([ssim.mean for ssim, _ in points])
                y = spread([float("nan") if top1 is None else top1 for _, top1 in points])
                over_seeds = points[0][0].std if len(points) == 1 else x["std"]
                bars = {"xerr": over_seeds or 0.0, "yerr": y["std"] or 0.0, "capsize": 3, "elinewidth": 1}
                axis.errorbar(
                    x["mean"], y["mean"], fmt=marker[title], markersize=5, color=colours[label], alpha=0.8, **bars
                )
    what = f"{SIMILARITIES[borders]} of the attacker's reconstructions (less is more private)"
    axis.set(xlabel=what, ylabel="accuracy [%]")
    handles: list[Patch | Line2D] = [Patch(color=colour, label=label) for label, colour in colours.items()]
    how = {"linestyle": "", "color": "black", "markerfacecolor": "none"}
    handles += [Line2D([], [], marker=marker[title], label=literal(title), **how) for title in titles]
    figure.legend(handles=handles, fontsize=7, loc="outside right upper")
    return figure
