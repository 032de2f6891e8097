"""What a run reports: records, and the file of JSON lines they go to.

Records hold only what the seed determines, so the file of an interrupted and resumed run is byte for byte
that of one never interrupted; anything timed goes into ``live.json`` and ``summary.json``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar


@dataclass(frozen=True)
class StepRecord:
    """One training step. Rounds and steps count from 1."""

    event: ClassVar[str] = "step"
    round: int
    step: int
    loss: float
    contrast_top1: float
    """Percent of queries whose own key scores highest."""


@dataclass(frozen=True)
class RoundRecord:
    """One finished round, after its evaluation if it had one."""

    event: ClassVar[str] = "round"
    round: int
    loss: float
    """Mean over the round's steps, as is `contrast_top1`."""
    contrast_top1: float
    server_lr: float
    bytes_up_per_client: int
    """Sent so far, mean over all clients of the run."""
    bytes_down_per_client: int


@dataclass(frozen=True)
class EvaluationRecord:
    """kNN accuracy after a round (0: before training), percent of the test images."""

    event: ClassVar[str] = "evaluation"
    round: int
    knn_top1: float
    pixel_knn_top1: float | None = None
    """The same kNN on raw pixels, for comparison; only before training."""


@dataclass(frozen=True)
class ProbeRecord:
    """Linear probe after the last round, percent of the test images."""

    event: ClassVar[str] = "probe"
    round: int
    linear_top1: float
    linear_best_top1: float
    """Best over the probe's epochs, chosen on the test set."""


Record = StepRecord | RoundRecord | EvaluationRecord | ProbeRecord


def to_dict(record: Record) -> dict[str, Any]:
    """A record as one JSON object."""
    return {"event": record.event, **asdict(record)}


class MetricsLog:
    """Appends records to ``metrics.jsonl``, one JSON object a line.

    Args:
        path: the file; created where it does not exist.
        keep_bytes: cut the file to this length first: what it held at the checkpoint resumed from.

    Raises:
        ValueError: the file is shorter than that.
    """

    def __init__(self, path: Path, keep_bytes: int = 0):
        held = path.stat().st_size if path.exists() else 0
        if held < keep_bytes:
            raise ValueError(f"resume: {path} has {held} bytes, fewer than the {keep_bytes} its checkpoint belongs to")
        self._file = path.open("ab")
        self._file.truncate(keep_bytes)

    def write(self, record: Record) -> None:
        """Append one record."""
        self._file.write(json.dumps(to_dict(record)).encode() + b"\n")
        self._file.flush()

    def sync(self) -> int:
        """Put everything on disk; the file's length in bytes."""
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.sync()
        self._file.close()


def read_records(path: Path, offset: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
    """Records of a metrics file from byte `offset`, each with the offset behind it; whole lines only."""
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            try:
                record = json.loads(line)
            except ValueError as error:
                raise ValueError(f"metrics: {path} is damaged before byte {offset} ({error})") from error
            yield record, offset


class History:
    """What the views and the summary need of the records so far, as dicts of `to_dict`."""

    def __init__(self) -> None:
        self.latest: dict[str, dict[str, Any]] = {}
        self.rounds: list[dict[str, Any]] = []
        self.evaluations: list[dict[str, Any]] = []

    def clear(self) -> None:
        """Forget everything."""
        self.latest.clear()
        self.rounds.clear()
        self.evaluations.clear()

    def feed(self, record: dict[str, Any]) -> None:
        """Take in the next record."""
        self.latest[record["event"]] = record
        if record["event"] == "round":
            self.rounds.append(record)
        elif record["event"] == "evaluation":
            self.evaluations.append(record)

    def untrained(self, key: str) -> Any:
        """A value of the evaluation before training, None where there is none."""
        first = self.evaluations[0] if self.evaluations else {"round": None}
        return first.get(key) if first["round"] == 0 else None

    def value(self, event: str, key: str) -> Any:
        """A value of the latest record of a kind, None where there is none yet."""
        return self.latest.get(event, {}).get(key)
