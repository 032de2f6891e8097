"""The results of a grid's runs beside the published figures: as Markdown, on the terminal and as a figure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
from rich.table import Table
from rich.text import Text

from simsfl.cli.sweep.grid import Plan, Shortening
from simsfl.cli.sweep.outcomes import Outcomes, headed
from simsfl.cli.table.cells import PUBLISHED
from simsfl.cli.table.cells import Table as PaperTable
from simsfl.runs.records import LINEAR, accuracies
from simsfl.system.outputs import Outputs
from simsfl.ui.markdown import escaped, markdown
from simsfl.ui.plot_text import literal
from simsfl.ui.text import mean_text, number, time_text

RESULTS = ("table.md", "table.png")
"""Names of the files that a table writes beside what belongs to single runs."""
_CONTRAST = (
    "the published MSE is of images at four fifths of their contrast, which takes about a third off; here they are "
    "attacked as they are"
)
"""What is said beside published errors of attacks."""
_NOTE = 110
"""Most characters on a line of the note in the figure, whose letters are small."""


class Results(Outcomes):
    """The results of those runs of a grid that have ended.

    Args:
        table: the table that the grid runs again.
        plans: the runs, in the table's order.
        out: the directory that holds the run directories.
        shortening: how schedules are shortened; None where they are whole.
        flags: config fields that the user gave for all runs.
    """

    def __init__(
        self,
        table: PaperTable,
        plans: Sequence[Plan],
        out: Path,
        shortening: Shortening | None,
        flags: dict[str, Any],
    ):
        super().__init__(table.title, plans, out, shortening)
        self.context, self.flags = table.context, flags
        self.attacked = any(cell.attack for cell in table.cells)

    def _cells(self) -> Iterator[list[Plan]]:
        """Yield the runs of each cell of the table, one for each seed; experts are no cells."""
        names = dict.fromkeys(plan.cell.name for plan in self.plans if plan.cell.attack or not self.attacked)
        yield from ([plan for plan in self.plans if plan.cell.name == name] for name in names)

    def table(self) -> Table:
        """Return the table of results: a row for each cell, with the published figure and the one found here."""
        table = Table(title=self.title, caption=Text(self.note() + self.attacked * f"; {_CONTRAST}"))
        for column in ("cell", "published", "here", "measured by", "steps", "share", "time"):
            left = column in ("cell", "measured by")
            table.add_column(column, justify="left" if left else "right", no_wrap=not left)
        if self.attacked:
            table.add_column("attack's MSE, published", justify="right")
            table.add_column("here", justify="right")
        row = ""
        for plans in self._cells():
            cell, ended = plans[0].cell, [s for plan in plans if (s := self.summary(plan))]
            row = headed(table, row, cell.row)
            if not ended:
                nothing = ["-"] * (len(table.columns) - 4)
                table.add_row(cell.column, number(cell.published), "-", Text(self.trouble(plans[0])), *nothing)
                continue
            kind, figures = accuracies(ended)
            whole = next(plan.published_steps for plan in plans if self.is_finished(plan))
            steps = ended[0].steps
            table.add_row(
                cell.column,
                number(cell.published),
                mean_text(figures),
                kind + _seeds_text(len(figures), len(plans)),
                f"{steps:,}",
                f"{steps / whole:.2%}" + (" †" if steps < whole else ""),
                time_text(sum(summary.seconds for summary in ended)),
                *self._attack_cells(plans),
            )
        return table

    def _attack_cells(self, plans: Sequence[Plan]) -> list[str]:
        """Return the mean squared error of the attacks on a cell's runs, as published and as found here.

        The list is empty where no cell of the table is attacked.
        """
        if not self.attacked:
            return []
        published, found = plans[0].cell.published_mse, [a for plan in plans if (a := self.attack(plan))]
        errors = [attack.mse.mean for attack in found]
        short = " †" if any(attack.epochs < plans[0].cell.attack.epochs for attack in found) else ""
        return ["-" if published is None else f"{published:.3f}", mean_text(errors, ".3f") + short]

    def note(self) -> str:
        """Return the caption of the figures: preset, flags, budget and the meaning of the marks."""
        preset = self.plans[0].config.preset
        changed = {name for plan in self.plans for name in self.flags if plan.cell.settings.get(name) is not None}
        flags = ", ".join(f"{name} {value}" + " ‡" * (name in changed) for name, value in self.flags.items())
        parts = [
            f"preset {preset}{', ' * bool(flags)}{flags}",
            f"here: {self._ours()}",
            *[f"published: {PUBLISHED}"] * any(plan.cell.published is not None for plan in self.plans),
            *[str(self.shortening)] * bool(self.shortening),
            "share of the published steps, † fewer",
            "accuracies in percent",
            "time of training",
            *["‡ a setting other than the published one"] * bool(changed),
        ]
        return "; ".join(parts)

    def _ours(self) -> str:
        """Return the networks and schedules of the runs in short, such as ``resnet8 of width 16, 500 steps``."""
        possible = [plan for plan in self.plans if not plan.problem] or self.plans
        networks = dict.fromkeys(
            plan.config.arch + f" of width {plan.config.width}" * (plan.config.width is not None) for plan in possible
        )
        steps = sorted({plan.steps for plan in possible})
        lengths = f"{steps[0]:,}" + f" to {steps[-1]:,}" * (len(steps) > 1)
        return f"{', '.join(networks)}, {lengths} steps"

    def write(self) -> None:
        """Write ``table.md`` and ``table.png``."""
        problems = "".join(f"- {escaped(problem)}\n" for problem in self.problems())
        table = self.table()
        table.title = None  # the page has it
        page = [f"# {self.title}", markdown(table), problems, escaped(self.context), "![](table.png)"]
        out = Outputs(self.out)
        out.write_text("table.md", "\n\n".join(part.strip() for part in page if part) + "\n")
        figure = self._figure()
        with out.replacing("table.png") as file:
            figure.savefig(file)
        plt.close(figure)

    def _figure(self) -> plt.Figure:
        """Draw the published figures and those found here, cell by cell."""
        cells = list(self._cells())
        title = f"{literal(self.title)}\n{literal(self.note(), _NOTE)}"
        height = 1.5 + 0.28 * len(cells) + 0.15 * len(title.splitlines())
        figure, axes = plt.subplots(figsize=(8, height), layout="constrained")
        for position, plans in enumerate(cells):
            if plans[0].cell.published is not None:
                at = plans[0].cell.published
                axes.plot(at, position, "|", color="black", markersize=11, label=f"published: {PUBLISHED}")
            ended = [s for plan in plans if (s := self.summary(plan))]
            if ended:
                kind, figures = accuracies(ended)
                colour = "#1f77b4" if kind == LINEAR else "#ff7f0e"
                axes.plot(figures, [position] * len(figures), "o", color=colour, label=f"here: {self._ours()}, {kind}")
        axes.set_yticks(range(len(cells)), [plans[0].cell.name for plans in cells], fontsize=7)
        axes.set_ylim(len(cells) - 0.5, -0.5)
        axes.set_xlabel("accuracy [%]")
        axes.grid(alpha=0.3)
        figure.suptitle(title, fontsize=8)
        handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        if handles:
            figure.legend(handles.values(), handles.keys(), fontsize=7, loc="outside lower center")
        return figure


def _seeds_text(ended: int, all_of_them: int) -> str:
    """Return how many runs a figure is the mean of, such as ``, 2 of 3 seeds``; empty for the only run of its cell."""
    if ended < all_of_them:
        return f", {ended} of {all_of_them} seeds"
    return f", {ended} seeds" if ended > 1 else ""
