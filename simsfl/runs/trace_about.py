"""The entry ``trace.json`` of a client trace: what a trace says of its client, checked before it is believed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from simsfl.config import PRECISIONS, RunConfig
from simsfl.system.messages import shortened

FORMAT = 1
"""Version of the file format of client traces."""
_LARGEST = 2**63 - 1
"""Largest number that anything in a trace can be."""
_PRECISIONS = tuple(name for name, precision in PRECISIONS.items() if precision.anywhere)
"""Precisions of the runs that client traces can be recorded from."""


def read_about(content: bytes) -> dict[str, Any]:
    """Return the content of ``trace.json``, which is `FORMAT`, the number of visits, and what
    `simsfl.runs.client_description.about_client` returns.

    Raises:
        ValueError: something is missing or impossible; the message is the end of a sentence that begins with the path.
    """
    try:
        about = json.loads(content, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"has a trace.json that is not JSON ({error})") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise ValueError(f"has another format than {FORMAT}")
    for key, possible in _POSSIBLE.items():
        if isinstance(possible, Mapping):
            if not isinstance(about.get(key), dict) or possible.keys() - about[key].keys():
                raise ValueError(f"does not say all of its {key}: {', '.join(possible)}")
            wrong = [f"{name} {about[key][name]}" for name in possible if not possible[name](about[key][name])]
        else:
            wrong = [] if possible(about.get(key)) else [str(about.get(key))]
        if wrong:
            raise ValueError(f"has an impossible {key}: {shortened(wrong[0])}")
    if not isinstance(options := about["network"].get("options", {}), dict):
        raise ValueError(f"has an impossible network: options {shortened(options)}")
    try:
        RunConfig(**{name: about["network"][name] for name in _POSSIBLE["network"]})
    except ValueError as error:
        raise ValueError(f"has an impossible network: {error}") from error
    return about


def _refuse(constant: str) -> None:
    """Raise a ValueError for NaN and infinity, which JSON does not have and Python would read."""
    raise ValueError(f"{constant} is no number")


def _is_number(value: Any, low: float = -_LARGEST, high: float = _LARGEST) -> bool:
    """Return whether a value is a number in a range, both ends included."""
    return type(value) in (int, float) and low <= value <= high


def _is_count(value: Any) -> bool:
    """Return whether a value is a whole number from 0."""
    return type(value) is int and 0 <= value <= _LARGEST


def _are_counts(value: Any) -> bool:
    """Return whether a value is a dictionary of counts."""
    return isinstance(value, dict) and all(name.isidentifier() and _is_count(count) for name, count in value.items())


def _are_shapes(value: Any) -> bool:
    """Return whether a value is a dictionary of shapes of arrays."""
    return isinstance(value, dict) and all(isinstance(s, list) and all(map(_is_count, s)) for s in value.values())


def _are_of_channels(value: Any, low: float) -> bool:
    """Return whether a value is a list of three numbers, one for each channel, that are at least `low`."""
    return isinstance(value, list) and len(value) == 3 and all(_is_number(figure, low) for figure in value)


_Possible = Callable[[Any], bool]
"""Function that returns whether a value is possible."""
_POSSIBLE: Mapping[str, _Possible | Mapping[str, _Possible]] = {
    "client": _is_count,
    "visits": _is_count,
    "shapes": _are_shapes,
    "statistic_shapes": _are_shapes,
    "network": {
        **dict.fromkeys(("width", "cut_layer", "image_size"), _is_count),
        **dict.fromkeys(("arch", "norm"), lambda value: isinstance(value, str)),
        **dict.fromkeys(("weight_standardisation", "client_residual"), lambda value: isinstance(value, bool)),
        "bottleneck": lambda value: value is None or isinstance(value, str),
    },
    "images": {
        "mean": lambda value: _are_of_channels(value, -_LARGEST),
        "std": lambda value: _are_of_channels(value, 1e-6),
    },
    "optimiser": {
        "tau": lambda value: _is_number(value, 0, 1),
        "momentum": lambda value: _is_number(value, 0, 1),
        "weight_decay": lambda value: _is_number(value, 0),
        "precision": lambda value: value in _PRECISIONS,
    },
    "session": dict.fromkeys(("steps", "bytes_up", "bytes_down"), _is_count),
    "cost": dict.fromkeys(("flops", "memory"), _are_counts),
}
"""What each key of ``trace.json`` besides its format can be, or each name that a key holds in turn."""
