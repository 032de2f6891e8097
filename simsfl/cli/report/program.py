"""Figures and a page on finished runs: ``python experiments/report.py RUN_DIR [RUN_DIR ...]``."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from simsfl import Simulation, evaluation
from simsfl.algorithm.plan import Group, plan_round
from simsfl.cli.progress import watched
from simsfl.engine.precision import arithmetic
from simsfl.runs.directory import RunDirectory
from simsfl.runs.metrics import History, read_records
from simsfl.ui.arguments import Parser, fail, path
from simsfl.ui.dashboard import number, time_text

PAIRS = 12
PCA_IMAGES = 2000
mpl.rcParams.update({"figure.dpi": 120, "axes.grid": True, "grid.alpha": 0.25, "font.size": 9})


@dataclass(frozen=True)
class Run:
    """What a report needs of a run's files."""

    name: str
    """Unique among the runs of the report."""
    path: Path
    config: dict[str, Any]
    history: History
    steps: list[int]
    """Done at the end of each round, 0 before the first."""
    summary: dict[str, Any]
    """Empty where the run has not ended."""
    attacks: dict[str, dict[str, Any]]
    """What ``attack.py`` wrote of it, by decoder."""


def main(argv: Sequence[str] | None = None) -> int:
    """Write the report; the exit code."""
    parser = Parser(prog="report.py", description=__doc__)
    parser.add_argument("runs", type=path, nargs="+", metavar="RUN_DIR", help="directories of runs")
    parser.add_argument("--out", type=path, metavar="DIR", help="where to write (default: the first run's directory)")
    try:
        arguments = parser.parse(argv)
        runs = [read(path, name) for path, name in zip(arguments.runs, unique_names(arguments.runs), strict=True)]
        figures = draw(runs)
        out = RunDirectory(arguments.out or arguments.runs[0])
        out.figures.mkdir(parents=True, exist_ok=True)
        for stem, (title, figure) in figures.items():
            figure.suptitle(title)
            figure.savefig(out.figures / f"{stem}.png")
            plt.close(figure)
        out.report.write_text(page(runs, figures, out.path), encoding="utf-8")
    except (ValueError, OSError) as error:
        return fail(error)
    print(f"wrote {out.report} and {len(figures)} figures in {out.figures}")
    return 0


def unique_names(paths: list[Path]) -> list[str]:
    """The last part of each path, numbered where that is not unique."""
    last = [path.resolve().name for path in paths]
    return [name if last.count(name) == 1 else f"{name}-{i + 1}" for i, name in enumerate(last)]


