"""Figures about runs: curves, communication, attacks, partitions, pairs of views and features."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from simsfl import Simulation
from simsfl.algorithm.communication import Exchange
from simsfl.algorithm.plan import Attendance, Group, plan_round
from simsfl.attacks import SIMILARITIES
from simsfl.cli.report import curves
from simsfl.cli.report.curves import ROUNDS, SENT, STEPS, Curve
from simsfl.cli.report.drawing import band, legend, style, subplots
from simsfl.cli.report.fleet import excluded, fleet_figures
from simsfl.cli.report.privacy import privacy
from simsfl.cli.report.runs import Run
from simsfl.cli.report.settings import counted, grouped
from simsfl.data.views import Recipe
from simsfl.engine.precision import arithmetic
from simsfl.evaluation.encoding import embed
from simsfl.rounds.saving import InputsError
from simsfl.system.outputs import Outputs
from simsfl.system.progress import watched
from simsfl.system.randomness import Purpose, numpy_generator
from simsfl.ui.plot_text import literal

FEW = 3
"""Most runs whose partitions, views and features are shown, so that figures of many runs stay on a page."""
_PAIRS = 12
"""Most pairs of views that are shown; each is of an image of another client."""
_PCA_IMAGES = 2000
"""Most test images whose features are shown."""
_STEM = 40
"""Most characters of a run's number and name in the name of a file."""
log = logging.getLogger(__name__)


def draw(runs: list[Run]) -> dict[str, tuple[str, Figure]]:
    """Draw all figures that the runs have records for; return each with its title, by file name without suffix.

    Partitions, views and features are shown of `FEW` runs at most. Their file names have the number of the run in
    them, since names of runs may differ only in what file names leave out. Of runs whose images are not available, the
    figures that show images, or what the network makes of them, are left out.
    """
    return draw_settings(grouped(runs)) | (_of_each(runs) if len(runs) <= FEW else {})


def draw_settings(settings: Mapping[str, Sequence[Run]]) -> dict[str, tuple[str, Figure]]:
    """Draw the figures in which runs of one setting are a curve with a band, or a point, as `draw` returns them.

    Args:
        settings: the runs of each setting, by its label.
    """
    figures, runs = {}, [run for own in settings.values() for run in own]
    labelled = {literal(label): own for label, own in counted(settings).items()}
    if any(run.history.evaluations for run in runs):
        spread = any(run.spreads for run in runs)
        title = "Loss, kNN accuracy and spread of outputs" if spread else "Loss and kNN accuracy"
        figures["curves"] = (title, _curves(labelled, spread=spread))
    if any(run.history.syncs for run in runs):
        figures["divergence"] = ("Divergence of the clients' models at each averaging", _divergence(labelled))
    figures |= fleet_figures(labelled)
    if any(record["communication"] != Exchange.BOTH_WAYS.value for run in runs for record in run.history.rounds):
        figures["communication"] = ("State of communication by round, and what it saved", _communication(labelled))
    if any(record["attackers_ssim"] is not None for run in runs for record in run.history.rounds):
        figures["resistance"] = ("Simulated attackers, and what resisting them costs", _taressfl(labelled))
    if any(run.attacks for run in runs):
        figures["privacy"] = ("Privacy against accuracy", privacy(runs))
    return figures


def _of_each(runs: list[Run]) -> dict[str, tuple[str, Figure]]:
    """Draw partition, views and features of each run, as far as its images are available."""
    figures = {}
    for number, run in enumerate(watched(runs, "Drawing"), start=1):
        try:
            simulation = Simulation.load(run.path, device="auto", going_on=True)
        except InputsError as error:
            log.warning("%s: partition, views and features of %s are left out", error, run.name)
            continue
        for problem in simulation.damaged:
            log.warning("%s", problem)
        words = "-".join(["", str(number), *re.findall(r"[A-Za-z0-9_.]+", run.name)])
        suffix, of = (words[:_STEM], f" of {run.name}") if len(runs) > 1 else ("", "")
        figures |= draw_simulation(simulation, suffix, of)
        if run.fleet_clients and not simulation.dataset.unlabelled:
            title = f"Classes of clients that a fleet excludes{of}"
            figures[f"excluded{suffix}"] = (title, excluded(run, run.fleet_clients, simulation))
    return figures


