"""Text for messages: errors that suggest the name that was meant, counts with their nouns, and text of others."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


def unknown(field: str, value: str, names: Iterable[str], *, allowed: str = "", also: str = "") -> ValueError:
    """Return the error for a value that is not one of `names`; it suggests the nearest of them.

    Args:
        field: name of the setting, with which the message starts.
        value: the value that is not known.
        names: the names that are known.
        allowed: text that replaces the list of `names` in the message.
        also: text for what is allowed in addition.
    """
    names = list(names)
    choices = ", or ".join(filter(None, (allowed or ", ".join(names), also)))
    return ValueError(f"{field}: {shortened(value)!r} is not known{hint(value, names)}; allowed: {choices}")


def hint(value: str, names: Iterable[str]) -> str:
    """Return the end of a message that suggests which of some names was meant; empty where none is near.

    >>> hint("trce", ["trace", "median"])
    ' (did you mean trace?)'
    """
    by_name = {name.lower(): name for name in names}
    near = difflib.get_close_matches(value.lower(), by_name, n=1, cutoff=0.6)
    return f" (did you mean {by_name[near[0]]}?)" if near else ""


@contextmanager
def blaming(field: str, *, for_: str) -> Iterator[None]:
    """Have ValueErrors of the block that begin with the name of a setting begin with that of another one.

    Args:
        field: name of the setting whose value was passed on.
        for_: name of the setting that the block knows.

    >>> with blaming("attacker_dataset", for_="dataset"):
    ...     raise ValueError("dataset: cifar is not known")
    Traceback (most recent call last):
    ValueError: attacker_dataset: cifar is not known
    """
    try:
        yield
    except ValueError as error:
        named, _, rest = str(error).partition(": ")
        if named != for_:
            raise
        raise ValueError(f"{field}: {rest}") from error


def count_text(count: int, noun: str) -> str:
    """Return a count with its noun, such as "1 client" or "1,000 clients"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def kind_of(value: object) -> str:
    """Return the name of a value's type with its article.

    >>> kind_of(3), kind_of([])
    ('an int', 'a list')
    """
    name = type(value).__name__
    return f"an {name}" if name[0] in "aeioAEIO" or name == "ndarray" else f"a {name}"


def fixed(value: float, digits: int) -> str:
    """Return a number with this many decimals, without a sign where they are all 0.

    >>> fixed(-0.004, 2), fixed(-0.006, 2), fixed(1234.5, 1)
    ('0.00', '-0.01', '1,234.5')
    """
    return f"{round(value, digits) + 0.0:,.{digits}f}"


def shortened(value: object, most: int = 80) -> str:
    """Return a value for an error message: cut to `most` characters; of huge integers, the size in bits."""
    large = isinstance(value, int) and abs(value) >= 10**30
    text = f"a number of {value.bit_length()} bits" if large else str(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def visible(text: str) -> str:
    r"""Return text of others, such as the name of a file, as it may be printed on one line.

    Line breaks and all other characters that a terminal would obey instead of showing them (control characters, marks
    of the direction of text, bytes of a file name that are no characters) are written as in a Python string. Whatever
    is printed goes through this function (`simsfl.system.console`).

    >>> print(visible("a title\x1b]0;mine\x07 on two\nlines"))
    a title\x1b]0;mine\x07 on two\nlines
    """
    return "".join(character if character.isprintable() else escaped(character) for character in text)


def escaped(text: str) -> str:
    """Return a text in ASCII, with every other character and every control character as in a Python string."""
    return text.encode("unicode_escape").decode("ascii")


def shown(value: object) -> str:
    """Return a value of a file as errors show it: texts in quotes, and lists and objects by that name alone."""
    if isinstance(value, str):
        return repr(shortened(value))
    return {list: "a list", dict: "an object"}.get(type(value)) or shortened(value)
