"""The command ``simsfl`` and the files of ``experiments/`` and ``hw_profile/``: start a program by its name."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from simsfl.system.messages import unknown
from simsfl.system.programs import called, checkout, pasted, ranks, speaks
from simsfl.system.streams import ended, print_error, print_lines, set_up
from simsfl.ui.arguments import fail

_TOML = ("tomli",) if sys.version_info < (3, 11) else ()
"""What reads TOML where Python itself does not."""
_ALL = (
    *("torch", "torchvision", "numpy", "rich", "safetensors"),
    *("matplotlib", "plotly", "jinja2", "scipy", "torchmetrics"),
    *_TOML,
)
"""Modules that the installation brings, each in the package of its name."""
_BASE = {"numpy": "numpy", "rich": "rich"}
"""Modules that every program imports, and the package that each comes with; a board may lack them."""
_DEVICES = {**_BASE, "safetensors": "safetensors", "zmq": "pyzmq"}
"""Modules that the programs for real devices import, and the package that each comes with."""

_TURN_SECONDS = 5.0
"""Seconds in which the first of several ranks says what is wrong, while the others wait."""


@dataclass(frozen=True)
class Program:
    """One of the programs: where it is, and what it is for."""

    module: str
    """Module of the package whose ``main`` starts it."""
    purpose: str
    """One line of help."""
    needs: dict[str, str] | None = None
    """Modules that it imports, and the package that each comes with; None for those that the installation brings."""


PROGRAMS = {
    "run": Program("simsfl.cli.run", "train a run, or resume one"),
    "watch": Program("simsfl.cli.watch", "show a run that another process trains, or several in a browser"),
    "report": Program("simsfl.cli.report.program", "write a page and figures about runs"),
    "track": Program("simsfl.cli.track.program", "give the records of runs to TensorBoard, W&B, MLflow or CSV"),
    "table": Program("simsfl.cli.table.program", "rerun a table of the paper, beside the published figures"),
    "sweep": Program("simsfl.cli.sweep.program", "run a grid of settings with several seeds, and compare them"),
    "results-page": Program("simsfl.cli.results.program", "write docs/results.md, and make what it is missing"),
    "attack": Program("simsfl.cli.attack.program", "reconstruct images from what clients send"),
    "cost": Program("simsfl.cli.cost.program", "estimate what taking part costs a client"),
    "fleet": Program("simsfl.cli.fleet.program", "tell a run in the time and energy of a fleet of devices"),
    "bench": Program("simsfl.cli.bench.program", "time the engines side by side"),
    "import-checkpoint": Program("simsfl.cli.import_checkpoint", "convert weights from the published program's layout"),
    "export-checkpoint": Program("simsfl.cli.export_checkpoint", "write weights in the published program's layout"),
    "export": Program("simsfl.cli.export.program", "write a trained backbone, or a client, for use without simsfl"),
    "prepare-imagenet12": Program("simsfl.cli.prepare_imagenet12", "make ImageNet-12 from a local ImageNet"),
    "pi-bench": Program("simsfl.hw_profile.bench.program", "measure the work of a client on this machine", _BASE),
    "server": Program("simsfl.hw_profile.devices.server", "train with real devices", {**_DEVICES, "torch": "torch"}),
    "client": Program("simsfl.hw_profile.devices.client", "take part in a run as a device", _DEVICES),
    "keys": Program("simsfl.hw_profile.devices.keys", "make keys for a server and its devices", _DEVICES),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Start the program that the first argument names, with the other arguments; return the exit code.

    Without a program, the list of programs is printed on stderr, and the code is 2.
    """
    name, *arguments = (sys.argv[1:] if argv is None else list(argv)) or [""]
    name = name.replace("_", "-") if not name.startswith("-") else name  # or as its file is called
    if name in PROGRAMS:
        sys.argv = [f"simsfl {name}", *arguments]  # the program's name in usage messages
        return start(name)
    set_up()
    if not name:
        print_lines(_help())
        return 2
    if name in ("-h", "--help"):
        print(_help())
        return ended(0)
    if name == "--version":
        print(_version())
        return ended(0)
    return fail(unknown("program", name, PROGRAMS))


def start(name: str) -> int:
    """Start one of `PROGRAMS` with the arguments of this process; return the exit code.

    Where a package is missing, one line on stderr names it and says how to install it, and the code is 2.
    """
    set_up()
    if ranks() > 1:
        if name != "run":
            return _refused(name)
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # while ranks wait, PyTorch prints pages of stack traces
    program = PROGRAMS[name]
    needs = dict(zip(_ALL, _ALL, strict=True)) if program.needs is None else program.needs
    missing = [package for module, package in needs.items() if find_spec(module) is None]
    if missing:
        home = checkout() if program.needs is None else None
        what = missing if home is None else ["-e", str(home)]
        return fail(ValueError(f"{missing[0]}: is not installed; allowed: pip install {pasted(what)}"))
    try:
        return ended(import_module(program.module).main(sys.argv[1:]))
    except KeyboardInterrupt:  # raised by programs that have nothing to save
        print_error("interrupted")
        return 130
    except SystemExit as shown:  # by --help
        return ended(shown.code)


def _refused(name: str) -> int:
    """Say on one of several ranks that a program is for one process; return the exit code, 2."""
    if not speaks():
        time.sleep(_TURN_SECONDS)  # torchrun ends all ranks once one has ended, and the first one has to speak before
        return 2
    return fail(
        ValueError(
            f"ranks: {called(name)} is for one process, and torchrun has started {ranks()}; allowed: without torchrun, "
            f"which is for {called('run')} alone"
        )
    )


def _help() -> str:
    """Return the list of programs, as text."""
    width = max(map(len, PROGRAMS))
    usage = "usage: simsfl PROGRAM [flags], or simsfl --version\n\nPrograms, each with its own --help:"
    return "\n".join([usage, *(f"  {name:<{width}}  {program.purpose}" for name, program in PROGRAMS.items())])


def _version() -> str:
    """Return the name of this package and its version, which a checkout does not know unless it is installed."""
    try:
        return f"simsfl {version('simsfl')}"
    except PackageNotFoundError:
        return "simsfl, of a checkout that is not installed"