def read(path: Path, name: str) -> Run:
    """A run's files.

    Raises:
        ValueError: one of them is missing or damaged.
    """
    directory = RunDirectory(path)
    config = directory.read_config()["config"]
    history, steps, done = History(), [0], 0
    if directory.metrics.exists():
        for record, _ in read_records(directory.metrics):
            history.feed(record)
            done += record["event"] == "step"
            if record["event"] == "round":
                steps.append(done)
    summary = {}
    if directory.summary.exists():
        try:
            summary = json.loads(directory.summary.read_text(encoding="utf-8"))
            summary["client_steps_per_second"], summary["seconds"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{directory.summary} is damaged ({error})") from error
    attacks = {file.stem: read_attack(file) for file in sorted(directory.attacks.glob("*.json"))}
    return Run(name, path, config, history, steps, summary, attacks)


def read_attack(file: Path) -> dict[str, Any]:
    """What an attack came to.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        [content[score][part] for score in ("mse", "ssim", "psnr") for part in ("mean", "std")]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged ({error}); allowed: what attack.py writes") from error
    return content


def draw(runs: list[Run]) -> dict[str, tuple[str, Figure]]:
    """All figures by file name, each with its title."""
    figures = {}
    if any(run.history.evaluations for run in runs):
        figures["curves"] = ("Loss and kNN accuracy", curves(runs))
    if any(run.history.syncs for run in runs):
        figures["divergence"] = ("Divergence of the clients' models at each averaging", divergence(runs))
    if any(record["communication"] != "A" for run in runs for record in run.history.rounds):
        figures["communication"] = ("State of communication by round, and what it saved", communication(runs))
    if any(record["attackers_ssim"] is not None for run in runs for record in run.history.rounds):
        figures["resistance"] = ("Simulated attackers, and what resisting them costs", resistance(runs))
    if any(run.attacks for run in runs):
        figures["privacy"] = ("Privacy against accuracy", privacy(runs))
    for run in watched(runs, "Drawing"):
        simulation = Simulation.load(run.path, device="auto")
        for problem in simulation.damaged:
            print(f"{problem}; using the one before", file=sys.stderr)
        suffix = f"-{re.sub(r'[^A-Za-z0-9_.-]+', '-', run.name)}" if len(runs) > 1 else ""
        of = f" of {run.name}" if len(runs) > 1 else ""
        figures[f"partition{suffix}"] = (f"Images per client and class{of}", partition(simulation))
        figures[f"views{suffix}"] = (f"Pairs of augmented views{of}", view_pairs(simulation))
        if len(simulation.dataset.test) >= 3:  # two components need three points
            figures[f"features{suffix}"] = (f"Test features{of}, two principal components", features(simulation))
    return figures


def curves(runs: list[Run]) -> Figure:
    """Loss and kNN against steps and against bytes sent, all runs over each other."""
    figure, axes = plt.subplots(2, 2, figsize=(9, 6), sharey="row", sharex="col", layout="constrained")
    level: dict[float, tuple[str, str]] = {}
    for run in runs:
        history = run.history
        sent = [0.0] + [(r["bytes_up_per_client"] + r["bytes_down_per_client"]) / 1e6 for r in history.rounds]
        loss = [record["loss"] for record in history.rounds]
        knn = [record["knn_top1"] for record in history.evaluations]
        at = [min(record["round"], len(loss)) for record in history.evaluations]
        axes[0, 0].plot(run.steps[1:], loss, ".-", markersize=3, label=run.name)
        axes[0, 1].plot(sent[1:], loss, ".-", markersize=3, label=run.name)
        (line,) = axes[1, 0].plot([run.steps[r] for r in at], knn, marker="o", markersize=3, label=run.name)
        axes[1, 1].plot([sent[r] for r in at], knn, marker="o", markersize=3, label=run.name)
        if (pixels := history.untrained("pixel_knn_top1")) is not None:
            level.setdefault(pixels, (line.get_color(), run.name))
    for pixels, (colour, name) in level.items():
        of = f" ({name})" if len(level) > 1 else ""
        for axis in axes[1]:
            axis.axhline(pixels, color=colour, linestyle=":", linewidth=1, label=f"raw pixels{of}")
    axes[0, 0].set_ylabel("loss")
    axes[1, 0].set_ylabel("kNN accuracy [%]")
    axes[1, 0].set_xlabel("step")
    axes[1, 0].xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[1, 1].set_xlabel("sent and received per client [MB]")
    axes[1, 0].legend(fontsize=8)
    return figure


def divergence(runs: list[Run]) -> Figure:
    """Mean over the clients and its standard deviation, against rounds."""
    figure, axis = plt.subplots(figsize=(9, 3.5), layout="constrained")
    for run in runs:
        syncs = run.history.syncs
        if not syncs:
            continue
        steps = max(record["step"] for record in syncs)
        at = np.array([record["round"] - 1 + record["step"] / steps for record in syncs])
        mean, std = (np.array([record[f"divergence_{name}"] for record in syncs]) for name in ("mean", "std"))
        (line,) = axis.plot(at, mean, label=run.name)
        axis.fill_between(at, mean - std, mean + std, color=line.get_color(), alpha=0.2, linewidth=0)
    axis.set(xlabel="round", ylabel="distance to the average", ylim=(0, None))
    axis.legend(fontsize=8)
    return figure


def communication(runs: list[Run]) -> Figure:
    """States A, B and C, and bytes saved per client."""
    figure, axes = plt.subplots(2, 1, figsize=(9, 4), sharex=True, layout="constrained")
    for run in runs:
        rounds = [record["round"] for record in run.history.rounds]
        axes[0].step(rounds, ["ABC".index(r["communication"]) for r in run.history.rounds], where="mid", label=run.name)
        axes[1].plot(rounds, [r["bytes_saved_per_client"] / 1e6 for r in run.history.rounds], label=run.name)
    axes[0].set_yticks(range(3), ["A: both ways", "B: up only", "C: silent"])
    axes[1].set(xlabel="round", ylabel="saved per client [MB]")
    axes[1].legend(fontsize=8)
    return figure


def resistance(runs: list[Run]) -> Figure:
    """How well simulated attackers reconstruct, as they come and once they have learnt, and the contrastive loss."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    for run in runs:
        rounds = [record for record in run.history.rounds if record["attackers_ssim"] is not None]
        if not rounds:
            continue
        at, ssim = [record["round"] for record in rounds], [record["attackers_ssim"] for record in rounds]
        (line,) = axes[0].plot(at, ssim, ".-", label=f"{run.name}: after learning")
        before = [record["attackers_ssim_before"] for record in rounds]
        axes[0].plot(at, before, ".:", color=line.get_color(), label=f"{run.name}: before")
        axes[1].plot(ssim, [record["loss"] for record in rounds], "o-", markersize=3, label=run.name)
    axes[0].set(xlabel="round", ylabel="SSIM of the attackers")
    axes[1].set(xlabel="SSIM of the attackers", ylabel="contrastive loss")
    axes[0].legend(fontsize=8)
    return figure


def privacy(runs: list[Run]) -> Figure:
    """How well each attack reconstructs images, against what the representation is worth."""
    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    for run in runs:
        probe = run.history.probes.get("linear")
        accuracy = probe["top1"] if probe else run.history.value("evaluation", "knn_top1")
        for decoder, found in run.attacks.items():
            config = run.config
            resisting = f", lambda {config['ressfl_lambda']:g}" if config["ressfl_lambda"] else ""
            expert = f", from {Path(config['init_client']).stem}" if config["init_client"] else ""
            bottleneck = f", {config['bottleneck']}" if config["bottleneck"] else ""
            label = f"{run.name}: cut {config['cut_layer']}{bottleneck}{resisting}{expert}, {decoder}"
            ssim, y = found["ssim"], float("nan") if accuracy is None else accuracy
            axis.errorbar(ssim["mean"], y, xerr=ssim["std"] or 0.0, fmt="o", capsize=3, label=label)
    axis.set(xlabel="SSIM of the attacker's reconstructions (less is more private)", ylabel="accuracy [%]")
    axis.legend(fontsize=7)
    return figure


def partition(simulation: Simulation) -> Figure:
    """Heat map of clients against classes, clients in the order of their main class."""
    labels = simulation.dataset.train_labels.cpu().numpy()
    counts = simulation.parts.partition.class_counts(labels)
    order = np.lexsort((-counts.max(axis=1), counts.argmax(axis=1)))
    classes = simulation.dataset.classes
    figure, axis = plt.subplots(figsize=(6, 6), layout="constrained")
    picture = axis.imshow(counts[order], aspect="auto", cmap="viridis", interpolation="nearest")
    axis.grid(visible=False)
    axis.set_ylabel(f"{len(counts):,} clients, ordered by main class")
    if len(classes) <= 20:
        axis.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
    else:
        axis.set_xlabel("class")
    figure.colorbar(picture, label="images")
    return figure


def view_pairs(simulation: Simulation) -> Figure:
    """Original, query view and key view of a few images of the first round."""
    config, data = simulation.config, simulation.dataset
    plan = plan_round(
        simulation.parts.sources[:1],
        0,
        groups=[Group(range(config.clients), min(PAIRS, config.clients), 1)],
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
    figure, axes = plt.subplots(
        3, len(pixels), figsize=(0.85 * len(pixels) + 0.6, 2.9), squeeze=False, layout="constrained"
    )
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        for axis, image in zip(line, images, strict=True):
            axis.imshow(image.clamp(0, 1).permute(1, 2, 0).cpu().numpy())
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(name)
    return figure


def features(simulation: Simulation) -> Figure:
    """Test features on their first two principal components, coloured by class."""
    data = simulation.dataset
    rows = torch.arange(min(PCA_IMAGES, len(data.test)), device=simulation.parts.device)
    encode = simulation.encoder()
    with arithmetic(simulation.config.precision):
        embedded = torch.nn.functional.normalize(evaluation.embed(encode, data.test, rows), dim=1)
    centred = (embedded - embedded.mean(dim=0)).double()
    _, singular, directions = torch.linalg.svd(centred, full_matrices=False)
    points = (centred @ directions[:2].T).cpu().numpy()
    share = 100 * (singular**2 / (singular**2).sum()).cpu().numpy()
    labels = data.test_labels[rows].cpu().numpy()
    figure, axis = plt.subplots(figsize=(7, 5.5), layout="constrained")
    if len(data.classes) <= 20:
        palette = plt.get_cmap("tab10" if len(data.classes) <= 10 else "tab20")
        for label, name in enumerate(data.classes):
            mine = labels == label
            axis.scatter(*points[mine].T, s=6, alpha=0.6, label=name, color=palette(label))
        axis.legend(fontsize=8, markerscale=2, loc="center left", bbox_to_anchor=(1, 0.5))
    else:
        axis.scatter(*points.T, s=6, alpha=0.6, c=labels, cmap="hsv")
    axis.set_xlabel(f"first component ({share[0]:.0f} % of variance)")
    axis.set_ylabel(f"second component ({share[1]:.0f} %)")
    return figure


def page(runs: list[Run], figures: dict[str, tuple[str, Figure]], out: Path) -> str:
    """The report, in the directory `out`: what was run, what came of it, the figures."""
    columns = [cells(run) for run in runs]
    titles = max(columns, key=len) | {title: "" for column in columns for title in column}
    lines = [
        "# simsfl report",
        "",
        "| | " + " | ".join(run.name for run in runs) + " |",
        "|---" * (len(runs) + 1) + "|",
        *("| " + " | ".join([title, *(column.get(title, "-") for column in columns)]) + " |" for title in titles),
    ]
    for stem, (title, _) in figures.items():
        lines += ["", f"## {title}", "", f"![{title}](figures/{stem}.png)"]
    for run in runs:
        for decoder in run.attacks:
            sheet = os.path.relpath(RunDirectory(run.path).attacks / f"{decoder}.png", out)
            lines += [
                "",
                f"## Reconstructions by {decoder} of {run.name}",
                "",
                f"![originals, reconstructions]({sheet})",
            ]
    return "\n".join([*lines, ""])


def cells(run: Run) -> dict[str, str]:
    """A run's column of the table."""
    config, history, summary = run.config, run.history, run.summary
    knn = [record["knn_top1"] for record in history.evaluations]
    rate, seconds = summary.get("client_steps_per_second"), summary.get("seconds")
    return {
        "preset, method": f"{config['preset']}, {config['method']}",
        "data set": Path(config["dataset"]).name,
        "partition": config["partition"],
        "architecture, cut layer": f"{config['arch']}, {config['cut_layer']}",
        "clients, cohort": f"{config['clients']:,}, {config['cohort']:,}",
        "rounds": f"{len(history.rounds):,} of {config['rounds']:,}",
        "precision, engine": f"{config['precision']}, {config['engine']}",
        "seed": str(config["seed"]),
        "loss": number(history.value("round", "loss"), ".3f"),
        "kNN of raw pixels [%]": number(history.untrained("pixel_knn_top1")),
        "kNN untrained [%]": number(history.untrained("knn_top1")),
        "kNN [%]": number(knn[-1] if knn else None),
        "kNN, best [%]": number(max(knn, default=None)),
        **{f"{kind} probe [%]": number(record["top1"]) for kind, record in history.probes.items()},
        **{
            f"{score.upper()} of {decoder}": number(found[score]["mean"], ".3f")
            + ("" if found[score]["std"] is None else f" ± {found[score]['std']:.3f}")
            for decoder, found in run.attacks.items()
            for score in ("ssim", "mse")
        },
        "MB up, down per client": ", ".join(
            "-" if (sent := history.value("round", f"bytes_{way}_per_client")) is None else f"{sent / 1e6:,.1f}"
            for way in ("up", "down")
        ),
        "client steps per second": number(rate, ",.0f"),
        "training time": "-" if seconds is None else time_text(seconds),
    }
