"""Rerun a table of the paper, beside its published figures."""

from __future__ import annotations

import difflib
import re
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from simsfl.cli.flags import add_config_flags, config_values
from simsfl.cli.sweep.cells import Cell
from simsfl.cli.sweep.flags import add_sweep_flags, check_budget, check_effect
from simsfl.cli.table.cells import TABLES
from simsfl.config.presets import laptop, named
from simsfl.system.console import Output
from simsfl.system.messages import unknown
from simsfl.system.outputs import Outputs
from simsfl.system.signals import Stop
from simsfl.ui.arguments import Parser, fail, seeds_of

_COSTS = {"1": "hardware costs as the paper counts them", "hardware": "same as 1"}
"""Titles of the tables that need no runs, by name."""
_OF_COSTS = ("table", "out", "plugin")
"""What such a table may be given."""


def parser() -> Parser:
    """Return the parser of this program's flags."""
    titles = _COSTS | {name: table().title for name, table in TABLES.items()}
    result = Parser(description=__doc__.splitlines()[0], epilog="Tables: " + ", ".join(titles))
    result.add_argument("table", metavar="TABLE", help="; ".join(f"{name}: {title}" for name, title in titles.items()))
    what = result.add_argument_group("what to run")
    what.add_argument("--only", metavar="WORDS", help='run only cells whose "row, column" has these words in a row')
    add_sweep_flags(what, "tables/TABLE")
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
            for name in arguments.given:
                if name not in _OF_COSTS:
                    raise ValueError(
                        f"{name}: has no effect with table {arguments.table}, which needs no runs; allowed: --out"
                    )
            return _show_costs(arguments.out)
        cells = _chosen_cells(arguments.table, arguments.only, arguments.seeds)
        check_budget(arguments.budget)
        flags = config_values(arguments)
        base = replace(named(arguments.preset, flags.get("device", "auto"), cpu="laptop")[0], linear_probe=True)
        # a mistake in the flags is one in every cell, so report it before any cell
        asked = base.with_values(flags).with_options(arguments.options)
        flags |= {"options": asked.options} if arguments.options else {}
        check_effect([base.with_values(cell.concerned(flags) | cell.settings) for cell, _ in cells], flags)
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
        # no more of a word or of a number on either side: "IID" is not in "non-IID", nor "1 per" in "1.1 per"
        wanted = re.compile(rf"(?<![\w-])(?<!\d[.,]){re.escape(only)}(?![\w-])(?![.,]\d)", re.IGNORECASE)
        chosen = [cell for cell in cells if wanted.search(cell.name)]
        if not chosen:
            near = difflib.get_close_matches(only.lower(), [cell.name.lower() for cell in cells], n=1, cutoff=0.0)[0]
            nearest = next(cell.name for cell in cells if cell.name.lower() == near)
            raise ValueError(
                f"only: {only!r} is in no cell of table {table}; allowed: whole words of a name such as {nearest!r}"
            )
        cells = chosen
    first = [[cell.expert, cell] if cell.expert else [cell] for cell in cells]
    return [(cell, seed) for together in first for seed in seeds_of(seeds) for cell in together]


def _carry_out(arguments: Any, cells: list[tuple[Cell, int]], base: Any, flags: dict[str, Any]) -> int:
    """Plan the runs that have no plan, run those that are not finished, and write the page; return the exit code.

    It is 1 if a run has failed, 0 otherwise.

    Args:
        arguments: the program's flags.
        cells: pairs of a cell and a seed.
        base: the preset, a `RunConfig`.
        flags: config fields that the user gave for all cells.
    """
    from simsfl.cli.sweep import runner  # noqa: PLC0415  (imports torch: mistakes are reported first)
    from simsfl.cli.sweep.grid import Identity, read_grid  # noqa: PLC0415
    from simsfl.cli.sweep.launchers import launcher_of  # noqa: PLC0415
    from simsfl.cli.table.results import RESULTS, Results  # noqa: PLC0415

    out, console = arguments.out or Path("tables") / arguments.table, Output()
    fixed = {name: value for name, value in flags.items() if name != "options"} | flags.get("options", {})
    outputs, identity = Outputs(out), Identity(arguments.table, base.preset, fixed)
    launcher, grid = launcher_of(arguments, out), read_grid(outputs, identity, RESULTS)
    beside = Output(stderr=arguments.dry_run)
    plans, shorter = runner.plans_of(cells, grid, base, flags, arguments.budget, launcher.planned, beside)
    results = Results(TABLES[arguments.table](), plans, out, shorter, fixed)
    if arguments.dry_run:
        runner.print_commands(results, results.note(), console)
        return 0
    if "dataset" in flags and all(plan.problem for plan in plans):  # the user's mistake, in every cell
        raise ValueError(plans[0].problem)
    if not runner.carried_out(results, RESULTS, identity, launcher, console, yes=arguments.yes):
        return 0
    results.write()
    console.print(results.table())
    for problem in results.problems():
        console.say(problem)
    console.say(f"wrote {out / 'table.md'} and {out / 'table.png'}")
    return 1 if results.left else 0
