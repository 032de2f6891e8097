"""The page of results: a section for each comparison, with a table, a chart and the commands of its cells."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean

import matplotlib as mpl

mpl.use("Agg")

from matplotlib.figure import Figure

from simsfl.cli.results.cells import Section
from simsfl.cli.results.records import CellRecord, Kept, SeedRecord, command_of
from simsfl.cli.sweep.cells import Cell
from simsfl.cli.table.cells import PUBLISHED
from simsfl.runs.records import KNN, LINEAR, accuracies
from simsfl.system.files import replacing
from simsfl.system.messages import count_text
from simsfl.ui.markdown import lines_of, picture
from simsfl.ui.plot_text import literal
from simsfl.ui.text import mean_text, number

_NOT_RUN = "not run"
_INTRODUCTION = """\
# Results

What small runs of this version reach, beside the published figures where there are any. `experiments/results_page.py`
makes this page from `benchmarks/results/*.json`, which have every figure by seed.

- **Here**: `--preset laptop` on CIFAR-10 with 10,000 images for kNN and 2,000 test images, one pass over the training
  images (500 steps of 100 images, unless a cell says otherwise), nothing tuned. That is a small network after a small
  part of the published schedule: compare cells of one table with each other, not with the published figures.
- **Published**: {published} (Li et al., ICLR 2023).
- Accuracies are of the test images in percent, published ones of a linear probe, those here of kNN unless a row says
  otherwise: mean ± standard deviation (n - 1) over seeds, whose number is in brackets. A difference of less than two
  standard deviations may be chance.
- GB: sent and received by all clients together. Hours: training of all seeds together.
- Clients that are non-IID hold 2 of the 10 classes.

What is missing is made by `python experiments/results_page.py --run --budget 120 --jobs 2`, which runs what fits in 120
minutes, keeps the figures and writes this page again.
"""


def page(sections: Mapping[str, Section], kept: Kept) -> str:
    """Return the page as Markdown.

    Args:
        sections: the sections by name.
        kept: what is kept of the runs of their cells.
    """
    records = [record for section in sections.values() for cell in section.cells if (record := kept.of(cell))]
    cards = sorted({run.machine for record in records for run in record.runs if run.card})
    parts = [_INTRODUCTION.format(published=PUBLISHED), _references(records)]
    for name, section in sections.items():
        parts += [f"## {section.title}", section.about, "\n".join(_table(section, kept)), section.found]
        if _drawn(section, kept):
            parts.append(picture(section.title, f"results/{name}.svg"))
        parts.append(_commands(section, kept))
    measured = f"Measured on {', '.join(cards)}; the tables say what." if cards else "Not measured."
    parts += ["## CUDA", measured]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _references(records: Iterable[CellRecord]) -> str:
    """Return what an untrained network and the pixels themselves reach, as a sentence; empty if there are no runs."""
    runs = {run.seed: run for record in records if record.arch == "resnet8" for run in record.runs}.values()
    texts = []
    for what, name in (("an untrained network", "knn_top1_untrained"), ("the pixels themselves", "knn_top1_pixels")):
        values = [value for run in runs if (value := getattr(run, name)) is not None]
        if values:
            texts.append(f"{what}: {min(values):.1f} to {max(values):.1f} %")
    return f"By the same kNN, depending on the seed, {', '.join(texts)}." if texts else ""


def _table(section: Section, kept: Kept) -> list[str]:
    """Return the lines of a section's table."""
    found = {cell.name: kept.of(cell) for cell in section.cells}
    published = any(cell.published is not None for cell in section.cells)
    head = ["cell", *["published"] * published, f"here, {KNN}", *["SSIM", "MSE"] * section.attacked, "loss", "GB"]
    head += ["network", "steps", "machine", "hours", "commit"]
    left = ("cell", "network", "machine", "commit")
    rows = [head]
    for cell in section.cells:
        record = found[cell.name]
        row = [cell.name, *[number(cell.published)] * published]
        row += _figures(section, record) if record else [_NOT_RUN, *["-"] * (len(head) - len(row) - 1)]
        rows.append(row)
    return lines_of(rows, [name not in left for name in head])


