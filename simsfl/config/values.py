"""Values that have a type, choices or limits: the fields of a config, and the options of what is chosen in it."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Collection
from dataclasses import MISSING, Field, field, fields, is_dataclass
from numbers import Number
from typing import Any

from simsfl.system.messages import shortened, shown, unknown

INFINITY = float("inf")
"""Highest value of numbers that may be as large as a float can be; infinity itself is not allowed."""
_TYPES = {"int": (int,), "float": (int, float), "str": (str,), "bool": (bool,)}
"""Types of the values of a field, by its annotation; an int may stand for a float."""


def option(
    default: Any,
    help: str,
    *,
    choices: Collection[str] | None = None,
    within: tuple[float, float] | None = None,
    file: bool = False,
) -> Any:
    """Return a field of a dataclass that users may set, as an option of what they have chosen.

    The field has the type int, float, str or bool, or one of these "| None", which may be written as Optional. Numbers
    are always finite.

    Args:
        default: its default.
        help: one or two sentences on it.
        choices: the values that are allowed, if they are names.
        within: the lowest and the highest value that are allowed, if they are numbers.
        file: whether its value is the path of a file. A run keeps it as an absolute path, with the file's checksum, so
            that it can be resumed from anywhere, and is known to differ if the file does.

    Raises:
        ValueError: the default is no value that an option can have.
    """
    if not isinstance(default, str | Number | None):
        raise ValueError(f"option: {shown(default)} is no default; allowed: a number, a text, True, False or None")
    return field(default=default, metadata={"help": help, "choices": choices, "within": within, "file": file})


def check_value(name: str, spec: Field, value: Any, *, also: str = "") -> None:
    """Raise a ValueError unless a field may have the value.

    Args:
        name: name of the field for the message, which also gives the value and what is allowed.
        spec: the field, with its annotation as text, and "choices" and "within" in its metadata if it is limited so.
        value: the value.
        also: text for what is allowed beside "choices".
    """
    if value == "":
        raise ValueError(f"{name}: is empty; allowed: {'a name or path' if spec.metadata.get('path') else 'a name'}")
    _check_type(name, _annotation(spec), value)
    choices, within = spec.metadata.get("choices"), spec.metadata.get("within")
    if value is None:
        return
    if choices and value not in choices:
        raise unknown(name, value, choices, also=also)
    if within and not (within[0] <= value <= within[1] and abs(value) < INFINITY):
        raise ValueError(f"{name}: {shortened(value)} is out of range; allowed: {_bounds(*within)}")
    if field_type(spec) == "float" and not abs(value) <= sys.float_info.max:
        raise ValueError(f"{name}: {shortened(value)} is not finite; allowed: a finite number")


def allowed_text(spec: Field) -> str:
    """Return the names or the range of the values that a field may have, as text; empty where any of its type may."""
    choices, within = spec.metadata.get("choices"), spec.metadata.get("within")
    return ", ".join(choices) if choices else _bounds(*within) if within else ""


def _bounds(low: float, high: float) -> str:
    """Return a range of numbers as text."""
    lowest, highest = (f"{int(end) if abs(end) < INFINITY and end == int(end) else end:,}" for end in (low, high))
    if low == -INFINITY:
        return f"{highest} or less" if high < INFINITY else "a finite number"
    return f"{lowest} to {highest}" if high < INFINITY else f"{lowest} or more"


def _check_type(name: str, annotation: str, value: Any) -> None:
    """Raise a ValueError unless `value` has the type that `annotation` names, such as "int | None"."""
    wanted, _, optional = annotation.partition(" | ")
    allowed = _TYPES[wanted]
    right = isinstance(value, allowed) and (wanted == "bool" or not isinstance(value, bool))
    if not (right or (optional and value is None)):
        raise ValueError(f"{name}: {shown(value)} is not of type {wanted}; allowed: {annotation.replace('|', 'or')}")


def plain(value: Any) -> Any:
    """Return the Python number that a NumPy number is, and any other value as it is."""
    return value.item() if isinstance(value, Number) and hasattr(value, "item") else value


def from_text(name: str, spec: Field, text: str) -> bool | int | float | str | None:
    """Return the value that a text means for a field, unchecked; "none" means None where it is allowed.

    Raises:
        ValueError: the text has no such meaning.
    """
    kind, _, optional = _annotation(spec).partition(" | ")
    if optional and text.lower() == "none":
        return None
    readers: dict[str, Callable[[str], bool | int | float | str]] = {
        "bool": _truth,
        "int": int,
        "float": float,
        "str": str,
    }
    try:
        return readers[kind](text)
    except (ValueError, KeyError):
        allowed = {"bool": "true or false", "int": "a whole number", "float": "a number"}[kind]
        raise ValueError(f"{name}: {shown(text)} is not of type {kind}; allowed: {allowed}") from None


def _truth(text: str) -> bool:
    """Return what "true" or "false" means; raise a KeyError for another text."""
    return {"true": True, "false": False}[text.lower()]


def options_in(thing: Any) -> list[Field]:
    """Return the fields of a dataclass that can be set as options: they have a default, and a type that can be typed.

    Anything that is no class, such as a function, has none.
    """
    specs = fields(thing) if isinstance(thing, type) and is_dataclass(thing) else ()
    return [spec for spec in specs if spec.init and field_type(spec) in _TYPES and spec.default is not MISSING]


def check_options(thing: Any) -> None:
    """Raise a ValueError unless the options of a dataclass have types, defaults and limits that fit together.

    Fields without `option`, of types that cannot be typed, are no options. What is no dataclass has none.
    """
    for spec in fields(thing) if isinstance(thing, type) and is_dataclass(thing) else ():
        name, kind = f"{thing.__name__}.{spec.name}", field_type(spec)
        if kind not in _TYPES:
            if "help" in spec.metadata:
                types = f"{', '.join(_TYPES)}, or one of these | None"
                raise ValueError(f"{name}: {_annotation(spec)} is no type of options; allowed: {types}")
            continue
        for limit, kinds in (("choices", ("str",)), ("within", ("int", "float"))):
            if spec.metadata.get(limit) and kind not in kinds:
                raise ValueError(f"{name}: {limit} is not for type {kind}; allowed: for {' or '.join(kinds)}")
        if spec.init and spec.default is not MISSING:
            check_value(f"{name}: default", spec, spec.default)


def field_type(spec: Field) -> str:
    """Return the name of a field's type, such as "int", also where it may be None."""
    return _annotation(spec).removesuffix(" | None")


def _annotation(spec: Field) -> str:
    """Return a field's annotation as text, such as "int" or "int | None", however the latter is written.

    Dataclasses keep the text, or the type, as the module has it.
    """
    text = spec.type.__name__ if type(spec.type) is type else str(spec.type)
    inner = re.sub(r"^(?:\w+\.)*Optional\[(.*)\]$", r"\1 | None", text)
    parts = [part.strip() for part in inner.split("|")]
    known = len(parts) == 2 and "None" in parts and set(parts) & _TYPES.keys()
    return f"{known.pop()} | None" if known else text
