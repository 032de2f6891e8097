"""The schedules of a sweep's runs, which a budget shortens, all by the same share."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from simsfl import RunConfig
from simsfl.cli.sweep.cells import Cell
from simsfl.cli.sweep.grid import Plan, Shortening
from simsfl.cli.sweep.timing import MARGIN, PROCESS, Cost, Known, measured
from simsfl.setup.defaults import resolve
from simsfl.system.errors import is_foreseen
from simsfl.system.memory import keep_memory

_EPOCHS = 200
"""Passes over the data in the paper's runs."""
_HALVINGS = 30
"""How often the interval of the share by which schedules are shortened is halved."""
_ROUNDS = 10
"""Fewest rounds of a shortened schedule, if it has as many steps: the learning rate falls from round to round."""


@dataclass(frozen=True)
class Timed:
    """A run of the grid with what its parts cost, or why it is not possible."""

    cell: Cell
    seed: int
    asked: RunConfig
    """The config that is asked for."""
    config: RunConfig
    """That config, resolved."""
    cost: Cost | None
    """None where the run is not possible."""
    problem: str = ""

    @property
    def steps(self) -> int:
        """Return the steps of the whole schedule."""
        return self.config.rounds * self.cost.steps

    @property
    def attack_epochs(self) -> int:
        """Return the epochs of the attack on the run, 0 where it is not attacked."""
        return self.cell.attack.epochs if self.cell.attack else 0

    def seconds(self, config: RunConfig, steps: int, attack_epochs: int) -> float:
        """Return the estimated seconds of the run, and of the attack on it, with another schedule."""
        start = MARGIN * (PROCESS + self.cost.start) if self.cell.attack else 0.0
        return self.cost.total(config, steps) + start + attack_epochs * self.cost.attack

    def whole(self) -> Plan:
        """Return the plan with the whole schedule, or that of a run that is not possible."""
        if self.cost is None:
            return Plan(self.cell, self.seed, self.asked, 0, 0.0, self.problem)
        published = resolve(replace(self.asked, rounds=None, epochs=_EPOCHS)).rounds
        seconds = self.seconds(self.config, self.steps, self.attack_epochs)
        published_steps = (self.cell.rounds or published) * self.cost.steps
        schedule = {"steps": self.steps, "attack_epochs": self.attack_epochs}
        return Plan(self.cell, self.seed, self.asked, published_steps, seconds, **schedule)

    def shortened(self, by: Shortening) -> Plan:
        """Return the plan with a shortened schedule, of one step at least, which has no evaluations on the way."""
        plan, cost = self.whole(), self.cost
        if cost is None:
            return plan
        (steps, attack_epochs), epochs = self.part(by.share), self.config.local_epochs
        rounds = steps // cost.steps
        if rounds < _ROUNDS:
            rounds = min(_ROUNDS, steps)
            epochs = (steps // rounds + 0.5) / cost.steps_of_pass  # rounded down in the run
        steps = rounds * max(1, int(epochs * cost.steps_of_pass))
        own = self.quick(probes=by.probes)
        quick = {name: getattr(own, name) for name in ("eval_every", "linear_probe", "semi_supervised")}
        return replace(
            plan,
            config=replace(plan.config, rounds=rounds, local_epochs=epochs, **quick),
            steps=steps,
            attack_epochs=attack_epochs,
            seconds=self.seconds(own, steps, attack_epochs),
        )

    def part(self, share: float) -> tuple[int, int]:
        """Return a share of the steps, and of the epochs of the attack, but at least one of each that there are."""
        return max(1, int(share * self.steps)), max(min(1, self.attack_epochs), int(share * self.attack_epochs))

    def quick(self, *, probes: bool) -> RunConfig:
        """Return the config with as few evaluations as possible, besides linear probes where these are wanted."""
        return replace(
            self.config, eval_every=0, linear_probe=probes and self.config.linear_probe, semi_supervised=False
        )


def timed(cells: Iterable[tuple[Cell, int]], base: RunConfig, flags: dict) -> list[Timed]:
    """Return what each run costs, found by timing a few of its steps, or why it is not possible.

    Args:
        cells: pairs of a cell and a seed.
        base: the preset, whose fields the settings of each cell change.
        flags: config fields that the user gave for all cells.
    """
    known: Known = {}
    missing: dict[tuple, str] = {}  # why data could not be loaded: they are not asked for again, which takes long
    found = []
    for cell, seed in cells:
        data = None
        try:
            asked = cell.concerned(flags)
            if cell.problem:
                raise ValueError(cell.problem)
            config = base.with_values({**cell.settings, "seed": seed, **asked})
            config, data = _with_rounds(config, cell), (config.dataset, config.aux_dataset)
            if data in missing:
                raise ValueError(missing[data])
            found.append(Timed(cell, seed, config, *measured(config, known, cell.attack)))
        except Exception as error:
            if not is_foreseen(error):
                raise
            problem = str(error).partition("\n")[0]
            found.append(Timed(cell, seed, base, base, None, problem))
            if problem.startswith("dataset:"):
                missing[data] = problem
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # for the processes of the runs
    keep_memory()  # it first returns what the timing probes freed to the system
    return found


def shortening(runs: Sequence[Timed], minutes: float | None, jobs: int) -> Shortening | None:
    """Return how runs are shortened so that all fit in a budget; None where they do as they are.

    Args:
        runs: the runs.
        minutes: the budget; None for no limit.
        jobs: how many runs go side by side.

    Raises:
        ValueError: the budget is too small for one step of each run.
    """
    possible = [run for run in runs if run.cost]
    if minutes is None or not possible:
        return None
    in_turn = math.ceil(len(possible) / jobs)
    have = 60.0 * minutes * len(possible) / in_turn  # seconds of all runs together
    if sum(run.whole().seconds for run in possible) <= have:
        return None
    probes = MARGIN * sum(run.cost.probe(run.config) for run in possible if run.config.linear_probe) < have / 2

    def seconds(share: float) -> float:
        return sum(run.seconds(run.quick(probes=probes), *run.part(share)) for run in possible)

    if (least := seconds(0.0)) > have:
        needed = least / len(possible) * in_turn / 60
        raise ValueError(
            f"budget: {minutes:g} minutes are too few for one step in each of {len(possible)} runs; allowed: "
            f"{needed + 0.05:.1f} or more"
        )
    fits, too_long = 0.0, 1.0  # where one step is much of a run's schedule, seconds do not grow evenly with the share
    for _ in range(_HALVINGS):
        middle = (fits + too_long) / 2
        fits, too_long = (middle, too_long) if seconds(middle) <= have else (fits, middle)
    return Shortening(fits, probes)


def _with_rounds(config: RunConfig, cell: Cell) -> RunConfig:
    """Return the config with the cell's own rounds, scaled as the preset scales the published epochs.

    The config stays as it is where the cell has no rounds of its own or the config has them already.
    """
    if cell.rounds is None or config.rounds is not None:
        return config
    return replace(config, rounds=max(1, round(cell.rounds * config.epochs / _EPOCHS)))
