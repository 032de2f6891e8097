"""Show how far the preset ``evening`` comes: ``python docs/evening.py [RUN_DIR ...]``.

The runs, one for each seed, are added to ``benchmarks/evening.json``. From that, the table of ``docs/accuracy.md``
between ``<!-- evening -->`` and ``<!-- end -->`` is made, and the picture ``docs/evening.svg``.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from simsfl.runs.directory import RunDirectory
from simsfl.runs.metrics_log import read_records
from simsfl.ui.markdown import lines_of
from simsfl.ui.text import mean_text, time_text

DOCS = Path(__file__).parent
KEPT = DOCS.parent / "benchmarks" / "evening.json"
PLACE = re.compile(r"(<!-- evening -->\n).*?(<!-- end -->)", re.DOTALL)
_STEPS = (1_250, 2_500, 5_000, 10_000, 20_000, 30_000, 36_000)
"""Steps whose accuracies the table has."""


def main(runs: Sequence[str]) -> int:
    """Keep what runs have reached, and rewrite the table and the picture; return the exit code."""
    kept = json.loads(KEPT.read_text("utf-8")) if KEPT.exists() else {}
    for run in runs:
        kept.update(reached(RunDirectory(run)))
    KEPT.write_text(json.dumps(dict(sorted(kept.items())), indent=1) + "\n", "utf-8")
    page = DOCS / "accuracy.md"
    page.write_text(PLACE.sub(lambda place: place[1] + table(kept) + place[2], page.read_text("utf-8")), "utf-8")
    picture(kept, DOCS / "evening.svg")
    return 0


def reached(directory: RunDirectory) -> dict[str, Any]:
    """Return what is kept of a run, by its seed: accuracies in percent by step, seconds of training, and versions."""
    content, summary = directory.read_config(), directory.read_summary()
    records = [record for record, _ in read_records(directory.metrics)]
    each = summary.steps // summary.rounds
    knn = {str(each * one["round"]): round(one["knn_top1"], 2) for one in records if one["event"] == "evaluation"}
    about = json.loads(directory.config.read_text("utf-8"))
    where = {name: about[name] for name in ("machine", "threads", "git_commit")} | {"torch": about["versions"]["torch"]}
    return {str(content.config.seed): {"knn": knn, "seconds": round(summary.seconds), **where}}


def table(kept: dict[str, Any]) -> str:
    """Return the accuracies of all seeds after some of the steps as a Markdown table."""
    rows = [["steps", *(f"seed {seed}" for seed in kept), "mean"]]
    for steps in _STEPS:
        values = [own["knn"][str(steps)] for own in kept.values()]
        rows.append([f"{steps:,}", *(f"{value:.2f}" for value in values), mean_text(values)])
    rows.append(["training", *(time_text(own["seconds"]) for own in kept.values()), ""])
    return "\n".join(lines_of(rows, [True] * len(rows[0]))) + "\n"


def picture(kept: dict[str, Any], path: Path) -> None:
    """Draw the accuracy of each seed against the steps."""
    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    for seed, own in kept.items():
        axes.plot(
            list(map(int, own["knn"])), list(own["knn"].values()), ".-", lw=1.2, markersize=4, label=f"seed {seed}"
        )
    axes.set_xlabel("training step")
    axes.set_ylabel("kNN accuracy on test images [%]")
    axes.grid(alpha=0.3)
    axes.legend()
    with plt.rc_context({"svg.hashsalt": "evening"}):  # names inside are the same each time
        figure.savefig(path, facecolor="white", metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
