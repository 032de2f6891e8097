"""Run a grid of settings with several seeds: every flag of run.py takes several values, separated by commas."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from simsfl.cli.flags import add_config_flags, config_values
from simsfl.cli.report.formats import add_format_flag
from simsfl.cli.sweep.axes import Point, Range, points_of, several, texts_of, trials_of
from simsfl.cli.sweep.flags import add_sweep_flags, check_budget
from simsfl.config.presets import coffee, named
from simsfl.system.console import Output
from simsfl.system.outputs import Outputs
from simsfl.system.signals import Stop
from simsfl.ui.arguments import Parser, fail, seeds_of


def parser() -> Parser:
    """Return the parser of this program's flags."""
    result = Parser(description=__doc__, epilog="Example: --lr 0.02,0.06,0.2 --align-momentum true,false --seeds 0,1,2")
    what = result.add_argument_group("what to run")
    add_sweep_flags(what, "sweeps/NAMES_OF_FLAGS")
    what.add_argument(
        "--search",
        type=trials_of,
        metavar="trials=N",
        help="have Optuna choose N settings instead of running all; flags then take ranges, too: --lr 0.01..0.3:log, "
        "--queue-length 500..4000; --budget is the time after which no trial begins (pip install simsfl[sweep])",
    )
    add_format_flag(what)
    add_config_flags(
        result, preset=["auto"], group=what, without=("seed",), beside={"coffee": coffee()}, converted=several
    )
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Plan and run a sweep, print and write its results; return the exit code."""
    with Stop() as stop:
        try:
            arguments = parser().parse(argv)
            seeds = seeds_of(arguments.seeds)
            check_budget(arguments.budget)
            axes = _axes(arguments)
            if arguments.search:
                return _search(arguments, axes, seeds)
            return _carry_out(arguments, axes, points_of(axes), seeds)
        except (ValueError, OSError) as error:
            return fail(error)
        except KeyboardInterrupt:
            Output(stderr=True).say("stopped; the same command continues")
            return 128 + (stop.received or signal.SIGINT)


def _axes(arguments: Any) -> dict[str, list[Any]]:
    """Return the values of preset and flags that were given, by name.

    Raises:
        ValueError: one of them is a range.
    """
    options = {name: texts_of(text) for name, text in arguments.options.items()}
    axes = {"preset": arguments.preset, **config_values(arguments), **options}
    for name, values in axes.items():
        if isinstance(values, Range) and not arguments.search:
            raise ValueError(f"{name}: a range is for --search; allowed without it: values, separated by commas")
    return axes


def _search(arguments: Any, axes: dict[str, Any], seeds: list[int]) -> int:
    """Search for the best settings; return the exit code."""
    from simsfl.cli.sweep.search import Search  # noqa: PLC0415  (imports torch)

    if arguments.dry_run:
        raise ValueError("dry_run: a search chooses settings as it goes; allowed without --search")
    return Search(axes, seeds, arguments, arguments.out or Path("sweeps") / "search").go()


def _note(axes: dict[str, list[Any]], shortening: object | None) -> str:
    """Return what is said of all runs: preset, flags with one value, and how schedules are shortened."""
    fixed = [f"{name.replace('_', ' ')} {values[0]}" for name, values in axes.items() if len(values) == 1]
    return ", ".join(fixed) + (f"; {shortening}" if shortening else "")


def _carry_out(arguments: Any, axes: dict[str, list[Any]], points: list[Point], seeds: list[int]) -> int:
    """Plan the runs that have no plan, run those that are not finished, and write the results; return the exit code.

    It is 1 if a run has failed, 0 otherwise.

    Args:
        arguments: the program's flags.
        axes: the values of each flag, by name.
        points: the combinations of these.
        seeds: the seeds that each is run with.
    """
    from simsfl.cli.sweep import runner  # noqa: PLC0415  (imports torch: mistakes are reported first)
    from simsfl.cli.sweep.grid import Identity, read_grid  # noqa: PLC0415
    from simsfl.cli.sweep.launchers import launcher_of  # noqa: PLC0415
    from simsfl.cli.sweep.results import RESULTS, Sweep  # noqa: PLC0415

    varying = [name for name, values in axes.items() if len(values) > 1]
    out = arguments.out or Path("sweeps") / ("-".join(name.replace("_", "-") for name in varying) or "seeds")
    console, outputs, base = Output(), Outputs(out), named(axes["preset"][0])[0]
    fixed = {name: "several values" if name in varying else values[0] for name, values in axes.items()}
    preset = "several" if "preset" in varying else base.preset
    identity = Identity("sweep", preset, {n: v for n, v in fixed.items() if n != "preset"})
    launcher, grid = launcher_of(arguments, out), read_grid(outputs, identity, RESULTS)
    cells = [(point.cell, seed) for seed in seeds for point in points]
    beside = Output(stderr=arguments.dry_run)
    plans, shorter = runner.plans_of(cells, grid, base, {}, arguments.budget, launcher.planned, beside)
    note = _note(axes | {"preset": [preset]}, shorter)
    sweep = Sweep(points, plans, out, note, arguments.format, shortening=shorter)
    if arguments.dry_run:
        runner.print_commands(sweep, note, console)
        return 0
    if all(plan.problem for plan in plans):
        raise ValueError(plans[0].problem)
    if not runner.carried_out(sweep, RESULTS, identity, launcher, console, yes=arguments.yes):
        return 0
    sweep.write_figures()
    console.print(sweep.table())
    for problem in sweep.missing():
        console.say(problem)
    console.say(f"wrote {out / 'sweep.md'}, sweep.csv, sweep.json and figures")
    return 1 if sweep.left else 0
