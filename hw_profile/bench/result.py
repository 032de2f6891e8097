"""The content of ``result.json`` as typed records, for a program that reads a result again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from simsfl.hw_profile.meters.board import Board
from simsfl.system.decoding import Amount, Count, Ordinal, Range, decode, read_json
from simsfl.system.messages import shortened

_Share = Annotated[float, Range(0, 1e9)]
"""A ratio of two measured figures."""
_OF_POWER = ("energy", "energy_note", "energy_failed", "readings")
"""Entries that a meter's readings replace, and that are not read again."""
_SPANS = ("idle before", "work", "idle after")
"""Names of the spans, in order of time."""


@dataclass(frozen=True)
class _Trace:
    """The client trace that was replayed, and its network."""

    client: Count
    steps: Ordinal
    batch_size: Ordinal
    paper: bool
    image_size: Ordinal
    arch: str
    width: Ordinal
    norm: str
    weight_standardisation: bool
    cut_layer: Ordinal
    bottleneck: str | None
    client_residual: bool
    head: str
    key_dim: Ordinal
    file: str


@dataclass(frozen=True)
class _Spread:
    """Times of a phase in seconds, as `simsfl.hw_profile.meters.stopwatch.Times.spread` sums them up."""

    count: Ordinal
    mean: Amount
    p5: Amount
    median: Amount
    p95: Amount


@dataclass(frozen=True)
class _Operations:
    """Floating-point operations of a step and by second, as `simsfl.hw_profile.bench.findings.operations` has them."""

    per_step: Count
    per_second: Amount
    phases_per_second: dict[str, Amount]
    peak_per_second: Amount
    peak_source: str
    share_of_peak: _Share


@dataclass(frozen=True)
class _Memory:
    """Memory that the work takes, in bytes."""

    process_idle: Count | None
    process_above_idle: int | None
    tensors: Count
    tensors_source: str
    estimated: Count
    by_category: dict[str, Count]


@dataclass(frozen=True)
class _Session:
    """Figures of a whole session, as `simsfl.hw_profile.bench.findings.session` has them."""

    steps: Count
    bytes_up: Count
    bytes_down: Count
    seconds: Amount
    wh: float | None
    mah_at_5v: float | None
    share_of_10000_mah: float | None
    charge_source: str = ""


@dataclass(frozen=True)
class _Temperature:
    """Temperature of the processor in degrees Celsius, at the start and at its highest."""

    first: float
    highest: float


@dataclass(frozen=True)
class _Verified:
    """Largest relative differences from the trace."""

    activations: Amount
    weights: Amount
    tolerance: Amount


@dataclass(frozen=True)
class _Result:
    """The content of ``result.json`` without the entries in `_OF_POWER`, in their order.

    Raises:
        ValueError: a span is missing or ends before it begins, or a step took no time.
    """

    board: Board
    versions: dict[str, str | int]
    runtime: str
    dtype: str
    threads: Ordinal
    compile: bool
    trace: _Trace
    steps: Ordinal
    spans: dict[str, list[Amount]]
    latency: dict[str, _Spread]
    operations: _Operations
    memory: _Memory
    session: _Session
    temperature: _Temperature | None
    throttling: list[str] | None
    verified: _Verified
    clock_moved: float = 0.0

    def __post_init__(self) -> None:
        times = [time for name in _SPANS for time in self.spans.get(name, [])]
        if [len(self.spans.get(name, [])) for name in _SPANS] != [2] * len(_SPANS) or times != sorted(times):
            spans = shortened(self.spans)
            raise ValueError(f"spans: {spans} are not the begin and the end of {', '.join(_SPANS)}, in order")
        if not {"step", *self.operations.phases_per_second} <= self.latency.keys() or not self.latency["step"].mean:
            raise ValueError("latency: it lacks the time of a step or of a phase")


def read_result(path: Path) -> dict[str, Any]:
    """Return the content of a ``result.json``, without what a meter's readings gave.

    Raises:
        ValueError: there is no such file, or it holds no result.
    """
    content = read_json(path)
    if isinstance(content, Mapping):
        content = {name: value for name, value in content.items() if name not in _OF_POWER}
        memory = content.get("memory")
        if isinstance(memory, Mapping) and "reckoned" in memory:  # as earlier versions called it
            content["memory"] = {"estimated" if name == "reckoned" else name: memory[name] for name in memory}
    result = asdict(decode(_Result, content))
    result["spans"] = {name: result["spans"][name] for name in _SPANS}
    return result
