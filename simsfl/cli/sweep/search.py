"""A search: instead of a grid, Optuna chooses the settings, each by what those before it have reached."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from statistics import mean
from typing import Any

from simsfl import RunConfig
from simsfl.cli.report.settings import accuracy
from simsfl.cli.sweep import runner
from simsfl.cli.sweep.axes import Point, Range, check_effect, combined, label_of, point_of
from simsfl.cli.sweep.grid import GRID, Grid, Identity, Plan, read_grid
from simsfl.cli.sweep.launchers import launcher_of
from simsfl.cli.sweep.planning import timed
from simsfl.cli.sweep.results import RESULTS, Sweep
from simsfl.system.console import Output
from simsfl.system.files import alone_in
from simsfl.system.messages import count_text
from simsfl.system.outputs import Outputs

STORAGE = "search.sqlite3"
"""Name of Optuna's file in the directory of a search."""
_CURVES = 5
"""Most settings whose curves are drawn, the best ones."""
_DIGITS = 4
"""Significant digits of the numbers that are chosen from a range."""
_REPEATS = 50
"""How often in a row Optuna may choose settings that have been tried, before the search ends: it has no others."""


class Search:
    """The trials of a search, which Optuna keeps in a file of the directory.

    Args:
        axes: values, or the range, of each flag, by name.
        seeds: the seeds that each setting is run with.
        arguments: the program's flags.
        out: the directory.

    Raises:
        ValueError: Optuna is not installed, nothing is to be searched for, a flag has no effect, or the directory is
            not one of this search.
    """

    def __init__(self, axes: Mapping[str, Sequence[Any] | Range], seeds: Sequence[int], arguments: Any, out: Path):
        if find_spec("optuna") is None:
            raise ValueError("search: optuna is not installed; allowed: pip install simsfl[sweep]")
        self.varying = {name: a for name, a in axes.items() if isinstance(a, Range) or len(a) > 1}
        if not self.varying:
            raise ValueError(
                "search: every flag has one value; allowed: several, or a range such as --lr 0.01..0.3:log"
            )
        check_effect(axes)
        self.fixed = {name: values[0] for name, values in axes.items() if name not in self.varying}
        self.seeds, self.arguments, self.out, self.outputs = seeds, arguments, out, Outputs(out)
        spaces = {name: str(axis) for name, axis in self.varying.items()}
        preset = self.fixed.get("preset", "several")
        flags = {name: value for name, value in (self.fixed | spaces).items() if name != "preset"}
        self.identity = Identity("search", preset, flags)
        read_grid(self.outputs, self.identity, RESULTS)
        self.outputs.check(*RESULTS)
        self.console, self.plans, self.points = Output(), {}, {}
        self.launcher = launcher_of(arguments, out)

    def go(self) -> int:
        """Do the trials that are left, and write and print the results; return the exit code.

        Raises:
            ValueError: another process does them, whose trials would be taken for interrupted ones.
        """
        try:
            with alone_in(self.out, wait=False):
                return self._go()
        except BlockingIOError:
            raise ValueError(
                f"search: another process searches in {self.out} at present; allowed: once that has ended, or another "
                "--out"
            ) from None

    def _go(self) -> int:
        """Do what `go` does, as the only process that does."""
        begin, limit = time.perf_counter(), 60 * (self.arguments.budget or math.inf)
        study = self._study() if (self.out / STORAGE).exists() else None
        done, repeats = self._finished(study) if study else set(), 0
        if len(done) < self.arguments.search:
            if not self._confirmed(len(done)):
                return 0
            self.outputs.write_json(GRID, asdict(Grid(self.identity, {})))
            study = study or self._study()
        while len(done) < self.arguments.search and time.perf_counter() - begin < limit:
            self._do(study, done)
            before, done = len(done), self._finished(study)
            repeats = repeats + 1 if len(done) == before else 0
            if repeats == _REPEATS:
                self.console.say(f"Optuna chooses no other settings than the {len(done)} that were tried")
                break
        return self._conclude(study)

    def _study(self) -> Any:
        """Return Optuna's study; trials that were interrupted are the next ones."""
        import optuna  # noqa: PLC0415  (an extra)

        optuna.logging.set_verbosity(logging.WARNING)
        storage = f"sqlite:///{(self.out / STORAGE).absolute()}"
        study = optuna.create_study(study_name="sweep", storage=storage, direction="maximize", load_if_exists=True)
        study.sampler = optuna.samplers.TPESampler(seed=len(study.trials))
        for trial in study.get_trials(states=[optuna.trial.TrialState.RUNNING]):
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
            study.enqueue_trial(trial.params)
        return study

    def _finished(self, study: Any) -> set[str]:
        """Return the names of the settings whose trials have ended, and collect their plans.

        These have an accuracy, or are "pruned": a run of theirs failed, or their values do not go together, so that
        they have no plans. A setting may have several trials, because its values are chosen again.
        """
        from optuna.trial import TrialState  # noqa: PLC0415

        done = study.get_trials(states=[TrialState.COMPLETE, TrialState.PRUNED])
        for trial in done:
            if trial.number not in self.points:
                with suppress(ValueError):
                    self._collect(trial.number, self._chosen(trial.params))
        return {self._name(trial) for trial in done}

    def _name(self, trial: Any) -> str:
        """Return the name of a trial's setting, which it has with values that do not go together as well."""
        point = self.points.get(trial.number)
        return point.cell.name if point else label_of(self._chosen(trial.params))

    def _chosen(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values of flags that parameters of a trial mean."""
        return {name: float(f"{v:.{_DIGITS}g}") if isinstance(v, float) else v for name, v in params.items()}

    def _asked(self, trial: Any) -> dict[str, Any]:
        """Return the values that Optuna chooses for a trial."""
        for name, axis in self.varying.items():
            if not isinstance(axis, Range):
                trial.suggest_categorical(name, list(axis))
            elif isinstance(axis.low, int) and isinstance(axis.high, int):
                trial.suggest_int(name, axis.low, axis.high, log=axis.log)
            else:
                trial.suggest_float(name, axis.low, axis.high, log=axis.log)
        return self._chosen(trial.params)

    def _setting(self, values: dict[str, Any]) -> tuple[RunConfig, Point]:
        """Return the config of a trial's values, and its point, of those of them that have an effect.

        Raises:
            ValueError: the values do not go together.
        """
        config, idle = combined(self.fixed | values)
        return config, point_of(config, {name: value for name, value in values.items() if name not in idle})

    def _collect(self, number: int, values: dict[str, Any]) -> list[Plan]:
        """Return plans for a trial's runs, and keep them for the results.

        Raises:
            ValueError: the values do not go together.
        """
        config, self.points[number] = self._setting(values)
        cell = self.points[number].cell
        self.plans[number] = [Plan(cell, seed, replace(config, seed=seed), 0, 0.0) for seed in self.seeds]
        return self.plans[number]

    def _do(self, study: Any, done: Collection[str]) -> None:
        """Do the next trial; one of a setting that was tried before is told again what that has reached.

        Args:
            study: Optuna's study.
            done: names of the settings that were tried before.
        """
        from optuna.trial import TrialState  # noqa: PLC0415

        trial = study.ask()
        values, problem, plans = self._asked(trial), "", []
        try:
            plans = self._collect(trial.number, values)
        except ValueError as error:
            problem = f": {error}"
        if (name := self._name(trial)) not in done:
            self.console.say(f"trial {len(done) + 1} of {self.arguments.search}: {name}{problem}")
        if problem:
            study.tell(trial, state=TrialState.PRUNED)
            return
        sweep = self._results(study)
        left = [plan for plan in plans if name not in done and not sweep.is_finished(plan)]
        runner.run_all(left, self.outputs, lambda: None, self.launcher)
        found = [accuracy(run) for run in sweep.runs_of(plans)]
        if len(found) < len(plans) or None in found:
            study.tell(trial, state=TrialState.PRUNED)
            outcome = next((sweep.trouble(plan) for plan in plans if not sweep.is_finished(plan)), "no accuracy")
        else:
            study.tell(trial, mean(found))
            outcome = f"accuracy {mean(found):.2f} %, best so far {study.best_value:.2f} %"
        if name not in done:
            self.console.say(f"  {outcome}")
            self._results(study).write()

    def _results(self, study: Any) -> Sweep:
        """Return the results of the trials so far, the best first."""
        values = {t.number: t.value for t in study.get_trials(deepcopy=False) if t.value is not None}
        numbers = sorted(self.points, key=lambda number: -values.get(number, -1.0))
        points: dict[str, Point] = {}
        plans: dict[str, list[Plan]] = {}
        for number in numbers:  # one setting may be tried twice
            points.setdefault(self.points[number].cell.name, self.points[number])
            plans.setdefault(self.points[number].cell.name, self.plans[number])
        note = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in self.fixed.items())
        images = "validation" if "validation" in self.fixed else "test"
        about = f"; chosen by Optuna, best first, by their accuracy on the {images} images"
        own = [plan for together in plans.values() for plan in together]
        formats = self.arguments.format
        return Sweep(list(points.values()), own, self.out, note + about, formats, title="Search over", most=_CURVES)

    def _confirmed(self, done: int) -> bool:
        """Say how long the trials that are left take, as long as the first of them; return whether that is wanted."""
        values = {name: a.low if isinstance(a, Range) else a[0] for name, a in self.varying.items()}
        self.console.say(f"{count_text(self.arguments.search, 'trial')}; a few steps of one are timed first")
        _, point = self._setting(values)
        plan = timed([(point.cell, self.seeds[0])], RunConfig(), {})[0].whole()
        if plan.problem:
            raise ValueError(plan.problem)
        count = (self.arguments.search - done) * len(self.seeds)
        seconds = min(
            plan.seconds * count / min(self.launcher.places, len(self.seeds)), (self.arguments.budget or 1e9) * 60
        )
        said = f"{done} of {count_text(self.arguments.search, 'trial')} done, {count_text(count, 'run')} to do"
        return runner.confirmed(said, seconds, self.out, self.console, yes=self.arguments.yes)

    def _conclude(self, study: Any) -> int:
        """Write figures, and print the table; return the exit code."""
        sweep = self._results(study)
        sweep.write_figures()
        self.console.print(sweep.table())
        for problem in sweep.missing():
            self.console.say(problem)
        self.console.say(f"wrote {self.out / 'sweep.md'}, sweep.csv, sweep.json and figures")
        return 0
