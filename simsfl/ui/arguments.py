"""Command-line flags whose errors are one line each.

The module builds on argparse, since tyro and similar libraries print errors of another form.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NoReturn

from simsfl.system.messages import shortened, unknown
from simsfl.system.paths import expanded
from simsfl.system.streams import lose, print_error

_NO_VALUE = "expected one argument"
"""What argparse says of a flag without a value."""
_MISSING = "the following arguments are required"
"""What argparse says, before their names, where arguments are missing."""


class Early(argparse.Action):
    """An action of a flag with a value, which is carried out before those of all flags of other classes."""


class Parser(argparse.ArgumentParser):
    """A parser that raises a ValueError with a message of one line for every mistake.

    Attributes:
        dotted: what may stand before the dot in flags such as ``--objective.temperature 0.2``, which are not declared
            one by one. The parsed arguments have their texts in ``options``, by names such as "objective.temperature".
            In ``given`` they have the names of all other flags that are given, also with the values of their defaults.
    """

    def __init__(self, **options: Any):
        shape = argparse.RawDescriptionHelpFormatter
        super().__init__(allow_abbrev=False, formatter_class=shape, **options)
        self.dotted: Collection[str] = ()

    def format_help(self) -> str:
        """Return the help; its first line has what must be given, and no list of all flags."""
        self.usage = " ".join(["%(prog)s", *self._words(), "[flags]"])
        return super().format_help()

    def _words(self) -> list[str]:
        """Return the words that stand for what must or may be given behind the program's name, without most flags."""
        needed = [
            " ".join([*action.option_strings[:1], str(action.metavar or action.dest.upper())])
            for action in self._actions
            if action.required
        ]
        return needed + [f"[{one.metavar}]" for one in self._actions if not one.required and not one.option_strings]

    def print_help(self, file: Any = None) -> None:
        """Print the help; argparse itself would pass over a full disk."""
        try:
            print(self.format_help(), end="", file=file)
        except OSError as error:
            lose(error)

    def error(self, message: str) -> NoReturn:
        """Raise a ValueError that starts with the flag's name; argparse would print the usage and exit."""
        flag, _, text = message.removeprefix("argument ").partition(": ")
        if text.startswith("ignored explicit argument"):
            text = f"takes no value, not {text.split()[-1]}; allowed: the flag alone"
        if flag == _MISSING:
            flag, text = text.split(", ")[0], " ".join(["is missing; allowed:", self.prog, *self._words()])
        if text == _NO_VALUE:
            text = f"{text}; allowed: a value behind the flag"
        raise ValueError(f"{re.split('[,/]', flag)[0].lstrip('-').replace('-', '_')}: {text}")

    def parse(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """Return the parsed flags.

        Args:
            argv: the arguments; None for those of this process.

        Raises:
            ValueError: a flag does not exist, in which case the message names the nearest one, or its value is wrong.
        """
        words, options = _without_dotted(sys.argv[1:] if argv is None else argv, self.dotted)
        early = {flag for action in self._actions if isinstance(action, Early) for flag in action.option_strings}
        arguments, rest = self.parse_known_args(_with_first(words, early))
        flags = {word.partition("=")[0] for word in words}
        arguments.options = options
        arguments.given = [action.dest for action in self._actions if flags.intersection(action.option_strings)]
        if rest:
            known = [option for action in self._actions for option in action.option_strings]
            own = [
                one.option_strings[0]
                for one in self._actions
                if one.option_strings and one.default != argparse.SUPPRESS
            ]
            allowed = ", ".join([*own, "or others that --help lists"]) if own else "those that --help lists"
            raise unknown("flag", rest[0].split("=")[0], known, allowed=allowed)
        return arguments


def _without_dotted(argv: Sequence[str], dotted: Collection[str]) -> tuple[list[str], dict[str, str]]:
    """Return the arguments without flags that have one of these words before a dot, and the values of such flags.

    Raises:
        ValueError: such a flag has no value.
    """
    words, values, left = [], {}, iter(argv)
    for word in left:
        flag, equals, value = word.partition("=")
        first, dot, name = flag.removeprefix("--").partition(".")
        if not (flag.startswith("--") and dot and first in dotted):
            words.append(word)
            continue
        name = f"{first}.{name.replace('-', '_')}"
        if not equals and (value := next(left, "--")).startswith("--"):
            raise ValueError(f"{name}: {_NO_VALUE}; allowed: a value behind the flag")
        values[name] = value
    return words, values


def _with_first(words: Sequence[str], flags: Collection[str]) -> list[str]:
    """Return arguments with these flags, which take a value, before all others."""
    first, others, left = [], [], list(words)
    while left and left[0] != "--":
        word = left.pop(0)
        if word.partition("=")[0] not in flags:
            others.append(word)
        elif "=" in word:
            first.append(word)
        elif left and not left[0].startswith("-"):
            first += [word, left.pop(0)]
        else:  # without its value, which argparse says
            others.append(word)
    return first + others + left


def value_of(kind: type, text: str) -> Callable[[str], Any]:
    """Return a converter of a flag's text whose error says what is allowed.

    Args:
        kind: the type to convert to, such as int.
        text: what is allowed, such as "a whole number".
    """

    def convert(value: str) -> Any:
        try:
            return kind(value)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{shortened(value)!r} is no number; allowed: {text}") from None

    return convert


def truth(text: str) -> bool:
    """Convert the text of a flag that is on or off. Raise an ArgumentTypeError unless it is "true" or "false"."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{shortened(text)!r} is neither; allowed: true or false")
    return text.lower() == "true"


def one_of(names: Sequence[str]) -> Callable[[str], str]:
    """Return a converter that accepts the given names; its error suggests the nearest of them."""

    def convert(value: str) -> str:
        if value not in names:
            raise argparse.ArgumentTypeError(str(unknown("", value, names)).removeprefix(": "))
        return value

    return convert


def path(text: str) -> Path:
    """Convert the text of a flag that takes a path. Raise an ArgumentTypeError if it is empty."""
    if not text:
        raise argparse.ArgumentTypeError("is empty; allowed: a path")
    return Path(source(text))


def source(text: str) -> str:
    """Convert the text of a flag that takes a name or a path. Raise an ArgumentTypeError for an unknown ``~user``."""
    try:
        return expanded(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def whole_number(text: str) -> int:
    """Convert the text of a flag that takes a count. Raise an ArgumentTypeError unless it is 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{shortened(text)!r} is no count; allowed: 1 or more")
    return int(text)


def seconds(text: str) -> float:
    """Convert the text of a flag that takes seconds to wait. Raise an ArgumentTypeError unless they are above 0."""
    value = value_of(float, "seconds")(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{shortened(text)} is no time to wait for; allowed: seconds, more than 0")
    return value


def seeds_of(text: str, flag: str = "seeds") -> list[int]:
    """Return the seeds in a text, each once: [0, 2] for "0,2,0".

    Args:
        text: whole numbers, separated by commas.
        flag: name of the flag, for the error.

    Raises:
        ValueError: the text holds something else.
    """
    if not all(seed.isdecimal() and len(seed) < 19 for seed in text.split(",")):
        raise ValueError(f"{flag}: {shortened(text)!r} are no numbers; allowed: 0 or more, separated by commas")
    return list(dict.fromkeys(map(int, text.split(","))))


def add_dashboard_flag(group: argparse._ArgumentGroup) -> None:
    """Add the flag ``--dashboard``, which says whether to show a live view."""
    views = ("auto", "on", "off")
    group.add_argument(
        "--dashboard",
        type=one_of(views),
        metavar="{" + ",".join(views) + "}",
        default="auto",
        help="show a live view; auto: on a terminal only (default: auto)",
    )


def fail(error: Exception) -> int:
    """Print a user's mistake as one line on stderr; return the exit code, 2."""
    print_error(str(error))
    return 2