def draw_simulation(simulation: Simulation, suffix: str = "", of: str = "") -> dict[str, tuple[str, Figure]]:
    """Draw partition, views and features of a simulation, as `draw` returns them.

    Args:
        simulation: the simulation.
        suffix: end of the names of the files.
        of: what is said in each title of whose figure it is.
    """
    figures = {}
    if not simulation.dataset.unlabelled:
        figures[f"partition{suffix}"] = (f"Images per client and class{of}", _partition(simulation))
    figures[f"views{suffix}"] = (f"Pairs of augmented views{of}", _view_pairs(simulation))
    if len(simulation.dataset.test) >= 3:  # two components need three points
        figures[f"features{suffix}"] = (f"Test features{of}, two principal components", _features(simulation))
    return figures


def save(figures: dict[str, tuple[str, Figure]], out: Outputs, formats: Sequence[str] = ("png",)) -> None:
    """Write what `draw` returned below ``figures/``, as a file for each figure and format.

    Args:
        figures: the figures.
        out: the directory that ``figures/`` is in.
        formats: names in `simsfl.cli.report.formats.FORMATS`.

    Raises:
        ValueError: one of the files is there, but is not simsfl's own; then nothing is written.
    """
    files = {f"figures/{stem}.{kind}": (kind, figure) for stem, figure in figures.items() for kind in formats}
    out.check(*files)
    for name, (kind, (title, figure)) in files.items():
        figure.suptitle(literal(title))
        with out.replacing(name) as file:
            figure.savefig(file, format=kind, dpi=200)


def _curves(settings: Mapping[str, Sequence[Run]], *, spread: bool) -> Figure:
    """Draw loss, kNN accuracy and spread of each setting, against steps and against bytes sent and received per client.

    The loss is that of every step, smoothed over a fortieth of the steps, with the loss of a single run's steps behind.

    Args:
        settings: the runs of each setting, by label.
        spread: whether to draw the spread of the networks' outputs, which some run has recorded.
    """
    figure, axes = subplots(2 + spread, 2, figsize=(7.2, 4.6 + 1.6 * spread), sharey="row", sharex="col")
    level: dict[float, tuple[str, str]] = {}
    ranges: list[tuple[float, float]] = []
    for number, (label, own) in enumerate(settings.items()):
        how = style(number)
        if losses := curves.of_steps(own, [run.losses for run in own]):
            ranges.append(_loss(axes[0], losses, how, label, alone=len(settings) == len(own) == 1))
        dotted = how | {"marker": ".", "markersize": 4}
        for row, found in zip(axes[1:], (curves.knn(own), curves.spread(own) if spread else None), strict=False):
            if found:
                _banded(row, found, dotted, label)
        if (pixels := own[0].history.untrained("pixel_knn_top1")) is not None:
            level.setdefault(pixels, (how["color"], label))
    if ranges:  # room for the smoothed curves
        low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
        margin = 0.05 * (high - low) or 0.5
        axes[0, 0].set_ylim(low - margin, high + margin)
    for pixels, (colour, name) in level.items():
        of = f" ({name})" if len(level) > 1 else ""
        for axis in axes[1]:
            grey = {"color": colour if len(level) > 1 else "gray", "linestyle": ":", "linewidth": 1}
            axis.axhline(pixels, label=f"raw pixels{of}", **grey)
    names = ("contrastive loss", "kNN accuracy [%]", "spread of outputs [%]")
    for axis, name in zip(axes[:, 0], names, strict=False):
        axis.set_ylabel(name)
    if spread:
        for axis in axes[2]:
            axis.axhline(0.0, color="gray", linewidth=0.5)  # where a network has collapsed
            axis.set_ylim(bottom=-0.04 * axis.get_ylim()[1])
    axes[-1, 0].set_xlabel(STEPS)
    axes[-1, 0].xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[-1, 1].set_xlabel(SENT)
    legend(figure, axes[1, 0])
    return figure


