"""The figure of privacy against accuracy: how well attacks reconstruct images, for each of the settings of runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from simsfl.attacks import SIMILARITIES, spread
from simsfl.cli.report.runs import Run
from simsfl.config import RunConfig
from simsfl.ui.plot_text import literal

_INCIDENTAL = ("preset", "seed", "device", "data_dir", "eval_every", "checkpoint_every", "callback", "epochs")
"""Fields of the config in which repetitions of one setting may differ."""
_MARKERS = "osD^vPX*"


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
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axis, colours = figure.subplots(), {}
    for number, (label, own) in enumerate(settings.items()):
        colours[label] = f"C{number % 10}"
        for title in titles:
            points = [(run.attacks[title].similarities[borders], accuracy(run)) for run in own if title in run.attacks]
            if points:
                x = spread([ssim.mean for ssim, _ in points])
                y = spread([float("nan") if top1 is None else top1 for _, top1 in points])
                over_seeds = points[0][0].std if len(points) == 1 else x["std"]
                bars = {"xerr": over_seeds or 0.0, "yerr": y["std"] or 0.0, "capsize": 3, "elinewidth": 1}
                axis.errorbar(x["mean"], y["mean"], fmt=marker[title], color=colours[label], **bars)
    what = f"{SIMILARITIES[borders]} of the attacker's reconstructions (less is more private)"
    axis.set(xlabel=what, ylabel="accuracy [%]")
    handles = [Line2D([], [], linestyle="", marker="s", color=colour, label=label) for label, colour in colours.items()]
    handles += [
        Line2D([], [], linestyle="", marker=marker[title], color="gray", label=literal(title)) for title in titles
    ]
    figure.legend(handles=handles, fontsize=7, loc="outside right upper")
    return figure


def accuracy(run: Run) -> float | None:
    """Return the accuracy of a run's linear probe, or that of kNN without one, in percent; None if it has neither."""
    probe = run.history.probes.get("linear")
    return probe["top1"] if probe else run.history.value("evaluation", "knn_top1")


def grouped(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Return the runs of each setting, by a text that says in what it differs from the others."""
    own = [_setting(run.config) for run in runs]
    names = [name for name in dict.fromkeys(name for setting in own for name in setting) if _differs(own, name)]
    found: dict[str, list[Run]] = {}
    for run, setting in zip(runs, own, strict=True):
        words = [_text(name, setting[name]) for name in names if name in setting]
        found.setdefault(literal(", ".join(filter(None, words)) or "none of these"), []).append(run)
    if len(found) > 1:
        return found
    return {runs[0].label if len(runs) == 1 else f"{len(runs)} seeds": list(runs)}


def _setting(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a config that a setting consists of, with its options among them."""
    usual = RunConfig().to_dict()
    fields = {name: value for name, value in config.items() if name in usual and name not in _INCIDENTAL}
    return fields | fields.pop("options", {})


def _differs(settings: Iterable[Mapping[str, Any]], name: str) -> bool:
    """Return whether settings differ in a field, which some may not have."""
    return len({str(setting.get(name)) for setting in settings}) > 1


def _text(name: str, value: Any) -> str:
    """Return what a field is as text: names stand for themselves, and what is turned off for nothing."""
    if value in (None, 0, False):
        return ""
    if isinstance(value, str):
        return Path(value).stem if name in ("dataset", "aux_dataset", "init_client") else value
    words = name.rpartition(".")[2].replace("_", " ")
    return words if value is True else f"{words} {value:g}"
