"""The figure of privacy against accuracy: how well attacks reconstruct images, for each of the settings of runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Point:
    """How well an attack reconstructs images of the runs of a setting, and what their representations are worth."""

    setting: str
    """Label of the setting."""
    attack: str
    """Name of the attack."""
    similarity: dict[str, float | None]
    """"mean" and "std" of its reconstructions; that of a single run is over the attacks' seeds."""
    accuracy: dict[str, float | None]
    """"mean" and "std" of the accuracy in percent: of the linear probe, or of kNN where a run has no linear probe."""


def points(settings: Mapping[str, Sequence[Run]]) -> tuple[str, list[Point]]:
    """Return the name of the similarity that all attacks have, and a point for each setting and attack on its runs.

    Similarity is the published one, or that with mirrored borders where an attack of an earlier version has no other.

    Args:
        settings: the runs of each setting, by its label, some of which have been attacked.
    """
    attacked = [run for own in settings.values() for run in own if run.attacks]
    kinds = [attack.similarities for run in attacked for attack in run.attacks.values()]
    borders = next(one for one in SIMILARITIES if all(one in own for own in kinds))
    found = []
    for label, own in settings.items():
        for title in dict.fromkeys(title for run in attacked for title in run.attacks):
            pairs = [(run.attacks[title].similarities[borders], accuracy(run)) for run in own if title in run.attacks]
            if pairs:
                x = spread([ssim.mean for ssim, _ in pairs])
                y = spread([float("nan") if top1 is None else top1 for _, top1 in pairs])
                over_seeds = pairs[0][0].std if len(pairs) == 1 else x["std"]
                found.append(Point(label, title, x | {"std": over_seeds}, y))
    return f"{SIMILARITIES[borders]} of reconstructions", found


def privacy(runs: Sequence[Run]) -> Figure:
    """Draw the accuracy of representations against how well each attack reconstructs images.

    Colours tell settings apart, and markers attacks. Runs that differ in nothing but their seed are one point, with
    standard deviations.
    """
    settings = grouped([run for run in runs if run.attacks])
    what, found = points(settings)
    colours = dict(zip(settings, cycle(_COLOURS), strict=False))
    marker = dict(zip(dict.fromkeys(point.attack for point in found), cycle(_MARKERS), strict=False))
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    axis = figure.subplots()
    for point in found:
        x, y = point.similarity, point.accuracy
        bars = {"xerr": x["std"] or 0.0, "yerr": y["std"] or 0.0, "capsize": 3, "elinewidth": 1}
        how = {"fmt": marker[point.attack], "markersize": 5, "color": colours[point.setting], "alpha": 0.8}
        axis.errorbar(x["mean"], y["mean"], **how, **bars)
    axis.set(xlabel=f"{what} (less is more private)", ylabel="accuracy [%]")
    handles: list[Patch | Line2D] = [Patch(color=colour, label=literal(label)) for label, colour in colours.items()]
    how = {"linestyle": "", "color": "black", "markerfacecolor": "none"}
    handles += [Line2D([], [], marker=one, label=literal(title), **how) for title, one in marker.items()]
    figure.legend(handles=handles, fontsize=7, loc="outside right upper")
    return figure
