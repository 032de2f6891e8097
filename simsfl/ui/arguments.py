"""Flags of programs, with errors of one line.

argparse, because the errors have to be one line each; what tyro and the like print and want is different.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from simsfl.system.messages import shortened, unknown


class Parser(argparse.ArgumentParser):
    """A parser that raises a ValueError of one line for whatever is wrong."""

    def __init__(self, **options: Any):
        shape = argparse.RawDescriptionHelpFormatter
        super().__init__(allow_abbrev=False, formatter_class=shape, usage="%(prog)s [flags]", **options)

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage and exiting."""
        flag, _, text = message.removeprefix("argument ").partition(": ")
        if text.startswith("ignored explicit argument"):
            text = f"takes no value, not {text.split()[-1]}; allowed: the flag alone"
        raise ValueError(f"{re.split('[,/]', flag)[0].lstrip('-').replace('-', '_')}: {text}")

    def parse(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """Parse, naming the nearest flag to one that does not exist."""
        arguments, rest = self.parse_known_args(argv)
        if rest:
            flags = [option for action in self._actions for option in action.option_strings]
            raise unknown("flag", rest[0].split("=")[0], flags, allowed="those that --help lists")
        return arguments


def value_of(kind: type, text: str) -> Callable[[str], Any]:
    """A converter whose error says what is allowed."""

    def convert(value: str) -> Any:
        try:
            return kind(value)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{shortened(value)!r} is no number; allowed: {text}") from None

    return convert


def one_of(names: Sequence[str]) -> Callable[[str], str]:
    """A converter whose error gives the nearest of the allowed names."""

    def convert(value: str) -> str:
        if value not in names:
            raise argparse.ArgumentTypeError(str(unknown("", value, names)).removeprefix(": "))
        return value

    return convert


def path(text: str) -> Path:
    """The type of flags that take a path."""
    if not text:
        raise argparse.ArgumentTypeError("is empty; allowed: a path")
    return Path(text)


def whole_number(text: str) -> int:
    """The type of flags that count something."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{shortened(text)!r} is no count; allowed: 1 or more")
    return int(text)


def seconds(text: str) -> float:
    """The type of flags that say how long to wait."""
    value = value_of(float, "seconds")(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{shortened(text)} is no time to wait for; allowed: seconds, more than 0")
    return value


def seeds_of(text: str, flag: str = "seeds") -> list[int]:
    """Numbers by comma, each once.

    Raises:
        ValueError: they are none.
    """
    if not all(seed.isdecimal() and len(seed) < 19 for seed in text.split(",")):
        raise ValueError(f"{flag}: {shortened(text)!r} are no numbers; allowed: 0 or more, by comma")
    return list(dict.fromkeys(map(int, text.split(","))))


def add_dashboard_flag(group: argparse._ArgumentGroup) -> None:
    """``--dashboard``: whether there is a live view."""
    views = ("auto", "on", "off")
    group.add_argument(
        "--dashboard",
        type=one_of(views),
        metavar="{" + ",".join(views) + "}",
        default="auto",
        help="live view; auto: on a terminal (default: auto)",
    )


def fail(error: Exception) -> int:
    """Say in one line what was wrong with what the user asked for; the exit code."""
    print_error(str(error))
    return 2


def print_error(text: str) -> None:
    """One line on stderr."""
    print(f"error: {' '.join(text.split())}", file=sys.stderr)
