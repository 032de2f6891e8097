"""A sampler that draws from those clients that are available, by a file of the times at which they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from simsfl.config.values import option
from simsfl.samplers import Drawn, Sampler
from simsfl.system.decoding import parse_json
from simsfl.system.reading import text_of


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
        read_times(self.file, "sampler.file")

    def draw(self, clients: range, count: int, round_index: int, images: np.ndarray, rng: np.random.Generator) -> Drawn:
        """Return available clients, and if these are too few, others who are missing."""
        times = read_times(self.file, "sampler.file")
        order = clients.start + rng.permutation(len(clients))
        there = times.there(round_index * self.round_seconds)[order % times.lines]
        chosen = np.concatenate([order[there], order[~there]])[:count]
        present = min(count, int(there.sum()))
        return Drawn(chosen, tuple(chosen[present:].tolist()))


_Spans = list[tuple[float, float]]
"""Begin and end of each span of time in which a client is available, in seconds."""


@dataclass(frozen=True)
class Times:
    """When clients are available, as a file says that has a line for each.

    Attributes:
        spans: ``[N, 3]`` line, begin and end of each span, in seconds.
        lines: lines of the file.
        period: seconds after which the times repeat.
    """

    spans: np.ndarray
    lines: int
    period: float

    def there(self, clock: float) -> np.ndarray:
        """Return for each line whether its client is available at some time, in seconds, ``[lines]`` bool."""
        line, begin, end = self.spans.T
        now = clock % self.period
        result = np.zeros(self.lines, bool)
        result[line[(begin <= now) & (now < end)].astype(np.int64)] = True
        return result

    def next_begin(self, clock: float) -> float:
        """Return the first time after some other, in seconds, at which a span begins."""
        later = self.spans[:, 1] - clock % self.period
        return clock + float(np.where(later > 0, later, later + self.period).min())


@cache
def read_times(file: str | Path, field: str) -> Times:
    """Return the times in a file, of the form that `Availability` describes.

    Args:
        file: the file.
        field: what names it, for errors.

    Raises:
        ValueError: the file cannot be read, or a line of it is something else, or nobody is ever available.
    """
    try:
        lines = text_of(Path(file)).splitlines()
    except (OSError, UnicodeError) as error:
        raise ValueError(f"{field}: {file} cannot be read ({error})") from error
    spans, period = [], 0.0
    for number, line in enumerate(lines):
        try:
            own, duration = _spans(line)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"{field}: line {number + 1} of {file} is {line[:60]!r}; allowed: such as 0-3600,7200-9000"
            ) from error
        spans += [(number, *span) for span in own]
        period = max([period, duration, *(end for _, end in own)])
    if all(begin == end for _, begin, end in spans):
        raise ValueError(f"{field}: {file} has no client that is ever available; allowed: one that has")
    return Times(np.array(spans, dtype=float).reshape(-1, 3), len(lines), period)


def _spans(line: str) -> tuple[_Spans, float]:
    """Return the spans of a line, and its duration, 0 if it has none.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: the line is something else.
    """
    duration = 0.0
    if line.lstrip().startswith("{"):
        own = parse_json(line)
        begins, ends = own["active"], own["inactive"]
        duration = float(own.get("duration", 0))
        pairs: list[Sequence[str | float]] = list(zip(begins, [*ends, duration][: len(begins)], strict=True))
    else:
        pairs = [part.split("-") for part in line.replace(" ", "").split(",") if part]
    spans = [(float(begin), float(end)) for begin, end in pairs]
    if not all(0 <= begin <= end < float("inf") for begin, end in spans):
        raise ValueError("a span ends before it begins")
    return spans, duration