def _loss(axes: Any, found: Curve, how: dict[str, Any], label: str, *, alone: bool) -> tuple[float, float]:
    """Draw the smoothed loss of a setting's steps on two axes, against steps and megabytes; return its range.

    Args:
        axes: the two axes.
        found: the loss of each step.
        how: style of the line.
        label: its label.
        alone: whether nothing else is drawn, so that there is room for the loss of each step.
    """
    curve = curves.smoothed(found)
    for axis, x in zip(axes, (found.at[STEPS], found.at[SENT]), strict=True):
        for losses in found.values:
            faint = {"color": how["color"], "alpha": 0.35 if alone else 0.12, "linewidth": 0.5, "rasterized": True}
            axis.plot(x, losses, **faint)
    _banded(axes, curve.thinned(), how, label)
    settled = curve.values[:, curve.values.shape[1] // 20 :]
    return float(settled.min()), float(curve.values.max())


def _banded(axes: Any, curve: Curve, how: dict[str, Any], label: str) -> None:
    """Draw a curve on two axes, against steps and megabytes."""
    for axis, places in zip(axes, (STEPS, SENT), strict=True):
        band(axis, places, curve, how, label)


def _divergence(settings: Mapping[str, Sequence[Run]]) -> Figure:
    """Draw the mean over the cohort of its models' distances to their average, against rounds.

    The band is the standard deviation over the cohort of a single run, and over seeds where a setting has several.
    """
    figure, axis = subplots(figsize=(7.2, 2.8))
    for number, (label, own) in enumerate(settings.items()):
        if found := curves.divergence(own):
            band(axis, ROUNDS, found, style(number), label)
    axis.set(xlabel=ROUNDS, ylabel="distance to the average", ylim=(0, None))
    legend(figure, axis)
    return figure


def _communication(settings: Mapping[str, Sequence[Run]]) -> Figure:
    """Draw the state of communication (A, B or C) of each run, and the megabytes saved per client, against rounds."""
    figure, axes = subplots(2, 1, figsize=(7.2, 3.6), sharex=True)
    for number, (label, own) in enumerate(settings.items()):
        how = style(number)
        for run in own:
            at = [record["round"] for record in run.history.rounds]
            states = ["ABC".index(record["communication"]) for record in run.history.rounds]
            axes[0].step(at, states, where="mid", alpha=1 / len(own) ** 0.5, **how)
        if saved := curves.of_each_round(own, "bytes_saved_per_client", 1e-6):
            band(axes[1], ROUNDS, saved, how, label)
    axes[0].set_yticks(range(3), ["A: both ways", "B: up only", "C: silent"])
    axes[1].set(xlabel=ROUNDS, ylabel="saved per client [MB]")
    legend(figure, axes[1])
    return figure


def _taressfl(settings: Mapping[str, Sequence[Run]]) -> Figure:
    """Draw how well simulated attackers reconstruct before and after learning, and the contrastive loss against it."""
    figure, axes = subplots(1, 2, figsize=(7.2, 2.9))
    for number, (label, own) in enumerate(settings.items()):
        how = style(number)
        resisting = [run for run in own if any(r["attackers_ssim"] is not None for r in run.history.rounds)]
        names = ("attackers_ssim", "attackers_ssim_before", "loss")
        after, before, loss = (curves.of_each_round(resisting, name) for name in names)
        if not (after and before and loss):
            continue
        band(axes[0], ROUNDS, after, how, f"{label}: after learning")
        band(axes[0], ROUNDS, before, how | {"linestyle": ":"}, f"{label}: before")
        there = np.isin(loss.at[ROUNDS], after.at[ROUNDS])
        axes[1].plot(after.mean, loss.mean[there], marker=".", label=label, **how)
    similarity = similarity_of_attackers(settings)
    axes[0].set(xlabel=ROUNDS, ylabel=f"{similarity}\nof the attackers")
    axes[1].set(xlabel=f"{similarity} of the attackers", ylabel="contrastive loss")
    legend(figure, axes[0])
    return figure


def similarity_of_attackers(settings: Mapping[str, Sequence[Run]]) -> str:
    """Return the name of the similarity that simulated attackers are measured with, or both of them."""
    resistant = [run.config for own in settings.values() for run in own if run.config["ressfl_lambda"]]
    names = sorted({SIMILARITIES[config["ssim_borders"]] for config in resistant})
    return " or ".join(reversed(names))  # of several, labels say which is whose


def _partition(simulation: Simulation) -> Figure:
    """Draw a heat map of clients against classes, with clients in the order of their main class."""
    labels = simulation.dataset.train_labels.cpu().numpy()
    counts = simulation.parts.partition.class_counts(labels)
    order = np.lexsort((-counts.max(axis=1), counts.argmax(axis=1)))
    classes = list(map(literal, simulation.dataset.classes))
    figure, axis = subplots(figsize=(6, 6))
    picture = axis.imshow(counts[order], aspect="auto", cmap="viridis", interpolation="nearest")
    axis.grid(visible=False)
    axis.set_ylabel(f"{len(counts):,} clients, ordered by main class")
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    if len(classes) <= 20:
        axis.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
    else:
        axis.set_xlabel("class")
    figure.colorbar(picture, label="images")
    return figure


def _view_pairs(simulation: Simulation) -> Figure:
    """Draw an image, its query view and its key view for a few clients of the first round."""
    config, data = simulation.config, simulation.dataset
    some = Group(range(config.clients), min(_PAIRS, config.clients), 1)
    plan = plan_round(
        simulation.parts.sources[:1],
        Attendance([some], config.seed, simulation.parts.images),
        0,
        steps=1,
        recipe=Recipe.of(config),
        device=simulation.parts.device,
    )
    (group,) = plan.groups
    pixels = data.train.pixels[group.indices[0]]
    views = data.train.augmented(pixels, group.views.map(lambda t: t[0]))[:, :, 0]
    originals = pixels[:, 0].float() / 255
    rows = {
        "image": originals,
        "query": views[0] * data.train.std + data.train.mean,
        "key": views[1] * data.train.std + data.train.mean,
    }
    figure, axes = subplots(3, len(pixels), figsize=(0.85 * len(pixels) + 0.6, 2.9), squeeze=False)
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        for axis, image in zip(line, images, strict=True):
            axis.imshow(image.clamp(0, 1).permute(1, 2, 0).cpu().numpy())
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(name)
    return figure


def _features(simulation: Simulation) -> Figure:
    """Draw the features of random test images on their first two principal components, coloured by class."""
    data = simulation.dataset
    drawn = numpy_generator(simulation.config.seed, Purpose.FIGURE).permutation(len(data.test))[:_PCA_IMAGES]
    rows = torch.from_numpy(drawn).to(simulation.parts.device)
    encode = simulation.encoder()
    with arithmetic(simulation.config.precision):
        embedded = torch.nn.functional.normalize(embed(encode, data.test, rows), dim=1).double()
    apart = (
        embedded - embedded[0]
    )  # exactly 0 where a network has collapsed, so that rounding is not taken for variance
    centred = apart - apart.mean(dim=0)
    _, singular, directions = torch.linalg.svd(centred, full_matrices=False)
    points = (centred @ directions[:2].T).cpu().numpy()
    variance = singular.square()
    share = 100 * (variance / variance.sum().clamp(min=1e-30)).cpu().numpy()
    labels = data.test_labels[rows].cpu().numpy()
    figure, axis = subplots(figsize=(7, 5.5))
    if len(data.classes) <= 20:
        palette = mpl.colormaps["tab10" if len(data.classes) <= 10 else "tab20"]
        for label, name in enumerate(data.classes):
            mine = labels == label
            axis.scatter(*points[mine].T, s=6, alpha=0.6, label=literal(name), color=palette(label))
        axis.legend(fontsize=8, markerscale=2, loc="center left", bbox_to_anchor=(1, 0.5))
    else:
        axis.scatter(*points.T, s=6, alpha=0.6, c=labels, cmap="hsv")
    axis.set_xlabel(f"first component ({share[0]:.0f} % of variance)")
    axis.set_ylabel(f"second component ({share[1]:.0f} %)")
    return figure
