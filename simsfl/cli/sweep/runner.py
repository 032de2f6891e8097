"""Carries out the runs of a sweep: announced, one after another or side by side, interrupted and continued."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import TimeRemainingColumn

from simsfl import RunConfig
from simsfl.cli.sweep.grid import GRID, Grid, Identity, Plan, Shortening, read_grid
from simsfl.cli.sweep.launchers import Launcher, attack_argv, threads_of
from simsfl.cli.sweep.outcomes import Outcomes
from simsfl.cli.sweep.planning import shortening, timed
from simsfl.config import plugins
from simsfl.config.presets import named
from simsfl.runs.directory import RunDirectory
from simsfl.system.console import Output
from simsfl.system.files import alone_in
from simsfl.system.messages import count_text
from simsfl.system.outputs import Outputs
from simsfl.system.programs import command, pasted
from simsfl.system.progress import bar, watched
from simsfl.ui.text import time_text

_POLL = 0.2
"""Seconds between two checks whether a run has ended."""
_LONG = 600.0
"""Seconds of work that need a confirmation, at most."""


def plans_of(
    cells: Sequence[tuple[Any, int]],
    grid: Grid,
    base: RunConfig,
    flags: dict[str, Any],
    budget: float | None,
    jobs: int,
    console: Output,
) -> tuple[list[Plan], Shortening | None]:
    """Return a plan for each cell and seed, and how schedules are shortened.

    Runs that the directory has planned before stay as they are, and new ones are shortened as these are.

    Args:
        cells: pairs of a cell and a seed; the expert of a cell comes before the cell.
        grid: what the directory has planned before.
        base: the preset, whose fields the settings of each cell change.
        flags: config fields that the user gave for all cells.
        budget: minutes for all runs together, or None for no limit.
        jobs: how many runs go side by side.
        console: where it is said at once what is done.

    Raises:
        ValueError: the budget is too small for one step of each run, or for as much as runs have that were planned
            before.
    """
    if jobs > 1:
        torch.set_num_threads(threads_of(jobs))  # so that steps are timed as they will be run
    kept = grid.possible
    names = {Plan(cell, seed, base, 0, 0.0).name: (cell, seed) for cell, seed in cells}
    new = [pair for name, pair in names.items() if name not in kept]
    if new:
        console.say(f"{count_text(len(names), 'run')}; a few steps of each kind are timed first")
    runs = timed(watched(new, "Probing"), base, flags)
    shorter = grid.shortening if kept else shortening(runs, budget, jobs)
    fresh = {plan.name: plan for run in runs for plan in [run.shortened(shorter) if shorter else run.whole()]}
    if kept and fresh and budget:
        minutes = sum(run.seconds for run in [*kept.values(), *fresh.values()]) / jobs / 60
        if minutes > budget:
            raise ValueError(
                f"budget: {budget:g} minutes are too few for {count_text(len(fresh), 'more run')} as long as those "
                f"before; allowed: {minutes + 0.05:.1f} or more, or without it"
            )
    plans: list[Plan] = []
    for name, pair in names.items():
        plan = fresh.get(name) or Plan(*pair, **vars(kept[name]))
        expert = next((p for p in plans if p.cell == plan.cell.expert and p.seed == plan.seed), None)
        if expert and expert.problem and not plan.problem:
            plan = replace(plan, problem=f"its expert is not possible: {expert.problem}")
        plans.append(plan)
    return plans, shorter


def print_commands(outcomes: Outcomes, note: str, console: Output) -> None:
    """Print the commands that do the runs by hand on stdout, and on stderr the steps and times that they take."""
    for plan in outcomes.left:
        console.say_whole(command_line(plan, outcomes.out))
    for problem in outcomes.problems():
        console.say(f"# {problem}")
    beside = Output(stderr=True)
    beside.print(outcomes.forecast())
    beside.say(note)


def carried_out(
    outcomes: Outcomes,
    results: Sequence[str],
    identity: Identity,
    launcher: Launcher,
    console: Output,
    *,
    yes: bool,
) -> bool:
    """Do the runs that are left, and write the results after each; return False if they are not wanted after all.

    Args:
        outcomes: the runs, with a method `write` for their results.
        results: names of the files of results.
        identity: which grid the directory is of.
        launcher: starts them.
        console: where it is said how long the runs take.
        yes: whether they are confirmed already.

    Raises:
        ValueError: one of the files is there, but is not simsfl's own; or another process has made the directory that
            of another grid meanwhile.
    """
    if not may_go_on(outcomes, console, jobs=launcher.places, yes=yes):
        return False
    outputs = Outputs(outcomes.out)
    outputs.check(*results)
    with alone_in(outputs.path, wait=True):
        outcomes.plans = write_grid(outputs, Grid(identity, {}, outcomes.shortening), outcomes.plans, results)
    run_all(outcomes.left, outputs, outcomes.write, launcher)
    return True


def may_go_on(outcomes: Outcomes, console: Output, *, jobs: int, yes: bool) -> bool:
    """Say what will be run and how long it takes; return whether that is wanted, for which the user may be asked.

    Args:
        outcomes: the runs.
        console: where it is said.
        jobs: how many runs go side by side.
        yes: whether they are confirmed already.
    """
    left, plans = outcomes.left, [plan for plan in outcomes.plans if not plan.problem]
    if not left:
        return True
    seconds = sum(plan.seconds for plan in left) / min(jobs, len(left))
    done = f", {len(plans) - len(left)} finished" if len(left) < len(plans) else ""
    return confirmed(f"{count_text(len(left), 'run')} to do{done}", seconds, outcomes.out, console, yes=yes)


def confirmed(work: str, seconds: float, out: Path, console: Output, *, yes: bool) -> bool:
    """Say how long some work takes; return whether it is wanted, for which the user may be asked.

    Args:
        work: what is to be done, as text.
        seconds: estimated seconds of it.
        out: the directory of the results.
        console: where it is said. If a person can answer there, more than ten minutes of work have to be confirmed.
        yes: whether it is confirmed already.
    """
    console.say(f"{work}: about {time_text(seconds)}, into {out}")
    if yes or seconds <= _LONG or not (console.redraws and sys.stdin is not None and sys.stdin.isatty()):
        return True
    try:
        if console.input("go on? [y/N] ", markup=False).strip().lower() in ("y", "yes"):
            return True
    except EOFError:
        pass
    console.say("nothing was run")
    return False


def write_grid(outputs: Outputs, grid: Grid, plans: Sequence[Plan], results: Sequence[str]) -> list[Plan]:
    """Add plans to ``grid.json``, which makes the directory that of these runs.

    Args:
        outputs: the directory.
        grid: which grid the plans are of, and how they are shortened.
        plans: the plans.
        results: names of the files of results.

    Returns:
        The plans as the file has them: where another process has planned a run meanwhile, its plan.

    Raises:
        ValueError: the directory is that of another grid, or has other runs by now that are shortened in another way.
    """
    held = read_grid(outputs, grid.identity, results)
    known = {plan.name: plan.kept() if plan.problem else held.possible.get(plan.name, plan.kept()) for plan in plans}
    more = {plan.name for plan in plans if not plan.problem} - held.possible.keys()
    if held.possible and more and held.shortening != grid.shortening:
        had, has = (own or "whole schedules" for own in (held.shortening, grid.shortening))
        raise ValueError(
            f"out: {outputs.path} has runs of another process by now, with {had}, and these have {has}; allowed: the "
            "same command again"
        )
    shorter = held.shortening if held.possible else grid.shortening
    outputs.write_json(GRID, asdict(Grid(grid.identity, held.runs | known, shorter)))
    return [Plan(plan.cell, plan.seed, **vars(known[plan.name])) for plan in plans]


def run_all(plans: Sequence[Plan], outputs: Outputs, after_each: Callable[[], None], launcher: Launcher) -> None:
    """Run plans, with a bar of their estimated time on stderr, or lines where that is no terminal.

    A run whose expert has not ended is skipped. One that somebody else is carrying out is waited for.

    Args:
        plans: the runs; the expert of a run comes before it.
        outputs: the directory that holds the run directories.
        after_each: called after each run.
        launcher: starts them.
    """
    waiting, active, elsewhere = list(enumerate(plans, start=1)), [], set()
    side_by_side = min(launcher.places, max(1, len(plans)))
    with bar(TimeRemainingColumn()) as progress, ExitStack() as stack:
        task, before = progress.add_task("", total=sum(plan.seconds for plan in plans) / side_by_side), 0.0
        while waiting or active:
            for number, plan in list(waiting):
                others = {run.plan.name for run in active} | {other.name for _, other in waiting if other is not plan}
                if len(active) == launcher.places or _needs(plan, others):
                    continue
                text = f"{number}/{len(plans)} {plan.cell.name}{', ' * bool(plan.cell.name)}seed {plan.seed}"
                if not plan.expert_has_ended(outputs.path):
                    waiting.remove((number, plan))
                    continue
                try:
                    active.append(stack.enter_context(launcher.start(plan, text, outputs)))
                except BlockingIOError:
                    if number not in elsewhere:
                        progress.console.say(f"{text}: somebody else is carrying it out")
                    elsewhere.add(number)
                    continue
                waiting.remove((number, plan))
                if progress.disable:  # no terminal shows the bar
                    progress.console.say(text)
            launcher.started()
            for run in [run for run in active if not run.goes_on()]:
                active.remove(run)
                before += run.plan.seconds
                after_each()
            done = before + sum(min(run.plan.seconds, time.perf_counter() - run.begin) for run in active)
            description = active[0].text + (f" and {len(active) - 1} more" if len(active) > 1 else "") if active else ""
            progress.update(task, completed=done / side_by_side, description=description)
            if active or waiting:
                time.sleep(_POLL)


def _needs(plan: Plan, names: set[str]) -> bool:
    """Return whether a run starts from an expert that is one of the runs `names`."""
    return plan.cell.expert is not None and replace(plan, cell=plan.cell.expert).name in names


def command_line(plan: Plan, out: Path) -> str:
    """Return the shell commands that do by hand what is left of a run, on one line."""
    lines = [pasted([*command("run"), *plugins.flags(), *_asked(plan, out)])]
    directory = RunDirectory(out / plan.name)
    if directory.summary.exists():
        lines.clear()
    elif directory.config.exists():
        lines = [pasted([*command("run"), *plugins.flags(), "--resume", str(directory.path)])]
    if plan.attack_epochs:
        lines.append(pasted([*command("attack"), *plugins.flags(), *attack_argv(plan, out)[1:]]))
    return " && ".join(lines)


def _asked(plan: Plan, out: Path) -> list[str]:
    """Return the flags of ``simsfl run`` that ask for a run."""
    return [*flags_of(plan.config_in(out)), "--out", str(out / plan.name)]


def flags_of(config: RunConfig) -> list[str]:
    """Return the flags of ``simsfl run`` that ask for a config."""
    preset = named(config.preset)[0] if config.preset != "custom" else RunConfig()
    words = ["--preset", config.preset]
    words += [word for name, value in config.options.items() for word in (f"--{name}", str(value))]
    changed = config.changed_from(preset)
    idle = config.without_effect(changed)  # run.py refuses the flags of these
    for name, value in changed.items():
        if name != "options" and name not in idle:
            flag = name.replace("_", "-")
            words += [f"--{'' if value else 'no-'}{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
    return words
