"""Rerun a table of the paper, beside its published figures."""

from __future__ import annotations

import difflib
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.progress import TimeRemainingColumn

from simsfl.cli.flags import add_config_flags, config_values
from simsfl.cli.presets import laptop, named
from simsfl.cli.table.cells import TABLES, Cell
from simsfl.config import plugins
from simsfl.system.console import Output
from simsfl.system.messages import unknown
from simsfl.system.outputs import Outputs
from simsfl.system.programs import command, pasted
from simsfl.system.progress import bar, watched
from simsfl.system.signals import Stop
from simsfl.ui.arguments import Parser, fail, path, seeds_of, value_of

_COSTS = {"1": "hardware costs as the paper counts them", "hardware": "same as 1"}
"""Titles of the tables that need no runs, by name."""
_POLL = 0.2
"""Seconds between two checks whether a run has ended."""


def parser() -> Parser:
    """Return the parser of this program's flags."""
    titles = _COSTS | {name: table().title for name, table in TABLES.items()}
    result = Parser(description=__doc__.splitlines()[0], epilog="Tables: " + ", ".join(titles))
    result.add_argument("table", metavar="TABLE", help="; ".join(f"{name}: {title}" for name, title in titles.items()))
    what = result.add_argument_group("what to run")
    what.add_argument("--seeds", default="0", metavar="N,N", help="seeds; each cell is run once for each (default: 0)")
    what.add_argument("--only", metavar="TEXT", help='run only cells whose "row, column" contains this text')
    what.add_argument(
        "--dry-run",
        action="store_true",
        help="print commands, steps and times, and train nothing; data sets are loaded",
    )
    what.add_argument(
        "--budget",
        type=value_of(float, "minutes"),
        metavar="MINUTES",
        help="shorten the runs so that all fit in this time",
    )
    what.add_argument(
        "--out", type=path, metavar="DIR", help="directory of the results, new or to continue (default: tables/TABLE)"
    )
    add_config_flags(result, preset="auto", group=what, without=("seed",), beside={"laptop": laptop()})
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Plan and run a table, print and write its results; return the exit code."""
    with Stop() as stop:
        return _tabulate(argv, stop)


def _tabulate(argv: Sequence[str] | None, stop: Stop) -> int:
    """Do the work of `main` while `stop` catches signals; return the exit code."""
    try:
        arguments = parser().parse(argv)
        if arguments.table in _COSTS:
            return _show_costs(arguments.out)
        cells = _chosen_cells(arguments.table, arguments.only, arguments.seeds)
        if arguments.budget is not None and not 0 < arguments.budget < float("inf"):
            raise ValueError(f"budget: {arguments.budget:g} is no time; allowed: minutes, more than 0")
        flags = config_values(arguments)
        base = named(arguments.preset, flags.get("device", "auto"))[0]
        # a mistake in the flags is one in every cell, so report it before any cell
        asked = replace(base, **flags).with_options(arguments.options)
        flags |= {"options": asked.options} if arguments.options else {}
        usual = {"linear_probe": True}
        _check_effect([replace(base, **usual | cell.concerned(flags) | cell.settings) for cell, _ in cells], flags)
        return _carry_out(arguments, cells, base, flags)
    except (ValueError, OSError) as error:
        return fail(error)
    except KeyboardInterrupt:
        Output(stderr=True).say("stopped; the same command continues")
        return 128 + (stop.received or signal.SIGINT)


def _show_costs(out: Path | None) -> int:
    """Print the paper's table of hardware costs beside those computed here; write it into `out` where given.

    Returns:
        The exit code, 0.
    """
    from simsfl.cli.cost.tables import paper_tables  # noqa: PLC0415  (imports torch)
    from simsfl.ui.markdown import markdown  # noqa: PLC0415

    tables, _ = paper_tables()
    for table in tables:
        Output().print(table)
    if out:
        Outputs(out).write_text("table.md", "\n".join(map(markdown, tables)))
    return 0


def _check_effect(configs: Sequence[Any], flags: Iterable[str]) -> None:
    """Raise a ValueError if a flag has no effect in any of the cells."""
    for flag in flags:
        problems = []
        for config in configs:
            try:
                config.check_effect([flag])
            except ValueError as error:
                problems.append(error)
        if len(problems) == len(configs):
            raise problems[0]


def _chosen_cells(table: str, only: str | None, seeds: str) -> list[tuple[Cell, int]]:
    """Return pairs of a cell and a seed, the expert of a cell before the cell.

    Args:
        table: the table's name in `TABLES`.
        only: text that the names of the cells contain, or None for all cells.
        seeds: numbers, separated by commas.

    Raises:
        ValueError: the table is not known, no cell contains the text, or a seed is not a number.
    """
    if table not in TABLES:
        raise unknown("table", table, [*_COSTS, *TABLES])
    cells = TABLES[table]().cells
    if only is not None:
        chosen = [cell for cell in cells if only.lower() in cell.name.lower()]
        if not chosen:
            near = difflib.get_close_matches(only.lower(), [cell.name.lower() for cell in cells], n=1, cutoff=0.0)[0]
            nearest = next(cell.name for cell in cells if cell.name.lower() == near)
            raise ValueError(
                f"only: {only!r} is in no cell of table {table}; allowed: part of a name such as {nearest!r}"
            )
        cells = chosen
    first = [[cell.expert, cell] if cell.expert else [cell] for cell in cells]
    return [(cell, seed) for together in first for seed in seeds_of(seeds) for cell in together]


def _carry_out(arguments: Any, cells: list[tuple[Cell, int]], base: Any, flags: dict[str, Any]) -> int:
    """Plan the runs that have no plan, run those that are not finished, and write the page; return the exit code.

    Args:
        arguments: the program's flags.
        cells: pairs of a cell and a seed.
        base: the preset, a `RunConfig`.
        flags: config fields that the user gave for all cells.
    """
    from simsfl.cli.table.grid import (  # noqa: PLC0415  (imports torch: mistakes are reported first)
        GRID,
        RESULTS,
        Grid,
        Identity,
        Plan,
        planned,
        read_grid,
    )
    from simsfl.cli.table.results import Results  # noqa: PLC0415

    out, console = arguments.out or Path("tables") / arguments.table, Output()
    outputs, identity = Outputs(out), Identity(arguments.table, base.preset, flags, arguments.budget)
    kept = {name: run for name, run in read_grid(outputs, identity).items() if not run.problem}
    names = {Plan(cell, seed, base, 0, 0.0).name: (cell, seed) for cell, seed in cells}
    new = [pair for name, pair in names.items() if name not in kept]
    spent = sum(run.seconds for run in kept.values())
    fresh = {plan.name: plan for plan in planned(watched(new, "Probing"), base, flags, arguments.budget, spent)}
    plans = [fresh.get(name) or Plan(*pair, **vars(kept[name])) for name, pair in names.items()]
    results = Results(TABLES[arguments.table](), plans, out, arguments.budget, flags)
    if arguments.dry_run:
        lines = [_command_line(plan, out) for plan in plans if not plan.problem]
        for line in lines + [f"# {problem}" for problem in results.problems()]:
            console.say(line)
        console.print(results.forecast())
        return 0
    if "dataset" in flags and all(plan.problem for plan in plans):  # the user's mistake, in every cell
        raise ValueError(plans[0].problem)
    outputs.check(*RESULTS)
    outputs.write_json(GRID, asdict(Grid(identity, kept | {plan.name: plan.kept() for plan in plans})))
    _run_all([plan for plan in plans if not plan.problem and not results.is_finished(plan)], outputs, results.write)
    results.write()
    console.print(results.table())
    for problem in results.problems():
        console.say(problem)
    console.say(f"wrote {out / 'table.md'} and {out / 'table.png'}")
    return 0


def _run_all(plans: list[Any], outputs: Outputs, after_each: Callable[[], None]) -> None:
    """Run plans one after the other, with a bar of their estimated time on stderr, or lines where that is no terminal.

    A run whose expert has not ended is skipped.

    Args:
        plans: a `Plan` for each run.
        outputs: the directory that holds the run directories.
        after_each: called after each run.
    """
    from simsfl.cli.table.grid import ATTEMPT  # noqa: PLC0415

    out = outputs.path
    with bar(TimeRemainingColumn()) as progress:
        task = progress.add_task("", total=sum(plan.seconds for plan in plans))
        before = 0.0
        for position, plan in enumerate(plans, start=1):
            description = f"{position}/{len(plans)} {plan.cell.name}, seed {plan.seed}"
            progress.update(task, description=description)
            if progress.disable:  # no terminal shows the bar
                progress.console.say(description)
            begin = time.perf_counter()
            if not plan.expert_has_ended(out):
                continue
            with (out / f"{plan.name}.log").open("a", encoding="utf-8") as log:
                for argv in _stages(plan, outputs):
                    print(f"{ATTEMPT}{shlex.join(argv)}", file=log, flush=True)
                    with _running(argv, log) as process:
                        while process.poll() is None:
                            time.sleep(_POLL)
                            progress.update(task, completed=before + min(plan.seconds, time.perf_counter() - begin))
                    if process.returncode:
                        break
            before += plan.seconds
            after_each()


def _stages(plan: Any, outputs: Outputs) -> Iterator[list[str]]:
    """Yield the arguments of ``simsfl`` for what is left of a run: begin or resume its training, then attack it."""
    out, config = outputs.path, f"{plan.name}.json"
    run = out / plan.name
    outputs.write_json(config, plan.config_in(out).to_dict())
    if not (run / "summary.json").exists():
        begun = (run / "config.json").exists()
        where = ["--resume", str(run)] if begun else ["--config", str(out / config), "--out", str(run)]
        yield ["run", *where, "--dashboard", "off"]
    if plan.attack_epochs:
        yield _attack_argv(plan, out)


def _attack_argv(plan: Any, out: Path) -> list[str]:
    """Return the arguments of ``simsfl`` for the attack on a run."""
    return ["attack", str(out / plan.name), "--attack-epochs", str(plan.attack_epochs), "--device", plan.config.device]


@contextmanager
def _running(argv: list[str], log: Any) -> Iterator[subprocess.Popen]:
    """Start ``simsfl`` with the given arguments in a process of its own, which writes to the log file `log`.

    Interrupt the process at the end of the context, and wait for it.
    """
    process = subprocess.Popen([sys.executable, "-m", "simsfl", *argv], stdout=log, stderr=log, start_new_session=True)
    try:
        yield process
    finally:
        process.terminate()  # not by SIGINT: a job in the background ignores that, and so do its processes
        process.wait()


def _command_line(plan: Any, out: Path) -> str:
    """Return the shell commands that do a run by hand, on one line."""
    from simsfl import RunConfig  # noqa: PLC0415

    config = plan.config_in(out)
    preset = named(config.preset)[0] if config.preset != "custom" else RunConfig()
    words = [*command("run"), *plugins.flags(), "--preset", config.preset]
    words += [word for name, value in config.options.items() for word in (f"--{name}", str(value))]
    for name, value in config.changed_from(preset).items():
        if name != "options" and _has_effect(config, name):
            flag = name.replace("_", "-")
            words += [f"--{'' if value else 'no-'}{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
    lines = [pasted([*words, "--out", str(out / plan.name)])]
    if plan.attack_epochs:
        lines.append(pasted([*command("attack"), *plugins.flags(), *_attack_argv(plan, out)[1:]]))
    return " && ".join(lines)


def _has_effect(config: Any, name: str) -> bool:
    """Return whether the config field `name` has an effect, so that ``run.py`` accepts its flag."""
    try:
        config.check_effect([name])
    except ValueError:
        return False
    return True
