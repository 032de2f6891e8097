"""What has become of the runs of a sweep: which have ended, and why others have not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from simsfl.cli.sweep.grid import ATTEMPT, Plan, Shortening
from simsfl.runs.directory import RunDirectory
from simsfl.runs.records import AttackRecord, Summary, read
from simsfl.ui.text import number, time_text

_IMPOSSIBLE = "impossible"
"""What is shown of a run that is not possible, for reasons that are given below the table."""


class Outcomes:
    """The runs of a sweep, as far as they have come.

    Args:
        title: title of the sweep.
        plans: the runs.
        out: the directory that holds the run directories.
        shortening: how their schedules are shortened; None where they are whole.
    """

    def __init__(self, title: str, plans: Sequence[Plan], out: Path, shortening: Shortening | None = None):
        self.title, self.plans, self.out, self.shortening = title, plans, out, shortening

    def is_finished(self, plan: Plan) -> bool:
        """Return whether a run and the attack on it, where it has one, have ended."""
        directory = RunDirectory(self.out / plan.name)
        return directory.summary.exists() and (not plan.attack_epochs or self.attack(plan) is not None)

    def attack(self, plan: Plan) -> AttackRecord | None:
        """Return the result of the attack on a run, or None where there is none that has ended."""
        if plan.cell.attack is None:
            return None
        file = RunDirectory(self.out / plan.name).attacks / f"{plan.cell.attack.decoder}.json"
        return read(file, AttackRecord) if file.exists() else None

    def summary(self, plan: Plan) -> Summary | None:
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

    @property
    def left(self) -> list[Plan]:
        """Return the runs that are possible and have not ended."""
        return [plan for plan in self.plans if not plan.problem and not self.is_finished(plan)]

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

    def trouble(self, plan: Plan) -> str:
        """Return why a run has no result, in short where it is not possible; see `problems`."""
        if plan.problem:
            return _IMPOSSIBLE
        if not plan.expert_has_ended(self.out):
            expert = next(p for p in self.plans if p.cell == plan.cell.expert and p.seed == plan.seed)
            return f"its expert did not finish: {self.trouble(expert)}"
        log = self.out / f"{plan.name}.log"
        text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
        lines = text.rpartition(ATTEMPT)[2].strip().splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        return errors[-1] if errors else f"failed, see {log}" if lines else "not run"

    def forecast(self) -> Table:
        """Return a table of the steps and estimated times of all runs, beside published figures if there are any."""
        table = Table(title=self.title, caption=Text("estimated by timing a few steps"))
        compared = any(plan.cell.published is not None for plan in self.plans)
        for column in ("cell", *["published"] * compared, "seed", "steps", *["share"] * compared, "time"):
            table.add_column(column, justify="left" if column == "cell" else "right")
        of_expert = {plan.cell.expert.name: plan.cell for plan in self.plans if plan.cell.expert}
        row = ""
        for plan in self.plans:
            heir = of_expert.get(plan.cell.name)
            row = headed(table, row, (heir or plan.cell).row)
            name = f"expert, {plan.cell.column}" if heir else plan.cell.column
            state = time_text(plan.seconds)
            if plan.problem or self.is_finished(plan):
                state = _IMPOSSIBLE if plan.problem else "finished"
            known = bool(plan.published_steps)
            published = [number(plan.cell.published)] if compared else []
            share = [f"{plan.share():.2%}" if known else "-"] if compared else []
            table.add_row(name, *published, str(plan.seed), f"{plan.steps:,}" if known else "-", *share, state)
        seconds = sum(plan.seconds for plan in self.left)
        table.add_row("all", *[""] * (len(table.columns) - 2), time_text(seconds), style="bold")
        return table


def headed(table: Table, previous: str, row: str) -> str:
    """Return the name of a row of the paper's table; add it to `table` as a heading if it is not the `previous` one."""
    if row != previous:
        table.add_row(row, *[""] * (len(table.columns) - 1), style="bold")
    return row
