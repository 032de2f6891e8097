"""The flags of ``pi_bench.py``, and which of them go together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from simsfl.hw_profile.meters.board import Machine
from simsfl.hw_profile.meters.cores import check_threads
from simsfl.hw_profile.runtimes.client_work import RUNTIMES
from simsfl.system.messages import shortened, unknown
from simsfl.ui.arguments import Parser, add_dashboard_flag, one_of, path, value_of, whole_number

TOLERANCES = {"fp32": 1e-3, "bf16": 0.2, "fp16": 0.05}
"""Largest relative differences from the trace that are allowed, by the precisions of the forward passes that can be
asked for.

In fp32 sums are added in another order over a whole trace; bf16 and fp16 have 8 and 11 significant bits."""
SECONDS, POINT_SECONDS = 10.0, 2.0
"""Seconds of timed work by default: of a result, and of a point of a profile."""
GRID: dict[str, list[Any]] = {"cuts": [1, 2, 3], "batches": [1, 4], "dtypes": ["fp32"]}
"""Points of a profile by default: all combinations."""
REPEATS = 3
"""How often each point is measured by default."""
_LONGEST = 3600
"""Largest number of seconds of timed work."""
_STANDARD = ("cut_layer", "bottleneck", "batch_size", "arch", "width")
"""Settings of the standard trace."""
_SINGLE = {"cut_layer": "cuts", "batch_size": "batches", "dtype": "dtypes", "replay": None, "out": None}
"""Flags of a single result, and those that take their place in a profile."""


def parser() -> Parser:
    """Return the parser of this program's flags."""
    result = Parser(description="Measure the work of a MocoSFL client on this machine: its time, memory and energy.")
    what = result.add_argument_group("work")
    what.add_argument(
        "--replay",
        type=path,
        metavar="FILE",
        help="client trace to replay, as --record-trace of a run writes it (default: a standard trace)",
    )
    what.add_argument(
        "--cut-layer", type=whole_number, metavar="N", help="cut layer of the standard trace (default: 1)"
    )
    what.add_argument("--bottleneck", metavar="C4S2", help="bottleneck of the standard trace (default: none)")
    what.add_argument(
        "--batch-size", type=whole_number, metavar="N", help="images per step of the standard trace (default: 1)"
    )
    what.add_argument("--arch", metavar="NAME", help="network of the standard trace (default: resnet18, the paper's)")
    what.add_argument(
        "--width", type=whole_number, metavar="N", help="width of its first stage (default: that of the network)"
    )
    how = result.add_argument_group("computing")
    how.add_argument(
        "--runtime",
        type=one_of(RUNTIMES),
        default="torch",
        metavar="{torch,lean}",
        help="PyTorch, or NumPy alone (default: torch)",
    )
    how.add_argument(
        "--threads",
        type=whole_number,
        metavar="N",
        help="threads to compute with, at most the cores that this process may use (default: as the runtime chooses)",
    )
    how.add_argument(
        "--dtype",
        type=one_of(tuple(TOLERANCES)),
        metavar="{" + ",".join(TOLERANCES) + "}",
        help="precision of the forward passes (default: the trace's)",
    )
    how.add_argument(
        "--compile", action="store_true", help="compile the models with torch.compile, which needs a C++ compiler"
    )
    how.add_argument(
        "--seconds",
        type=value_of(float, "seconds"),
        metavar="S",
        help=f"seconds of timed work (default: {SECONDS:g}; {POINT_SECONDS:g} for each point of a profile); the idle "
        "machine is measured for eight more",
    )
    how.add_argument(
        "--tolerance",
        type=value_of(float, "a share"),
        metavar="X",
        help="largest relative difference from the trace that is allowed (default: by dtype)",
    )
    grid = result.add_argument_group("device profile")
    grid.add_argument(
        "--profile-out",
        type=path,
        metavar="FILE",
        help="measure standard traces of several cut layers, batch sizes and precisions, and write what simsfl fleet "
        "needs of this device into one file",
    )
    grid.add_argument("--cuts", metavar="N,N", help=f"cut layers of a profile (default: {_text(GRID['cuts'])})")
    grid.add_argument("--batches", metavar="N,N", help=f"batch sizes of a profile (default: {_text(GRID['batches'])})")
    grid.add_argument(
        "--dtypes", metavar="NAME,NAME", help=f"precisions of a profile (default: {_text(GRID['dtypes'])})"
    )
    grid.add_argument(
        "--repeats", type=whole_number, metavar="N", help=f"how often each point is measured (default: {REPEATS})"
    )
    where = result.add_argument_group("measuring and output")
    where.add_argument(
        "--meter",
        default="auto",
        metavar="NAME",
        help="power meter: pmic, ina226[:ADDRESS[:OHM]], ina219[:ADDRESS[:OHM]], rapl, csv:FILE, model, none, or auto "
        "(default)",
    )
    where.add_argument(
        "--out", type=path, metavar="DIR", help="directory to write into (default: runs/<time>-pi_bench)"
    )
    where.add_argument(
        "--add-log",
        type=path,
        metavar="DIR",
        help="directory of an earlier result, to which the energy of --meter csv:FILE is added, a log that came later",
    )
    add_dashboard_flag(where)
    return result


