"""Write docs/results.md from what is kept of runs in benchmarks/results/; make missing runs, or take finished ones."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from simsfl.cli.sweep.flags import check_budget
from simsfl.system.console import Output
from simsfl.system.files import replacing
from simsfl.system.messages import count_text, unknown
from simsfl.system.outputs import Outputs
from simsfl.system.programs import called
from simsfl.system.signals import Stop
from simsfl.ui.arguments import Parser, fail, path, seeds_of, value_of, whole_number

_ALL = "all"
"""What ``--run`` takes for the cells of all sections."""
_SEEDS = "0,1,2"
"""Seeds that every cell is to have."""


def parser() -> Parser:
    """Return the parser of this program's flags."""
    result = Parser(description=__doc__, epilog="Example: --run --budget 120 --jobs 2")
    what = result.add_mutually_exclusive_group()
    what.add_argument(
        "--add",
        type=path,
        nargs="+",
        metavar="DIR",
        help="keep what finished runs have reached: run directories, or directories of them; cells are found by config",
    )
    what.add_argument(
        "--run",
        nargs="?",
        const=_ALL,
        metavar="SECTION",
        help="make the runs that are missing, and keep what they reach (default: those of all sections)",
    )
    what.add_argument("--check", action="store_true", help="write nothing; fail if the page would be another")
    result.add_argument("--seeds", metavar="N,N", help=f"seeds of --run (default: {_SEEDS})")
    result.add_argument(
        "--budget", type=value_of(float, "minutes"), metavar="MINUTES", help="--run makes what fits in this time"
    )
    result.add_argument(
        "--jobs", type=whole_number, metavar="N", help="runs of --run side by side, which share the cores (default: 1)"
    )
    result.add_argument("--yes", action="store_true", help="do not ask before more than 10 minutes of work")
    result.add_argument(
        "--checkout", type=path, default=Path(), metavar="DIR", help="where simsfl's files are (default: here)"
    )
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the flags ask for, and write the page; return the exit code."""
    with Stop() as stop:
        try:
            arguments = parser().parse(argv)
            for name in ("seeds", "budget", "jobs", "yes"):
                if getattr(arguments, name) and not arguments.run:
                    raise ValueError(f"{name}: has no effect without --run; allowed with --run")
            check_budget(arguments.budget)
            arguments.jobs = arguments.jobs or 1
            return _do(arguments, seeds_of(arguments.seeds or _SEEDS))
        except (ValueError, OSError) as error:
            return fail(error)
        except KeyboardInterrupt:
            Output(stderr=True).say("stopped; the same command continues")
            return 128 + (stop.received or signal.SIGINT)


class Pages:
    """The page of a checkout, and what it is made from.

    Args:
        checkout: directory of the checkout.

    Raises:
        ValueError: it is none, or a file of ``benchmarks/results`` is damaged or of no cell.
    """

    def __init__(self, checkout: Path):
        from simsfl.cli.results.cells import sections  # noqa: PLC0415  (imports torch: mistakes are reported first)
        from simsfl.cli.results.records import Kept  # noqa: PLC0415

        if not all((checkout / name).is_dir() for name in ("benchmarks", "docs")):
            raise ValueError(f"checkout: {checkout} has no benchmarks and docs; allowed: a checkout of simsfl")
        self.file, self.charts = checkout / "docs" / "results.md", checkout / "docs" / "results"
        self.sections = sections()
        cells = [cell for section in self.sections.values() for cell in section.cells]
        self.kept = Kept(checkout / "benchmarks" / "results", cells)

    def text(self) -> str:
        """Return the page."""
        from simsfl.cli.results.page import page  # noqa: PLC0415

        return page(self.sections, self.kept)

    def write(self, *, charts: bool = True) -> None:
        """Write the page, and its charts if asked."""
        from simsfl.cli.results.page import write_charts  # noqa: PLC0415

        with replacing(self.file) as temporary:
            temporary.write_text(self.text(), encoding="utf-8")
        if charts:
            write_charts(self.charts, self.sections, self.kept)


def _do(arguments: Any, seeds: list[int]) -> int:
    """Do what the flags ask for; return the exit code."""
    pages, console = Pages(arguments.checkout), Output()
    if arguments.check:
        there = pages.file.read_text(encoding="utf-8") if pages.file.exists() else ""
        if there != pages.text():
            raise ValueError(f"check: {pages.file} is not up to date; allowed: after {called('results-page')}")
        return 0
    if arguments.add:
        from simsfl.cli.results.records import run_directories  # noqa: PLC0415

        _add(pages, [run for directory in arguments.add for run in run_directories(directory)], console)
    if arguments.run and not _run(pages, arguments, seeds, console):
        return 0
    pages.write()
    console.say(f"wrote {pages.file}")
    return 0


def _add(pages: Pages, directories: Sequence[Path], console: Output) -> None:
    """Keep what runs have reached, and say so; raise a ValueError if none of them is of a cell."""
    added, left_out = pages.kept.add(directories)
    if not added:
        raise ValueError(left_out[0] + (f" (and {len(left_out) - 1} more runs)" if len(left_out) > 1 else ""))
    for name, seeds in added.items():
        console.say(f"{pages.kept.path / name}.json: seeds {', '.join(map(str, seeds))}")
    for line in left_out:
        console.say(f"left out: {line}")


def _run(pages: Pages, arguments: Any, seeds: list[int], console: Output) -> bool:
    """Make the runs that are missing, as far as they fit in the budget; return False if they are not wanted after all.

    Raises:
        ValueError: there is no such section.
    """
    from simsfl.cli.results.records import RUNS  # noqa: PLC0415
    from simsfl.cli.results.runs import Runs, planned_within  # noqa: PLC0415
    from simsfl.cli.sweep import runner  # noqa: PLC0415
    from simsfl.cli.sweep.launchers import Local  # noqa: PLC0415

    if arguments.run not in (_ALL, *pages.sections):
        raise unknown("run", arguments.run, [_ALL, *pages.sections])
    names = list(pages.sections) if arguments.run == _ALL else [arguments.run]
    cells = [cell for name in names for cell in pages.sections[name].cells if not cell.problem]
    plans, left = planned_within(pages.kept, cells, seeds, arguments.budget, arguments.jobs, console)
    if left:
        console.say(f"{count_text(left, 'run')} more would not fit in {arguments.budget:g} minutes")
    runs = Runs(pages, plans, arguments.checkout / RUNS)
    if not runner.may_go_on(runs, console, jobs=arguments.jobs, yes=arguments.yes):
        return False
    runs.out.mkdir(parents=True, exist_ok=True)
    runner.run_all(runs.left, Outputs(runs.out), runs.write, Local(arguments.jobs))
    runs.write()
    for line in runs.problems():
        console.say(line)
    return True
