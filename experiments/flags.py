"""The config's fields as command-line flags, with errors of one line.

argparse, because the errors have to be one line each and the config flat; what tyro and the like print
and want is different.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

from simsfl.config import RunConfig
from simsfl.names import shortened, unknown

GROUPS = {
    "clients": "clients and rounds",
    "data": "data and views",
    "model": "model",
    "contrast": "contrastive loss and queue",
    "privacy": "privacy",
    "optimiser": "optimiser",
    "evaluation": "evaluation",
    "run": "machine and checkpoints",
}


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


CONVERTERS = {"int": value_of(int, "a whole number"), "float": value_of(float, "a number"), "str": str}


def add_config_flags(
    parser: argparse.ArgumentParser, *, without: Collection[str] = (), beside: Mapping[str, RunConfig] | None = None
) -> None:
    """One flag per field of `RunConfig`, but those `without`, under the heading of its group; absent unless given.

    Help shows the field's default, and `beside` it what it is in presets by name, where that is something else.
    """
    groups = {name: parser.add_argument_group(title) for name, title in GROUPS.items()}
    for spec in fields(RunConfig):
        group = spec.metadata["group"]
        if group not in groups or spec.name in without:
            continue
        kind = spec.type.partition(" | ")[0]
        defaults = {} if spec.default is None else {"default": spec.default}
        for name, config in (beside or {}).items():
            if getattr(config, spec.name) != spec.default:
                defaults[name] = getattr(config, spec.name)
        note = f" ({', '.join(f'{name}: {value}' for name, value in defaults.items())})" if defaults else ""
        text = (spec.metadata["help"] + note).replace("%", "%%")
        options: dict[str, Any] = {"help": text, "default": argparse.SUPPRESS}
        if kind == "bool":
            options["action"] = argparse.BooleanOptionalAction
        else:
            options["type"] = CONVERTERS[kind]
            choices = spec.metadata["choices"]
            options["metavar"] = "{" + ",".join(choices) + "}" if choices else kind.upper()
        groups[group].add_argument(f"--{spec.name.replace('_', '-')}", **options)


def config_values(arguments: argparse.Namespace) -> dict[str, Any]:
    """The config fields that were given as flags."""
    names = {spec.name for spec in fields(RunConfig)}
    return {name: value for name, value in vars(arguments).items() if name in names and name != "preset"}


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


def seeds_of(text: str, flag: str = "seeds") -> list[int]:
    """Numbers by comma, each once.

    Raises:
        ValueError: they are none.
    """
    if not all(seed.isdecimal() and len(seed) < 19 for seed in text.split(",")):
        raise ValueError(f"{flag}: {shortened(text)!r} are no numbers; allowed: 0 or more, by comma")
    return list(dict.fromkeys(map(int, text.split(","))))


def fail(error: Exception) -> int:
    """Say in one line what was wrong with what the user asked for; the exit code."""
    print_error(str(error))
    return 2


def print_error(text: str) -> None:
    """One line on stderr."""
    print(f"error: {' '.join(text.split())}", file=sys.stderr)
