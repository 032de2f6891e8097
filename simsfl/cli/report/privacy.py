"""The figure of privacy against accuracy: how well attacks reconstruct images, for each of the settings of runs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from simsfl.attacks import spread
from simsfl.cli.report.runs import Run
from simsfl.cli.report.settings import accuracy, grouped
from simsfl.ui.plot_text import literal

_MARKERS = "osD^vPX*"


def privacy(runs: Sequence[Run]) -> Figure:
    """Draw the accuracy of representations against how well each attack reconstructs images.

    Colours tell settings apart, and markers attacks. Runs that differ in nothing but their seed are one point, with
    standard deviations. The accuracy is that of the linear probe, or of kNN where a run has no linear probe.
    """
    attacked = [run for run in runs if run.attacks]
    settings = grouped(attacked)
    titles = list(dict.fromkeys(title for run in attacked for title in run.attacks))
    marker = dict(zip(titles, cycle(_MARKERS), strict=False))
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    axis, colours = figure.subplots(), {}
    for number, (label, own) in enumerate(settings.items()):
        colours[label] = f"C{number % 10}"
        for title in titles:
            points = [(run.attacks[title].ssim, accuracy(run)) for run in own if title in run.attacks]
            if points:
                x = spread([ssim.mean for ssim, _ in points])
                y = spread([float("nan") if top1 is None else top1 for _, top1 in points])
                over_seeds = points[0][0].std if len(points) == 1 else x["std"]
                bars = {"xerr": over_seeds or 0.0, "yerr": y["std"] or 0.0, "capsize": 3, "elinewidth": 1}
                axis.errorbar(x["mean"], y["mean"], fmt=marker[title], markersize=5, color=colours[label], **bars)
    axis.set(xlabel="SSIM of the attacker's reconstructions (less is more private)", ylabel="accuracy [%]")
    handles = [Line2D([], [], linestyle="", marker="s", color=colour, label=label) for label, colour in colours.items()]
    handles += [
        Line2D([], [], linestyle="", marker=marker[title], color="gray", label=literal(title)) for title in titles
    ]
    figure.legend(handles=handles, fontsize=7, loc="outside right upper")
    return figure