def _figures(section: Section, record: CellRecord) -> list[str]:
    """Return the texts of a cell's runs for its row of the table."""
    kind, values = accuracies(record.runs)
    losses = [run.loss for run in record.runs if run.loss is not None]
    traffic = [run.bytes for run in record.runs if run.bytes is not None]
    cut = f", cut {record.cut_layer}" if record.cut_layer else ", not cut"
    return [
        f"{mean_text(values, '.2f')} ({len(values)})" + f", {LINEAR}" * (kind == LINEAR),
        *(_attacked(record.runs) if section.attacked else []),
        mean_text(losses, ".3f"),
        number(mean(traffic) / 1e9 if traffic else None),
        f"{record.arch}, width {record.width}{cut}",
        f"{record.steps:,} of {record.cohort} x {record.batch_size}",
        ", ".join(dict.fromkeys(_machine(run) for run in record.runs)),
        f"{sum(run.seconds for run in record.runs) / 3600:.2f}",
        ", ".join(dict.fromkeys(_commit(run) for run in record.runs)),
    ]


def _attacked(runs: Sequence[SeedRecord]) -> list[str]:
    """Return similarity and error of the attacks on runs, as texts."""
    found = [run.attack for run in runs if run.attack]
    if not found:
        return [_NOT_RUN, "-"]
    several = f" ({len(found)})" if len(found) != len(runs) else ""
    mirrored = mean_text([attack.ssim_mirrored for attack in found], ".3f")
    return [
        f"{mean_text([attack.ssim for attack in found], '.3f')} [{mirrored}]{several}",
        mean_text([attack.mse for attack in found], ".4f"),
    ]


def _machine(run: SeedRecord) -> str:
    """Return machine, precision and threads of a run, such as ``AMD EPYC, 1 thread``."""
    how = "" if run.precision == "fp32" else f", {run.precision}"
    return run.machine + how + ("" if run.card else f", {count_text(run.threads, 'thread')}")


def _commit(run: SeedRecord) -> str:
    """Return the commit of a run in short, with a sign that there were changes to it."""
    commit = run.commit or "not known"
    return commit[:7] + " with changes" * commit.endswith("-dirty")


def _commands(section: Section, kept: Kept) -> str:
    """Return the commands of a section's cells, folded."""
    lines = []
    for cell in section.cells:
        record = kept.of(cell)
        command = record.command if record else f"# {cell.problem}" if cell.problem else command_of(kept.as_run(cell))
        lines += [f"# {cell.name}", command]
    text = "\n".join(lines)
    return f"<details><summary>Commands (of seed 0)</summary>\n\n```\n{text}\n```\n\n</details>"


def _drawn(section: Section, kept: Kept) -> list[Cell]:
    """Return the cells of a section's chart: those with runs, if there are several."""
    found = [cell for cell in section.cells if kept.of(cell)]
    return found if len(found) > 1 else []


def write_charts(directory: Path, sections: Mapping[str, Section], kept: Kept) -> None:
    """Write a chart for each section of which several cells have runs, as ``NAME.svg``."""
    how = {"svg.hashsalt": "simsfl", "svg.fonttype": "none"}  # equal runs make equal files, with text as text
    for name, section in sections.items():
        if cells := _drawn(section, kept):
            directory.mkdir(parents=True, exist_ok=True)
            with mpl.rc_context(how), replacing(directory / f"{name}.svg") as temporary:
                chart(section, cells, kept).savefig(temporary, metadata={"Date": None})


def chart(section: Section, cells: Sequence[Cell], kept: Kept) -> Figure:
    """Draw the accuracy of each seed of a section's cells and their mean; where they are attacked, SSIM beside it."""
    shown = 2 if section.attacked else 1
    figure = Figure(figsize=(4.6 + 2.2 * shown, 0.9 + 0.24 * len(cells)), layout="constrained")
    axes = figure.subplots(1, shown, sharey=True, squeeze=False)[0]
    kinds = set()
    for position, cell in enumerate(cells):
        record = kept.of(cell)
        kind, values = accuracies(record.runs)
        kinds.add(kind)
        similar = [run.attack.ssim for run in record.runs if run.attack]
        for axis, own in zip(axes, (values, similar), strict=False):
            axis.plot(own, [position] * len(own), "o", color="#1f77b4", alpha=0.5, markersize=4, markeredgewidth=0)
            axis.plot([mean(own)] if own else [], [position] if own else [], "|", color="black", markersize=10)
    axes[0].set_yticks(range(len(cells)), [literal(cell.name) for cell in cells], fontsize=7)
    axes[0].set_ylim(len(cells) - 0.5, -0.5)
    for axis, label in zip(axes, (f"{' or '.join(sorted(kinds))} [%]", "SSIM of the attack"), strict=False):
        axis.set_xlabel(label, fontsize=8)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
    return figure
