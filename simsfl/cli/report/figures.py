"""Figures about runs: curves, communication, attacks, partitions, pairs of views and features."""

from __future__ import annotations

import logging
import re
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from simsfl import Simulation
from simsfl.algorithm.communication import Exchange
from simsfl.algorithm.plan import Group, plan_round
from simsfl.cli.report.privacy import privacy
from simsfl.cli.report.runs import Run
from simsfl.engine.precision import arithmetic
from simsfl.evaluation.encoding import embed
from simsfl.rounds.saving import ImagesError
from simsfl.system.outputs import Outputs
from simsfl.system.progress import watched
from simsfl.system.randomness import Purpose, numpy_generator
from simsfl.ui.plot_text import literal

_PAIRS = 12
"""Most pairs of views that are shown; each is of an image of another client."""
_PCA_IMAGES = 2000
"""Most test images whose features are shown."""
_STEM = 40
"""Most characters of a run's number and name in the name of a file."""
log = logging.getLogger(__name__)
mpl.rcParams.update({"figure.dpi": 120, "axes.grid": True, "grid.alpha": 0.25, "font.size": 9})


def draw(runs: list[Run]) -> dict[str, tuple[str, Figure]]:
    """Draw all figures that the runs have records for; return each with its title, by file name without suffix.

    File names have the number of the run in them, since names of runs may differ only in what file names leave out. Of
    runs whose images are not available, the figures that show images, or what the network makes of them, are left out.
    """
    figures = {}
    if any(run.history.evaluations for run in runs):
        spread = any(run.spreads for run in runs)
        title = "Loss, kNN accuracy and spread of outputs" if spread else "Loss and kNN accuracy"
        figures["curves"] = (title, _curves(runs, spread=spread))
    if any(run.history.syncs for run in runs):
        figures["divergence"] = ("Divergence of the clients' models at each averaging", _divergence(runs))
    if any(record["communication"] != Exchange.BOTH_WAYS.value for run in runs for record in run.history.rounds):
        figures["communication"] = ("State of communication by round, and what it saved", _communication(runs))
    if any(record["attackers_ssim"] is not None for run in runs for record in run.history.rounds):
        figures["resistance"] = ("Simulated attackers, and what resisting them costs", _taressfl(runs))
    if any(run.attacks for run in runs):
        figures["privacy"] = ("Privacy against accuracy", privacy(runs))
    for number, run in enumerate(watched(runs, "Drawing"), start=1):
        try:
            simulation = Simulation.load(run.path, device="auto", going_on=True)
        except ImagesError as error:
            log.warning("%s: partition, views and features of %s are left out", error, run.name)
            continue
        for problem in simulation.damaged:
            log.warning("%s", problem)
        words = "-".join(["", str(number), *re.findall(r"[A-Za-z0-9_.]+", run.name)])
        suffix = words[:_STEM] if len(runs) > 1 else ""
        of = f" of {run.name}" if len(runs) > 1 else ""
        if not simulation.dataset.unlabelled:
            figures[f"partition{suffix}"] = (f"Images per client and class{of}", _partition(simulation))
        figures[f"views{suffix}"] = (f"Pairs of augmented views{of}", _view_pairs(simulation))
        if len(simulation.dataset.test) >= 3:  # two components need three points
            figures[f"features{suffix}"] = (f"Test features{of}, two principal components", _features(simulation))
    return figures


def save(figures: dict[str, tuple[str, Figure]], out: Outputs) -> None:
    """Write what `draw` returned below ``figures/``, as a PNG file for each figure.

    Raises:
        ValueError: one of the files is there, but is not simsfl's own; then nothing is written.
    """
    files = {f"figures/{stem}.png": figure for stem, figure in figures.items()}
    out.check(*files)
    for name, (title, figure) in files.items():
        figure.suptitle(literal(title))
        with out.replacing(name) as file:
            figure.savefig(file)


def _subplots(rows: int = 1, columns: int = 1, *, figsize: tuple[float, float], **how: Any) -> tuple[Figure, Any]:
    """Return a figure with axes, as ``pyplot.subplots`` does, which would warn of more than 20 figures at a time."""
    figure = Figure(figsize=figsize, layout="constrained")
    return figure, figure.subplots(rows, columns, **how)


