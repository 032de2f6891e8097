"""The command ``simsfl`` and the files of ``experiments/`` and ``hw_profile/``: start a program by its name."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from simsfl.system.messages import unknown
from simsfl.ui.arguments import fail, print_error

DOORS = ("experiments", "hw_profile")
"""Folders of a checkout with a file for each program, such as ``experiments/run.py``."""
_BASE = {"numpy": "numpy", "rich": "rich"}
"""Modules that every program imports, and the package that each comes with; a board may lack them."""
_DEVICES = {**_BASE, "safetensors": "safetensors", "zmq": "pyzmq"}
"""Modules that the programs for real devices import, and the package that each comes with."""


@dataclass(frozen=True)
class Program:
    """One of the programs: where it is, and what it is for."""

    module: str
    """Module of the package whose ``main`` starts it."""
    purpose: str
    """One line of help."""
    folder: str = "experiments"
    """Folder of its door, which is named as the program with underscores."""
    needs: dict[str, str] | None = None
    """Modules that it imports, and the package that each comes with; None where the installation guarantees them."""


PROGRAMS = {
    "run": Program("simsfl.cli.run", "train a run, or resume one"),
    "watch": Program("simsfl.cli.watch", "show the live view of a run that another process trains"),
    "report": Program("simsfl.cli.report.program", "write a page and figures about runs"),
    "table": Program("simsfl.cli.table.program", "rerun a table of the paper, beside the published figures"),
    "attack": Program("simsfl.cli.attack", "reconstruct images from what clients send"),
    "cost": Program("simsfl.cli.cost.program", "estimate what taking part costs a client"),
    "bench": Program("simsfl.cli.bench.program", "time the engines side by side"),
    "import-checkpoint": Program("simsfl.cli.import_checkpoint", "convert weights from the published program's layout"),
    "export-checkpoint": Program("simsfl.cli.export_checkpoint", "write weights in the published program's layout"),
    "prepare-imagenet12": Program("simsfl.cli.prepare_imagenet12", "make ImageNet-12 from a local ImageNet"),
    "pi-bench": Program(
        "simsfl.hw_profile.bench.program", "measure the work of a client on this machine", "hw_profile", _BASE
    ),
    "server": Program(
        "simsfl.hw_profile.devices.server",
        "train with real devices",
        "hw_profile",
        {**_DEVICES, "torch": "torch"},
    ),
    "client": Program("simsfl.hw_profile.devices.client", "take part in a run as a device", "hw_profile", _DEVICES),
    "keys": Program("simsfl.hw_profile.devices.keys", "make keys for a server and its devices", "hw_profile", _DEVICES),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Start the program that the first argument names, with the other arguments; return the exit code."""
    name, *arguments = (sys.argv[1:] if argv is None else list(argv)) or ["--help"]
    name = (
        name.replace("_", "-") if not name.startswith("-") else name
    )  # the name of the program's file is accepted, too
    if name in ("-h", "--help"):
        width = max(map(len, PROGRAMS))
        print("usage: simsfl PROGRAM [flags]\n\nPrograms, each with its own --help:")
        print("\n".join(f"  {known:<{width}}  {program.purpose}" for known, program in PROGRAMS.items()))
        return 0
    if name not in PROGRAMS:
        return fail(unknown("program", name, PROGRAMS))
    sys.argv = [f"simsfl {name}", *arguments]  # the program's name in usage messages
    return start(name)


def start(name: str) -> int:
    """Start one of `PROGRAMS` with the arguments of this process; return the exit code.

    Where a package is missing, one line on stderr names it and the code is 2.
    """
    program = PROGRAMS[name]
    missing = [package for module, package in (program.needs or {}).items() if find_spec(module) is None]
    if missing:
        return fail(ValueError(f"{missing[0]}: is not installed; allowed: pip install {' '.join(missing)}"))
    try:
        return import_module(program.module).main(sys.argv[1:])
    except KeyboardInterrupt:  # raised by programs that have nothing to save
        print_error("interrupted")
        return 130


def command(name: str) -> list[str]:
    """Return the words that start one of `PROGRAMS` in the way in which this process was started.

    They are ``simsfl NAME``, or where the present program was started through its door, ``python DOOR``.
    """
    called = Path(sys.argv[0]).absolute()
    if called.parent.name in DOORS and called.suffix == ".py":
        door = called.parent.parent / PROGRAMS[name].folder / f"{name.replace('-', '_')}.py"
        return ["python", str(door)]
    return ["simsfl", name]
