"""The results of a grid's runs beside the published figures: as Markdown, on the terminal and as a figure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
from rich.table import Table
from rich.text import Text

from simsfl.cli.table.cells import Table as PaperTable
from simsfl.cli.table.grid import ATTACK_EPOCHS, ATTEMPT, Plan
from simsfl.runs.directory import RunDirectory
from simsfl.runs.records import AttackRecord, Summary, read
from simsfl.system.outputs import Outputs
from simsfl.ui.dashboard import number, time_text
from simsfl.ui.markdown import escaped, markdown
from simsfl.ui.plot_text import literal

_ATTACK = "res_normN4C64"
"""Decoder of the attack, after which the file of its result is named."""
_CONTRAST = (
    "the published MSE is of images at four fifths of their contrast, which takes about a third off; here they are "
    "attacked as they are"
)
"""What is said beside published errors of attacks."""
_LINEAR, _KNN = "linear probe", "kNN"
"""Names of the two measures of accuracy."""
_NOTE = 110
"""Most characters on a line of the note in the figure, whose letters are small."""
_IMPOSSIBLE = "impossible"
"""What is shown of a run that is not possible, for reasons that are given below the table."""


class Results:
    """The results of those runs of a grid that have ended.

    Args:
        table: the table that the grid runs again.
        plans: the runs, in the table's order.
        out: the directory that holds the run directories.
        budget: minutes that all runs were shortened to, or None.
        flags: config fields that the user gave for all runs.
    """

    def __init__(
        self, table: PaperTable, plans: Sequence[Plan], out: Path, budget: float | None, flags: dict[str, Any]
    ):
        self.title, self.context, self.flags = table.title, table.context, flags
        self.plans, self.out, self.budget = plans, out, budget
        self.attacked = any(cell.attacked for cell in table.cells)

    def is_finished(self, plan: Plan) -> bool:
        """Return whether a run and the attack on it, where it has one, have ended."""
        directory = RunDirectory(self.out / plan.name)
        return directory.summary.exists() and (not plan.attack_epochs or self._attack(plan) is not None)

    def _attack(self, plan: Plan) -> AttackRecord | None:
        """Return the result of the attack on a run, or None where that has not ended."""
        file = RunDirectory(self.out / plan.name).attacks / f"{_ATTACK}.json"
        return read(file, AttackRecord) if file.exists() else None

    def _summary(self, plan: Plan) -> Summary | None:
        """Return the content of a run's ``summary.json``, or None where the run has not ended.

        Raises:
            ValueError: the file is damaged, or has no accuracy.
        """
        if not self.is_finished(plan):
            return None
        directory = RunDirectory(self.out / plan.name)
        summary = directory.read_summary()
        if summary.knn_top1 is None:
            raise ValueError(f"{directory.summary} has no accuracy; allowed: what a run writes at its end")
        return summary

    def _cells(self) -> Iterator[list[Plan]]:
        """Yield the runs of each cell of the table, one for each seed; experts are no cells."""
        names = dict.fromkeys(plan.cell.name for plan in self.plans if plan.cell.attacked or not self.attacked)
        yield from ([plan for plan in self.plans if plan.cell.name == name] for name in names)

    def problems(self) -> list[str]:
        """Return a line for each reason why runs are not possible, with the name of the run or the number of runs."""
        by_reason: dict[str, list[Plan]] = {}
        for plan in self.plans:
            if plan.problem:
                by_reason.setdefault(plan.problem, []).append(plan)
        return [
            f"{plans[0].name if len(plans) == 1 else f'{len(plans)} runs'}: {reason}"
            for reason, plans in by_reason.items()
        ]

    def forecast(self) -> Table:
        """Return a table of the steps and estimated times of all runs, beside the published figures."""
        table = Table(title=self.title, caption=Text(f"estimated by timing a few steps; {self._note()}"))
        for column in ("cell", "published", "seed", "steps", "share", "time"):
            table.add_column(column, justify="left" if column == "cell" else "right")
        of_expert = {plan.cell.expert.name: plan.cell for plan in self.plans if plan.cell.expert}
        row = None
        for plan in self.plans:
            heir = of_expert.get(plan.cell.name)
            row = _headed(table, row, (heir or plan.cell).row)
            name = f"expert, {plan.cell.column}" if heir else plan.cell.column
            state = time_text(plan.seconds)
            if plan.problem or self.is_finished(plan):
                state = _IMPOSSIBLE if plan.problem else "finished"
            steps = (f"{plan.steps:,}", f"{plan.share():.2%}") if plan.published_steps else ("-", "-")
            table.add_row(name, number(plan.cell.published), str(plan.seed), *steps, state)
        total = sum(plan.seconds for plan in self.plans if not self.is_finished(plan))
        table.add_row("all", "", "", "", "", time_text(total), style="bold")
        return table

    def table(self) -> Table:
        """Return the table of results: a row for each cell, with the published figure and the one found here."""
        table = Table(title=self.title, caption=Text(self._note() + self.attacked * f"; {_CONTRAST}"))
        for column in ("cell", "published", "here", "measured by", "steps", "share", "time"):
            table.add_column(column, justify="left" if column in ("cell", "measured by") else "right")
        if self.attacked:
            table.add_column("attack's MSE, published", justify="right")
            table.add_column("here", justify="right")
        row = None
        for plans in self._cells():
            cell, ended = plans[0].cell, [s for plan in plans if (s := self._summary(plan))]
            row = _headed(table, row, cell.row)
            if not ended:
                nothing = ["-"] * (len(table.columns) - 4)
                table.add_row(cell.column, number(cell.published), "-", Text(self._trouble(plans[0])), *nothing)
                continue
            kind, figures = _accuracies(ended)
            spread = f" ± {stdev(figures):.2f}" if len(figures) > 1 else ""
            whole = next(plan.published_steps for plan in plans if self.is_finished(plan))
            steps = ended[0].steps
            table.add_row(
                cell.column,
                number(cell.published),
                f"{mean(figures):.2f}{spread}",
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
        published, found = plans[0].cell.published_mse, [a for plan in plans if (a := self._attack(plan))]
        errors = [attack.mse.mean for attack in found]
        spread = f" ± {stdev(errors):.3f}" if len(errors) > 1 else ""
        short = " †" if any(attack.epochs < ATTACK_EPOCHS for attack in found) else ""
        return ["-" if published is None else f"{published:.3f}", f"{mean(errors):.3f}{spread}{short}"]

    def _note(self) -> str:
        """Return the caption of the figures: preset, flags, budget and the meaning of the marks."""
        preset = self.plans[0].config.preset
        budget = f"schedules shortened to fit {self.budget:g} minutes; " if self.budget else ""
        changed = {name for plan in self.plans for name in self.flags if plan.cell.settings.get(name) is not None}
        flags = ", ".join(f"{name} {value}" + " ‡" * (name in changed) for name, value in self.flags.items())
        return (
            f"preset {preset}{', ' * bool(flags)}{flags}; {budget}share of the published steps, † fewer; accuracies in "
            "percent; time of training" + "; ‡ a setting other than the published one" * bool(changed)
        )

    def _trouble(self, plan: Plan) -> str:
        """Return why a run has no result, in short where it is not possible; see `problems`."""
        if plan.problem:
            return _IMPOSSIBLE
        if not plan.expert_has_ended(self.out):
            expert = next(p for p in self.plans if p.cell == plan.cell.expert and p.seed == plan.seed)
            return f"its expert did not finish: {self._trouble(expert)}"
        log = self.out / f"{plan.name}.log"
        text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
        lines = text.rpartition(ATTEMPT)[2].strip().splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        return errors[-1] if errors else f"failed, see {log}" if lines else "not run"

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
        figure, axes = plt.subplots(figsize=(8, 1.2 + 0.28 * len(cells)), layout="constrained")
        for position, plans in enumerate(cells):
            if plans[0].cell.published is not None:
                axes.plot(plans[0].cell.published, position, "D", color="#999999", label="published")
            ended = [s for plan in plans if (s := self._summary(plan))]
            if ended:
                kind, figures = _accuracies(ended)
                colour = "#1f77b4" if kind == _LINEAR else "#ff7f0e"
                axes.plot(figures, [position] * len(figures), "o", color=colour, label=f"here, {kind}")
        axes.set_yticks(range(len(cells)), [plans[0].cell.name for plans in cells], fontsize=7)
        axes.set_ylim(len(cells) - 0.5, -0.5)
        axes.set_xlabel("accuracy [%]")
        axes.grid(alpha=0.3)
        figure.suptitle(f"{literal(self.title)}\n{literal(self._note(), _NOTE)}", fontsize=8)
        handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        if handles:
            axes.legend(handles.values(), handles.keys(), fontsize=7)
        return figure


def _headed(table: Table, previous: str | None, row: str) -> str:
    """Return the name of a row of the paper's table; add it to `table` as a heading if it is not the `previous` one."""
    if row != previous:
        table.add_row(row, *[""] * (len(table.columns) - 1), style="bold")
    return row


def _seeds_text(ended: int, all_of_them: int) -> str:
    """Return how many runs a figure is the mean of, such as ``, 2 of 3 seeds``; empty for the only run of its cell."""
    if ended < all_of_them:
        return f", {ended} of {all_of_them} seeds"
    return f", {ended} seeds" if ended > 1 else ""


def _accuracies(summaries: Sequence[Summary]) -> tuple[str, list[float]]:
    """Return the measure of the runs, and their accuracies in percent by it.

    The measure is the linear probe, or kNN where a run has no linear probe.
    """
    linear = [summary.linear_top1 for summary in summaries]
    return (_LINEAR, linear) if None not in linear else (_KNN, [summary.knn_top1 for summary in summaries])
