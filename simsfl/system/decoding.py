"""Strict decoding of JSON into typed records, which are frozen dataclasses: their annotations say what is allowed.

>>> @dataclass(frozen=True)
... class Place:
...     round: Count
...     kind: typing.Literal["step", "round"] = "step"
>>> decode(Place, {"round": 3})
Place(round=3, kind='step')
>>> decode(Place, {"round": 2.5})
Traceback (most recent call last):
...
simsfl.system.decoding.Wrong: round: 2.5 is not a whole number
"""

from __future__ import annotations

import builtins
import json
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from simsfl.system.messages import hint, shortened, shown
from simsfl.system.reading import open_regular

T = TypeVar("T")
_Convert = Callable[[Any], Any]
_SCALARS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", types.NoneType: "null"}
"""What values of simple types are called in errors."""
_LARGEST = 2**63 - 1
"""Largest whole number, which is that of tensors."""


@dataclass(frozen=True)
class Range:
    """The bounds of a number, in an annotation such as ``Annotated[float, Range(0, 100)]``."""

    low: float
    high: float = math.inf


Count = Annotated[int, Range(0)]
"""A whole number from 0 on."""
Ordinal = Annotated[int, Range(1)]
"""A whole number from 1 on."""
Amount = Annotated[float, Range(0, _LARGEST)]
"""A number from 0 on, such as seconds, not so large that sums and products of a few are infinite."""
Percent = Annotated[float, Range(0, 100.001)]
"""A percentage, which may have been rounded up."""


class Wrong(ValueError):
    """The error that a value is not as it should be; `way` leads to it from the outermost record."""

    def __init__(self, text: str, *way: object):
        super().__init__(text)
        self.text, self.way = text, way

    def __str__(self) -> str:
        return ": ".join([".".join(map(shortened, self.way))] * bool(self.way) + [self.text])


def read_json(path: Path) -> Any:
    """Return what a JSON file holds.

    Raises:
        ValueError: there is no such file, or it is not JSON.
    """
    try:
        with open_regular(path) as file:
            return parse_json(file.read())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"{path} cannot be read as JSON ({reason})") from error


def parse_json(text: bytes | str) -> Any:
    """Return what JSON in UTF-8 means; raise a ValueError if it is not JSON, or is nested without end."""
    try:
        return json.loads(text if isinstance(text, str) else text.decode("utf-8"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def decode(kind: type[T], value: Any) -> T:
    """Return a value that came out of JSON as a `kind`.

    Kinds are dataclasses, None, booleans, numbers, texts, enumerations by their values, `Literal`, lists and
    dictionaries of these, and unions; a number may have a `Range`. Fields with defaults may be missing, and no others
    may be there. All floats are finite; a whole number may stand for one.

    Raises:
        ValueError: the value is not a `kind`; the message says where and what is wrong.
    """
    return _decoder(kind)(value)


@cache
def _decoder(kind: Any) -> _Convert:
    """Return the function that decodes values as a `kind`."""
    inside = get_args(kind)
    match get_origin(kind):
        case typing.Annotated:
            result = _bounded(_decoder(inside[0]), inside[1])
        case typing.Union | types.UnionType:
            result = _one_of(inside)
        case typing.Literal:
            result = _choice(inside)
        case builtins.list:
            result = _list(_decoder(inside[0]))
        case builtins.dict:
            result = _dictionary(_decoder(inside[1]))
        case _ if is_dataclass(kind):
            result = _record(kind)
        case _ if issubclass(kind, Enum):
            result = _member(kind)
        case _:
            result = _scalar(kind)
    return result


def _scalar(kind: type) -> _Convert:
    """Return the decoder of a simple type."""
    own = (int, float) if kind is float else (kind,)

    def convert(value: Any) -> Any:
        if type(value) not in own:
            raise Wrong(f"{shown(value)} is not {_SCALARS[kind]}")
        if kind in (int, float) and not abs(value) <= (_LARGEST if type(value) is int else math.nextafter(math.inf, 0)):
            raise Wrong(f"{shown(value)} is out of range")
        return value

    return convert


def _bounded(inner: _Convert, bounds: Range) -> _Convert:
    """Return the decoder of numbers within bounds."""
    upper = f"to {bounds.high:,}" if bounds.high < math.inf else "or more"

    def convert(value: Any) -> Any:
        if not bounds.low <= inner(value) <= bounds.high:
            raise Wrong(f"{shown(value)} is out of range; allowed: {bounds.low:,} {upper}")
        return value

    return convert


def _one_of(kinds: Sequence[Any]) -> _Convert:
    """Return the decoder of a union.

    Its errors are of the kind that has most of an object's fields, if only nearly by name, or of the first.
    """
    inner = [_decoder(kind) for kind in kinds]
    names = [{spec.name for spec in fields(kind)} if is_dataclass(kind) else set() for kind in kinds]

    def convert(value: Any) -> Any:
        errors = []
        for one in inner:
            try:
                return one(value)
            except Wrong as error:
                errors.append(error)
        given = value if isinstance(value, Mapping) else ()
        fitting = [sum(name in own or bool(hint(name, own)) for name in given) for own in names]
        raise errors[fitting.index(max(fitting))]

    return convert


def _choice(allowed: Sequence[str]) -> _Convert:
    """Return the decoder of a few texts."""

    def convert(value: Any) -> str:
        if not isinstance(value, str) or value not in allowed:
            raise Wrong(f"{shown(value)} is not known; allowed: {', '.join(allowed)}")
        return value

    return convert


def _member(kind: type[Enum]) -> _Convert:
    """Return the decoder of an enumeration."""
    choice = _choice([one.value for one in kind])
    return lambda value: kind(choice(value))


def _list(inner: _Convert) -> _Convert:
    """Return the decoder of lists."""

    def convert(value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise Wrong(f"{shown(value)} is not a list")
        return list(_each(enumerate(value), lambda _: inner).values())

    return convert


def _dictionary(inner: _Convert) -> _Convert:
    """Return the decoder of dictionaries by text."""
    return lambda value: _each(_entries(value), lambda _: inner)


def _record(kind: type) -> _Convert:
    """Return the decoder of a dataclass."""
    hints = get_type_hints(kind, include_extras=True)
    inner = {spec.name: _decoder(hints[spec.name]) for spec in fields(kind)}
    needed = [spec.name for spec in fields(kind) if spec.default is MISSING and spec.default_factory is MISSING]

    def convert(value: Any) -> Any:
        entries = dict(_entries(value))
        for name in entries:
            if name not in inner and (near := hint(name, inner.keys() - entries.keys())):
                raise Wrong(f"is not known{near}", name)
        for names, held, problem in ((needed, entries, "is missing"), (entries, inner, "is not known")):
            if odd := [name for name in names if name not in held]:
                raise Wrong(problem, odd[0])
        return kind(**_each(entries.items(), inner.__getitem__))

    return convert


def _entries(value: Any) -> Iterable[tuple[str, Any]]:
    """Return the entries of an object."""
    if not isinstance(value, Mapping):
        raise Wrong(f"{shown(value)} is not an object")
    return value.items()


def _each(entries: Iterable[tuple[Any, Any]], inner: Callable[[Any], _Convert]) -> dict[Any, Any]:
    """Return entries with their values decoded; errors name the entry."""
    result = {}
    for name, value in entries:
        try:
            result[name] = inner(name)(value)
        except Wrong as error:
            raise Wrong(error.text, name, *error.way) from None
        except ValueError as error:  # of a dataclass that checks itself
            raise Wrong(str(error), name) from error
    return result