def _curves(runs: list[Run], *, spread: bool) -> Figure:
    """Draw loss, kNN accuracy and spread of all runs, against steps and against bytes that a client sent and received.

    Args:
        spread: whether to draw the spread of the networks' outputs, which some run has recorded.
    """
    figure, axes = _subplots(2 + spread, 2, figsize=(9, 6 + 2 * spread), sharey="row", sharex="col")
    level: dict[float, tuple[str, str]] = {}
    for run in runs:
        history, last = run.history, len(run.history.rounds)
        sent = [0.0] + [(r["bytes_up_per_client"] + r["bytes_down_per_client"]) / 1e6 for r in history.rounds]
        loss = [(record["round"], record["loss"]) for record in history.rounds]
        knn = [(record["round"], record["knn_top1"]) for record in history.evaluations]
        percent = [(one.round, one.percent) for one in run.spreads]
        for row, curve, marker in zip(axes, (loss, knn, percent), (".", "o", "o"), strict=False):  # spread may lack
            for axis, x in zip(row, (run.steps, sent), strict=True):
                at = [x[min(number, last)] for number, _ in curve]  # a round is evaluated before it is recorded
                style = {"marker": marker, "markersize": 3, "label": run.label}
                (line,) = axis.plot(at, [value for _, value in curve], **style)
        if (pixels := history.untrained("pixel_knn_top1")) is not None:
            level.setdefault(pixels, (line.get_color(), run.label))
    for pixels, (colour, name) in level.items():
        of = f" ({name})" if len(level) > 1 else ""
        for axis in axes[1]:
            axis.axhline(pixels, color=colour, linestyle=":", linewidth=1, label=f"raw pixels{of}")
    for axis, label in zip(axes[:, 0], ("loss", "kNN accuracy [%]", "spread of outputs [%]"), strict=False):
        axis.set_ylabel(label)
    if spread:
        for axis in axes[2]:
            axis.axhline(0.0, color="gray", linewidth=0.5)  # where a network has collapsed
    axes[-1, 0].set_xlabel("step")
    axes[-1, 0].xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[-1, 1].set_xlabel("sent and received per client [MB]")
    axes[1, 0].legend(fontsize=8)
    return figure


def _divergence(runs: list[Run]) -> Figure:
    """Draw mean and standard deviation over a cohort of its models' distances to their average, against rounds."""
    figure, axis = _subplots(figsize=(9, 3.5))
    for run in runs:
        syncs = run.history.syncs
        if not syncs:
            continue
        steps = max(record["step"] for record in syncs)
        at = np.array([record["round"] - 1 + record["step"] / steps for record in syncs])
        mean, std = (np.array([record[f"divergence_{name}"] for record in syncs]) for name in ("mean", "std"))
        (line,) = axis.plot(at, mean, label=run.label)
        axis.fill_between(at, mean - std, mean + std, color=line.get_color(), alpha=0.2, linewidth=0)
    axis.set(xlabel="round", ylabel="distance to the average", ylim=(0, None))
    axis.legend(fontsize=8)
    return figure


def _communication(runs: list[Run]) -> Figure:
    """Draw the state of communication (A, B or C) and the bytes saved per client, against rounds."""
    figure, axes = _subplots(2, 1, figsize=(9, 4), sharex=True)
    for run in runs:
        rounds = [record["round"] for record in run.history.rounds]
        axes[0].step(
            rounds, ["ABC".index(r["communication"]) for r in run.history.rounds], where="mid", label=run.label
        )
        axes[1].plot(rounds, [r["bytes_saved_per_client"] / 1e6 for r in run.history.rounds], label=run.label)
    axes[0].set_yticks(range(3), ["A: both ways", "B: up only", "C: silent"])
    axes[1].set(xlabel="round", ylabel="saved per client [MB]")
    axes[1].legend(fontsize=8)
    return figure


def _taressfl(runs: list[Run]) -> Figure:
    """Draw how well simulated attackers reconstruct before and after learning, and the contrastive loss against it."""
    figure, axes = _subplots(1, 2, figsize=(9, 3.5))
    for run in runs:
        rounds = [record for record in run.history.rounds if record["attackers_ssim"] is not None]
        if not rounds:
            continue
        at, ssim = [record["round"] for record in rounds], [record["attackers_ssim"] for record in rounds]
        (line,) = axes[0].plot(at, ssim, ".-", label=f"{run.label}: after learning")
        before = [record["attackers_ssim_before"] for record in rounds]
        axes[0].plot(at, before, ".:", color=line.get_color(), label=f"{run.label}: before")
        axes[1].plot(ssim, [record["loss"] for record in rounds], "o-", markersize=3, label=run.label)
    axes[0].set(xlabel="round", ylabel="SSIM of the attackers")
    axes[1].set(xlabel="SSIM of the attackers", ylabel="contrastive loss")
    axes[0].legend(fontsize=8)
    return figure


def _partition(simulation: Simulation) -> Figure:
    """Draw a heat map of clients against classes, with clients in the order of their main class."""
    labels = simulation.dataset.train_labels.cpu().numpy()
    counts = simulation.parts.partition.class_counts(labels)
    order = np.lexsort((-counts.max(axis=1), counts.argmax(axis=1)))
    classes = list(map(literal, simulation.dataset.classes))
    figure, axis = _subplots(figsize=(6, 6))
    picture = axis.imshow(counts[order], aspect="auto", cmap="viridis", interpolation="nearest")
    axis.grid(visible=False)
    axis.set_ylabel(f"{len(counts):,} clients, ordered by main class")
    if len(classes) <= 20:
        axis.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
    else:
        axis.set_xlabel("class")
    figure.colorbar(picture, label="images")
    return figure


def _view_pairs(simulation: Simulation) -> Figure:
    """Draw an image, its query view and its key view for a few clients of the first round."""
    config, data = simulation.config, simulation.dataset
    plan = plan_round(
        simulation.parts.sources[:1],
        0,
        groups=[Group(range(config.clients), min(_PAIRS, config.clients), 1)],
        steps=1,
        recipe=config.views,
        image_size=config.image_size,
        crop_scale=config.crop_scale,
        seed=config.seed,
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
    figure, axes = _subplots(3, len(pixels), figsize=(0.85 * len(pixels) + 0.6, 2.9), squeeze=False)
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
    figure, axis = _subplots(figsize=(7, 5.5))
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
