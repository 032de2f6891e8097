"""Figures and a page on finished runs: ``python experiments/report.py RUN_DIR [RUN_DIR ...]``."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from rich.progress import track

from flags import Parser, fail, path
from simsfl import Simulation, augment, evaluate
from simsfl.metrics import History, read_records
from simsfl.plan import plan_round
from simsfl.run_directory import RunDirectory

PAIRS = 12
PCA_IMAGES = 2000
mpl.rcParams.update({"figure.dpi": 120, "axes.grid": True, "grid.alpha": 0.25, "font.size": 9})


def main(argv: Sequence[str] | None = None) -> int:
    """Write the report; the exit code."""
    parser = Parser(prog="report.py", description=__doc__)
    parser.add_argument("runs", type=path, nargs="+", metavar="RUN_DIR", help="directories of runs")
    parser.add_argument("--out", type=path, metavar="DIR", help="where to write (default: the first run's directory)")
    try:
        arguments = parser.parse(argv)
        directories = [RunDirectory(path) for path in arguments.runs]
        names = unique_names([directory.path for directory in directories])
        histories = {name: read_history(directory) for name, directory in zip(names, directories, strict=True)}
        out = RunDirectory(arguments.out or directories[0].path)
        figures = {"curves": ("Loss and kNN accuracy", curves(histories))}
        for name, directory in track(list(zip(names, directories, strict=True)), description="Drawing", transient=True):
            simulation = Simulation.load(directory.path, device="auto")
            for problem in simulation.passed_over:
                print(f"{problem}; using the one before", file=sys.stderr)
            suffix = f"-{re.sub(r'[^A-Za-z0-9_.-]+', '-', name)}" if len(names) > 1 else ""
            of = f" of {name}" if len(names) > 1 else ""
            figures[f"partition{suffix}"] = (f"Images per client and class{of}", partition(simulation))
            figures[f"views{suffix}"] = (f"Pairs of augmented views{of}", view_pairs(simulation))
            if len(simulation.dataset.test) < 3:
                continue  # two components need three points
            figures[f"features{suffix}"] = (
                f"Test features{of}, two principal components",
                features(simulation),
            )
        out.figures.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        return fail(error)
    for stem, (_, figure) in figures.items():
        figure.savefig(out.figures / f"{stem}.png")
        plt.close(figure)
    out.report.write_text(markdown(dict(zip(names, directories, strict=True)), histories, figures), encoding="utf-8")
    print(f"wrote {out.report} and {len(figures)} figures in {out.figures}")
    return 0


def unique_names(paths: list[Path]) -> list[str]:
    """The last part of each path, numbered where that is not unique."""
    last = [path.resolve().name for path in paths]
    return [name if last.count(name) == 1 else f"{name}-{i + 1}" for i, name in enumerate(last)]


def read_history(directory: RunDirectory) -> History:
    """All records of a run."""
    directory.read_config()
    history = History()
    if directory.metrics.exists():
        for record, _ in read_records(directory.metrics):
            history.feed(record)
    if not history.evaluations:
        raise ValueError(f"{directory.path} has no metrics yet; allowed: the directory of a run that has started")
    return history


def curves(histories: dict[str, History]) -> Figure:
    """Loss and kNN against rounds and against bytes sent, all runs over each other."""
    figure, axes = plt.subplots(2, 2, figsize=(9, 6), sharey="row", sharex="col", layout="constrained")
    for name, history in histories.items():
        rounds = [record["round"] for record in history.rounds]
        sent = [0.0] + [(r["bytes_up_per_client"] + r["bytes_down_per_client"]) / 1e6 for r in history.rounds]
        loss = [record["loss"] for record in history.rounds]
        knn = [record["knn_top1"] for record in history.evaluations]
        at = [min(record["round"], len(rounds)) for record in history.evaluations]
        axes[0, 0].plot(rounds, loss, label=name)
        axes[0, 1].plot(sent[1:], loss, label=name)
        (line,) = axes[1, 0].plot(at, knn, marker="o", markersize=3, label=name)
        axes[1, 1].plot([sent[r] for r in at], knn, marker="o", markersize=3, label=name)
        pixels = history.untrained("pixel_knn_top1")
        if pixels is not None:
            for axis in axes[1]:
                axis.axhline(pixels, color=line.get_color(), linestyle=":", linewidth=1, label=f"{name}: raw pixels")
    axes[0, 0].set_ylabel("contrastive loss")
    axes[1, 0].set_ylabel("kNN accuracy [%]")
    axes[1, 0].set_xlabel("round")
    axes[1, 1].set_xlabel("sent and received per client [MB]")
    axes[1, 0].legend(fontsize=8)
    return figure


def partition(simulation: Simulation) -> Figure:
    """Heat map of clients against classes, clients in the order of their main class."""
    labels = simulation.dataset.train_labels.cpu().numpy()
    counts = simulation.partition.class_counts(labels)
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
        simulation.partition,
        0,
        cohort=min(PAIRS, config.clients),
        batch_size=1,
        recipe=config.views,
        image_size=config.image_size,
        crop_scale=config.crop_scale,
        seed=config.seed,
        device=simulation.device,
    )
    indices = plan.indices[0]
    views = augment.apply(data.train, indices, plan.views.map(lambda t: t[0]))[:, :, 0]
    originals = data.train.pixels[indices[:, 0]].float() / 255
    rows = {
        "image": originals,
        "query": views[0] * data.train.std + data.train.mean,
        "key": views[1] * data.train.std + data.train.mean,
    }
    figure, axes = plt.subplots(
        3, len(indices), figsize=(0.85 * len(indices) + 0.6, 2.9), squeeze=False, layout="constrained"
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
    rows = torch.arange(min(PCA_IMAGES, len(data.test)), device=simulation.device)
    encode = evaluate.encoder(simulation.model, simulation.state, simulation.config.eval_features)
    embedded = torch.nn.functional.normalize(evaluate.embed(encode, data.test, rows), dim=1)
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


def markdown(
    directories: dict[str, RunDirectory],
    histories: dict[str, History],
    figures: dict[str, tuple[str, Figure]],
) -> str:
    """The page: what was run, what came of it, the figures."""
    lines = [
        "# simsfl report",
        "",
        "| run | " + " | ".join(COLUMNS) + " |",
        "|---" * (len(COLUMNS) + 1) + "|",
    ]
    for name, directory in directories.items():
        config, history = directory.read_config()["config"], histories[name]
        summary = json.loads(directory.summary.read_text()) if directory.summary.exists() else {}
        best = max(record["knn_top1"] for record in history.evaluations)
        linear = summary.get("linear_top1")
        cells = [
            config["preset"],
            Path(config["dataset"]).name,
            f"{config['arch']} / {config['cut_layer']}",
            f"{config['clients']:,} / {config['cohort']:,}",
            f"{len(history.rounds):,} of {config['rounds']:,}",
            f"{history.value('evaluation', 'knn_top1'):.2f} ({best:.2f})",
            "-" if linear is None else f"{linear:.2f}",
            f"{summary['client_steps_per_second']:,.0f}" if summary else "-",
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    for stem, (title, _) in figures.items():
        lines += ["", f"## {title}", "", f"![{title}](figures/{stem}.png)"]
    return "\n".join([*lines, ""])


COLUMNS = (
    "preset",
    "data set",
    "architecture / cut layer",
    "clients / cohort",
    "rounds",
    "kNN, last (best) [%]",
    "linear probe [%]",
    "client steps per second",
)

if __name__ == "__main__":
    sys.exit(main())
