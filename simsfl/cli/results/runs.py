"""The runs that the page of results is still missing: which fit in a budget, and what becomes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from simsfl.cli.cost.tables import outline_of
from simsfl.cli.results.cells import base, config_of
from simsfl.cli.results.records import Kept
from simsfl.cli.sweep.cells import Cell
from simsfl.cli.sweep.grid import Plan
from simsfl.cli.sweep.launchers import threads_of
from simsfl.cli.sweep.outcomes import Outcomes
from simsfl.cli.sweep.planning import timed
from simsfl.system.console import Output

if TYPE_CHECKING:
    from simsfl.cli.results.program import Pages


def planned_within(
    kept: Kept,
    cells: Sequence[Cell],
    seeds: Sequence[int],
    budget: float | None,
    jobs: int,
    console: Output,
) -> tuple[list[Plan], int]:
    """Return plans for the runs that are missing, cell by cell, as long as they fit in a budget.

    Cells with more steps come later. Cells of one setting have the same runs, which are planned once.

    Args:
        kept: what is kept of the cells.
        cells: the cells.
        seeds: the seeds that each cell is to have.
        budget: minutes, or None for no limit.
        jobs: how many runs go side by side.
        console: where it is said at once what is done.

    Returns:
        The plans, and how many runs are missing beyond them.

    Raises:
        ValueError: the data set is not there.
    """
    missing: dict[str, tuple[Cell, list[int]]] = {}
    for cell in sorted(cells, key=_steps):
        name = kept.name_of(cell)
        if name not in missing and (left := kept.missing(cell, seeds)):
            missing[name] = kept.as_run(cell), left
    if jobs > 1:
        torch.set_num_threads(threads_of(jobs))  # so that steps are timed as they will be run
    if missing:
        console.say(f"a few steps of each of {len(missing)} cells are timed first, as far as they fit")
    plans, spent, count = [], 0.0, sum(len(left) for _, left in missing.values())
    for cell, left in missing.values():
        first = timed([(cell, left[0])], base(), {})[0].whole()
        if first.problem.startswith("dataset:"):  # which is that of all cells
            raise ValueError(first.problem)
        for seed in left:
            spent += first.seconds
            if budget and spent > 60 * budget * jobs:
                return plans, count - len(plans)
            plans.append(replace(first, seed=seed, config=replace(first.config, seed=seed)))
    return plans, 0


def _steps(cell: Cell) -> int:
    """Return the steps of a cell's runs."""
    outline = outline_of(config_of(cell), None)
    return outline.steps * outline.config.rounds


class Runs(Outcomes):
    """Runs that the page is missing; each is kept for the page as soon as it has ended.

    Args:
        pages: the page.
        plans: the runs.
        out: the directory that holds the run directories.
    """

    def __init__(self, pages: Pages, plans: Sequence[Plan], out: Path):
        super().__init__("Results", plans, out)
        self.pages, self._kept, self._left_out = pages, set(), []

    def write(self) -> None:
        """Keep what the runs that have ended have reached, and write the page without its charts."""
        for plan in self.plans:
            if plan.name not in self._kept and not plan.problem and self.is_finished(plan):
                self._kept.add(plan.name)
                self._left_out += self.pages.kept.add([self.out / plan.name])[1]
        self.pages.write(charts=False)

    def problems(self) -> list[str]:
        """Return a line for each run that is not possible, has failed, or is of no cell."""
        failed = [f"{plan.name}: {self.trouble(plan)}" for plan in self.left]
        return [*super().problems(), *failed, *self._left_out]
