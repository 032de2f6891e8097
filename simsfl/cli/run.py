"""Train a run, or resume one."""

from __future__ import annotations

import os
from collections.abc import Sequence

from simsfl.cli.flags import add_config_flags
from simsfl.config.presets import coffee
from simsfl.system.programs import called, speaks
from simsfl.system.signals import Stop
from simsfl.system.streams import ended, print_error
from simsfl.ui.arguments import Parser, add_dashboard_flag, fail, path, value_of, whole_number


def parser() -> Parser:
    """Return the parser of all flags of this program."""
    result = Parser(
        description=__doc__,
        epilog="Options of what is chosen are set by flags such as --objective.temperature 0.2; --list shows them all.",
    )
    what = result.add_argument_group("what to run")
    what.add_argument(
        "--config",
        type=path,
        metavar="FILE",
        help="start from a saved config.json instead of a preset",
    )
    what.add_argument("--resume", type=path, metavar="DIR", help="resume the run in this directory, as configured")
    what.add_argument("--list", action="store_true", help="print all names that flags take, and the options of each")
    where = result.add_argument_group("output")
    where.add_argument("--out", type=path, metavar="DIR", help="run directory (default: runs/<time>-<preset>)")
    where.add_argument("--overwrite", action="store_true", help="replace the run, or the report, that --out holds")
    add_dashboard_flag(where)
    where.add_argument(
        "--profile",
        type=whole_number,
        metavar="N",
        help="write trace.json, a Chrome trace of N steps with their phases (chrome://tracing, ui.perfetto.dev)",
    )
    where.add_argument(
        "--record-trace",
        type=path,
        metavar="FILE",
        help=f"record what one client does, for {called('pi-bench')} --replay",
    )
    where.add_argument(
        "--trace-client",
        type=value_of(int, "a whole number"),
        metavar="ID",
        help="client to record (default: one of the first cohort)",
    )
    add_config_flags(result, preset="auto", group=what, beside={"coffee": coffee()})
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program with these arguments; return its exit code.

    Args:
        argv: the arguments, None for those of the command line.
    """
    with Stop() as stop:
        try:
            if "RANK" in os.environ:
                return _on_ranks(argv, stop)
            arguments = parser().parse(argv)
            from simsfl.cli.launch import launch  # noqa: PLC0415  (imports torch: --help and mistakes answer at once)

            return launch(arguments, stop)
        except (ValueError, OSError) as error:
            return fail(error)
        except KeyboardInterrupt:
            if speaks():
                print_error("interrupted before training")
            return 128 + stop.received


def _on_ranks(argv: Sequence[str] | None, stop: Stop) -> int:
    """Run the program on one of several ranks; see `main`."""
    from simsfl.cli.launch import launch  # noqa: PLC0415  (imports torch, which a run on one rank needs later)
    from simsfl.cli.ranks import joined, leave  # noqa: PLC0415  (the same)

    with joined(stop) as world:
        with world.agreeing():
            arguments = parser().parse(argv)
        code = launch(arguments, stop, world=world)
    return leave(ended(code), world)
