"""The report as a page of Markdown, and the part of any page that shows figures."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from simsfl.cli.report.cells import notes, table_of_runs
from simsfl.cli.report.figures import FEW
from simsfl.cli.report.runs import Run
from simsfl.cli.report.settings import grouped, repeated, summary_table
from simsfl.runs.directory import RunDirectory
from simsfl.ui.markdown import escaped, lines_of, markdown, picture

SEEDS = "Mean ± standard deviation over the seeds of each setting."
"""What pages say of the table of settings."""
LEFT_OUT = f"Partitions, views, features and reconstructions are shown in reports of {FEW} runs at most."
"""What pages say of figures that they lack."""
_CAPTIONS = {
    "curves": "Loss of every step, smoothed over a fortieth of the steps, with the steps themselves faint behind (it "
    "may begin below what is shown, while the queue fills); accuracy of the kNN monitor on the test images. Of several "
    "seeds: mean, with a band of one standard deviation.",
    "divergence": "Distance of the cohort's models to their average. The band is the standard deviation over the "
    "cohort, and over seeds where there are several.",
    "fleet": "Accuracy of the kNN monitor against what the fleet has spent, on average over all clients; of several "
    "seeds: mean, with a band of one standard deviation. Lines tell how the times of the devices are known: measured, "
    "scaled from measurements of other work, or computed from a published speed.",
    "fleet_work": "Hours in which everyone waited for each phase; share of the clients drawn of each group that missed "
    "a deadline (late), or did not come for another reason (away); and hours and energy of single clients.",
    "excluded": "Left: of the images of each class, those that clients hold who never came, or were late in more than "
    "half of the rounds for which they were drawn. Early in a run, some have just not been drawn yet.",
}
"""What the page says below a figure, by its file name without suffix, and without the number of a run."""


def figure_lines(figures: Mapping[str, tuple[str, Figure]], formats: Sequence[str]) -> list[str]:
    """Return lines of Markdown with each figure below its title, and its caption if it has one.

    Args:
        figures: titles and figures, by the names of their files below ``figures/`` without suffix.
        formats: the formats of the files; the page shows one that browsers show, or has a link.
    """
    shown, lines = next((kind for kind in ("png", "svg") if kind in formats), "pdf"), []
    for stem, (title, _) in figures.items():
        link = picture(title, f"figures/{stem}.{shown}")
        lines += ["", f"## {escaped(title)}", "", link.removeprefix("!") if shown == "pdf" else link]
        if (kind := stem.partition("-")[0]) in _CAPTIONS:
            lines += ["", _CAPTIONS[kind]]
    return lines[1:]


def report_page(runs: list[Run], figures: dict[str, tuple[str, Figure]], out: Path, formats: Sequence[str]) -> str:
    """Return the report as Markdown: a table of settings and results, then the figures.

    If a setting was run with several seeds, the table has a row for each setting, and that of runs comes last.

    Args:
        runs: the runs, a column of the table each.
        figures: titles and figures by file name, as of `draw`.
        out: the directory that the page is written into; links are relative to it.
        formats: the formats of the figures' files.
    """
    settings = grouped(runs)
    seeds = repeated(settings)
    table = table_of_runs(runs)
    lines = ["# simsfl report", ""]
    if seeds:
        lines += [*markdown(summary_table(settings)).strip().split("\n"), "", SEEDS]
    else:
        lines += lines_of(table)
    for name, text in notes(runs):
        lines += ["", f"**{escaped(name)}:** {text}"]
    lines += ["", *figure_lines(figures, formats)]
    if len(runs) > FEW:
        lines += ["", LEFT_OUT]
    for run in runs if len(runs) <= FEW else ():
        for decoder in run.attacks:
            sheet = os.path.relpath(RunDirectory(run.path).attacks / f"{decoder}.png", out)
            title = f"Reconstructions by {decoder} of {run.name}"
            lines += ["", f"## {escaped(title)}", "", picture("originals, reconstructions", sheet)]
    if seeds:
        lines += ["", "## Runs", "", *lines_of(table)]
    return "\n".join([*lines, ""])
