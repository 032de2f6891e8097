"""The grid of a sweep: flags with several values, and the cells that their combinations are."""

from __future__ import annotations

import argparse
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from typing import Any

from simsfl.cli.sweep.cells import Cell
from simsfl.config import RunConfig
from simsfl.config.presets import named
from simsfl.system.messages import shortened

_RANGE = re.compile(r"([-+]?[\d.]+?(?:[eE][-+]?\d+)?)\.\.([-+]?[\d.]+(?:[eE][-+]?\d+)?)(:log)?")
"""A range of numbers, such as ``0.01..0.3:log``."""
_PART = 40
"""Most characters of a value in the name of a directory."""


@dataclass(frozen=True)
class Range:
    """Numbers that a search chooses from: whole numbers, or floats evenly or by their logarithm."""

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class Point:
    """A combination of values: a cell, and what the combination consists of."""

    cell: Cell
    values: dict[str, Any]
    """The values of the flags that vary, by name."""


def several(convert: Callable[[str], Any]) -> Callable[[str], list[Any] | Range]:
    """Return a converter of values that are separated by commas, or of a range, from the converter of one value."""

    def converted(text: str) -> list[Any] | Range:
        found = _RANGE.fullmatch(text)
        ends = [convert(end) for end in found.groups()[:2]] if found else []
        if not found or isinstance(ends[0], str):
            return list(dict.fromkeys(map(convert, text.split(","))))
        if not (ends[0] < ends[1] and (ends[0] > 0 or not found[3])):
            allowed = "from a lower to a higher number" + ", above 0" * bool(found[3])
            raise argparse.ArgumentTypeError(f"{shortened(text)!r} is no range; allowed: {allowed}")
        return Range(*ends, log=bool(found[3]))

    return converted


def trials_of(text: str) -> int:
    """Return the number in a text such as ``trials=30``; raise an ArgumentTypeError for another text."""
    found = re.fullmatch(r"trials=([1-9]\d{0,5})", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{shortened(text)!r} is no number of trials; allowed: such as trials=30")
    return int(found[1])


def number(text: str) -> int | float | str:
    """Return the number that the text of an option is, or the text."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def texts_of(text: str) -> list[str] | Range:
    """Return the values of an option such as ``--objective.temperature 0.1,0.2``, as texts, or its range."""
    return several(number)(text) if _RANGE.fullmatch(text) else list(dict.fromkeys(text.split(",")))


def combined(values: Mapping[str, Any]) -> tuple[RunConfig, dict[str, str]]:
    """Return the config of those values that have an effect beside the others, and why the others have none, by name.

    Args:
        values: preset, config fields, and texts of options, by name.

    Raises:
        ValueError: a flag cannot work.
    """
    fields = {name: value for name, value in values.items() if name != "preset" and "." not in name}
    preset = named(values["preset"], fields.get("device", "auto"))[0]
    idle = preset.with_values(fields).without_effect(values)
    options = {name: str(value) for name, value in values.items() if "." in name and name not in idle}
    fields = {name: value for name, value in fields.items() if name not in idle}
    return preset.with_values(fields).with_options(options), idle


def points_of(axes: Mapping[str, Sequence[Any]]) -> list[Point]:
    """Return a point for each combination of values; one that cannot be run has a cell that says why.

    A flag that has no effect in a combination is no part of it, so that combinations that differ in it alone are one.

    Args:
        axes: the values of each flag that was given, by name.

    Raises:
        ValueError: a value can be run, or has an effect, in no combination.
    """
    varying = [name for name, values in axes.items() if len(values) > 1]
    points: dict[str, Point] = {}
    working, without, errors = set(), {}, {}
    for combination in product(*axes.values()):
        values, config, problem = dict(zip(axes, combination, strict=True)), None, ""
        try:
            config, idle = combined(values)
            without |= {(name, values.pop(name)): why for name, why in idle.items()}
            working.update(values.items())
        except ValueError as error:
            problem = str(error)
            errors = dict.fromkeys(values.items(), problem) | errors
        own = {name: value for name, value in values.items() if name in varying}
        impossible = Point(Cell("", label_of(own), {}, directory=directory_of(own), problem=problem), own)
        points.setdefault(label_of(own), point_of(config, own) if config else impossible)
    for item, problem in (without | errors).items():
        if item not in working:
            raise ValueError(problem)
    return list(points.values())


def check_effect(axes: Mapping[str, Sequence[Any] | Range]) -> None:
    """Raise a ValueError if a flag has no effect in any combination of values; of a range, these are its ends."""
    left, without = set(axes), {}
    for combination in product(*((a.low, a.high) if isinstance(a, Range) else a for a in axes.values())):
        with suppress(ValueError):  # a combination that cannot be run
            _, idle = combined(dict(zip(axes, combination, strict=True)))
            left &= idle.keys()
            without = idle | without
        if not left:
            return
    for name in axes:
        if name in left & without.keys():
            raise ValueError(without[name])


def point_of(config: RunConfig, values: dict[str, Any]) -> Point:
    """Return the point of a config, which is called by the values that vary."""
    settings = {name: value for name, value in config.to_dict().items() if name != "seed"}
    return Point(Cell("", label_of(values), settings, directory=directory_of(values)), values)


def label_of(values: Mapping[str, Any]) -> str:
    """Return what differs in a combination as text, such as ``lr 0.02, cut layer 2``."""
    return ", ".join(f"{name.replace('_', ' ')} {_text(value)}" for name, value in values.items())


def directory_of(values: Mapping[str, Any]) -> str:
    """Return the begin of a directory's name, such as ``lr-0.02-cut-layer-2``.

    A checksum stands for what file names leave out, so that other values have other names.
    """
    return "-".join(f"{name.replace('_', '-')}-{_in_name(_text(value))}" for name, value in values.items())


def _text(value: Any) -> str:
    """Return a value as flags give it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _in_name(text: str) -> str:
    """Return a text as part of a file's name."""
    plain = re.sub(r"[^A-Za-z0-9.+_-]+", "-", text)[-_PART:].strip("-")
    checksum = hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:6]
    return plain if plain == text else f"{plain}-{checksum}"