def settings_of(arguments: Any, cut_layer: int, batch_size: int) -> dict[str, Any]:
    """Return the settings of the standard trace that flags ask for."""
    given = {name: getattr(arguments, name) for name in ("bottleneck", "arch", "width")}
    return {"cut_layer": cut_layer, "batch_size": batch_size, **given}


def grid_of(arguments: Any) -> dict[str, list[Any]]:
    """Return what a profile's points are the combinations of, by the names of `GRID`.

    Raises:
        ValueError: a list holds something else, or the runtime does not have a precision.
    """
    found = dict(GRID)
    for name in ("cuts", "batches"):
        if text := getattr(arguments, name):
            if not all(one.isdecimal() and 0 < int(one) < 10**6 for one in text.split(",")):
                raise ValueError(f"{name}: {shortened(text)!r} are no counts; allowed: 1 or more, separated by commas")
            found[name] = list(dict.fromkeys(map(int, text.split(","))))
    if arguments.dtypes:
        found["dtypes"] = list(dict.fromkeys(arguments.dtypes.split(",")))
        for one in found["dtypes"]:
            if one not in TOLERANCES:
                raise unknown("dtypes", one, TOLERANCES)
            if arguments.runtime == "lean" and one != "fp32":
                raise ValueError(f"dtypes: lean computes in fp32, not {one}; allowed: with --runtime torch")
    return found


def _text(values: Sequence[Any]) -> str:
    """Return values as a flag takes them."""
    return ",".join(map(str, values))


def check(arguments: Any, machine: Machine) -> None:
    """Raise a ValueError if flags are out of range or do not go together."""
    if arguments.replay:
        for name in _STANDARD:
            if getattr(arguments, name) is not None:
                raise ValueError(f"{name}: has no effect on a trace that is replayed; allowed: without --replay")
    _check_profile(arguments)
    if arguments.seconds is not None and not 0.1 <= arguments.seconds <= _LONGEST:
        raise ValueError(f"seconds: {arguments.seconds:g} is out of range; allowed: 0.1 to {_LONGEST}")
    if arguments.threads:
        check_threads(arguments.threads, machine)
    if arguments.tolerance is not None and not arguments.tolerance > 0:
        raise ValueError(f"tolerance: {arguments.tolerance:g} allows nothing; allowed: more than 0")
    if arguments.add_log:
        if not arguments.meter.startswith("csv:"):
            raise ValueError(f"add_log: needs a log; allowed: with --meter csv:FILE, not {arguments.meter}")
        for name in arguments.given:
            if name not in ("add_log", "meter", "dashboard"):
                raise ValueError(f"{name}: has no effect on an earlier result; allowed: without --add-log")
    if arguments.runtime == "lean" and (arguments.compile or arguments.dtype not in (None, "fp32")):
        flag = "compile" if arguments.compile else "dtype"
        raise ValueError(f"{flag}: lean computes in fp32 and cannot be compiled; allowed: with --runtime torch")


def _check_profile(arguments: Any) -> None:
    """Raise a ValueError if flags of a device profile are given without it, or those of a single result with it."""
    if arguments.profile_out:
        for name, instead in _SINGLE.items():
            if name in arguments.given:
                allowed = f"--{instead}" if instead else "without --profile-out"
                raise ValueError(f"{name}: has no effect on a profile; allowed: {allowed}")
        grid_of(arguments)
    for name in (*GRID, "repeats"):
        if name in arguments.given and not arguments.profile_out:
            raise ValueError(f"{name}: has no effect on a single result; allowed: with --profile-out")
