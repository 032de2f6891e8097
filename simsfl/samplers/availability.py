"""A sampler that draws from those clients that are available, by a file of the times at which they are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from simsfl.config.values import option
from simsfl.samplers import Drawn, Sampler


@dataclass(frozen=True)
class Availability(Sampler):
    """Draws uniformly from the clients that are available when the round begins.

    The file has a line for each client: the spans of time in which it is available, in seconds, such as
    ``0-3600,7200-9000``, or as JSON in the form of FedScale (Lai et al., ICML 2022),
    ``{"active": [0, 7200], "inactive": [3600, 9000], "duration": 86400}``. An empty line is a client that never is.
    Clients with numbers beyond the last line start over with the first. After the end of the longest span, or of the
    duration, the times repeat. Where too few are available, the cohort is filled up with others, who do not come.
    """

    file: str | None = option(
        None,
        "File with a line for each client: the spans of seconds in which it is available, such as 0-3600,7200-9000, or "
        'JSON in FedScale\'s form, {"active": [0, 7200], "inactive": [3600, 9000], "duration": 86400}.',
        file=True,
    )
    round_seconds: float = option(60.0, "Seconds from the beginning of a round to that of the next.", within=(0, 1e9))

    def __post_init__(self) -> None:
        if self.file is None:
            raise ValueError("sampler.file: is not given; allowed: a file of availability times")
        _times(self.file)

    def draw(self, clients: range, count: int, round_index: int, images: np.ndarray, rng: np.random.Generator) -> Drawn:
        """Return available clients, and if these are too few, others who are missing."""
        spans, period = _times(self.file)
        now = round_index * self.round_seconds % period
        order = clients.start + rng.permutation(len(clients))
        there = np.array([any(begin <= now < end for begin, end in spans[client % len(spans)]) for client in order])
        chosen = np.concatenate([order[there], order[~there]])[:count]
        present = min(count, int(there.sum()))
        return Drawn(chosen, tuple(chosen[present:].tolist()))


_Spans = list[tuple[float, float]]
"""Begin and end of each span of time in which a client is available, in seconds."""


@cache
def _times(file: str) -> tuple[list[_Spans], float]:
    """Return the spans of each line of a file, and the seconds after which the times repeat.

    Raises:
        ValueError: the file cannot be read, or a line of it is something else.
    """
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError) as error:
        raise ValueError(f"sampler.file: {file} cannot be read ({error})") from error
    spans, period = [], 0.0
    for number, line in enumerate(lines, start=1):
        try:
            own, duration = _spans(line)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"sampler.file: line {number} of {file} is {line[:60]!r}; allowed: such as 0-3600,7200-9000"
            ) from error
        spans.append(own)
        period = max([period, duration, *(end for _, end in own)])
    if not period:
        raise ValueError(f"sampler.file: {file} has no client that is ever available; allowed: one that has")
    return spans, period


def _spans(line: str) -> tuple[_Spans, float]:
    """Return the spans of a line, and its duration, 0 if it has none.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: the line is something else.
    """
    duration = 0.0
    if line.lstrip().startswith("{"):
        own = json.loads(line)
        begins, ends = own["active"], own["inactive"]
        duration = float(own.get("duration", 0))
        pairs: list[Sequence[str | float]] = list(zip(begins, [*ends, duration][: len(begins)], strict=True))
    else:
        pairs = [part.split("-") for part in line.replace(" ", "").split(",") if part]
    spans = [(float(begin), float(end)) for begin, end in pairs]
    if not all(0 <= begin <= end < float("inf") for begin, end in spans):
        raise ValueError("a span ends before it begins")
    return spans, duration
