"""What a run reports: records, and the file of JSON lines they go to.

Records hold only what the seed determines, so the file of an interrupted and resumed run is byte for byte
that of one never interrupted; anything timed goes into ``live.json`` and ``summary.json``.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import TracebackType
from typing import IO, Any, ClassVar, get_args

from simsfl.algorithm.wire import DeviceStatus


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
    communication: str
    """State of `simsfl.algorithm.communication`: "A" where nothing is saved."""
    bytes_saved_per_client: int
    """So far, up and down, against state A all the time."""
    attackers_ssim_before: float | None = None
    """How well simulated attackers reconstruct images: as they come into a step, mean over the round."""
    attackers_ssim: float | None = None
    """The same once they have learnt from it. None where there are none, or clients do not learn."""


@dataclass(frozen=True)
class EvaluationRecord:
    """kNN accuracy after a round (0: of the untrained network), percent of the test images."""

    event: ClassVar[str] = "evaluation"
    round: int
    knn_top1: float
    pixel_knn_top1: float | None = None
    """The same kNN on raw pixels, for comparison; only with the untrained network."""


@dataclass(frozen=True)
class ProbeRecord:
    """A probe trained on frozen features after the last round, percent of the test images."""

    event: ClassVar[str] = "probe"
    round: int
    kind: str
    """"linear", "semi-10%" or "semi-1%": with so many of the labels, and a hidden layer."""
    top1: float
    best_top1: float
    """Best over the probe's epochs, chosen on the test set."""
    features: str
    """"backbone" or "projector"."""


@dataclass(frozen=True)
class SyncRecord:
    """How far the cohort's models were from their average at an averaging, after a step."""

    event: ClassVar[str] = "sync"
    round: int
    step: int
    divergence_mean: float
    divergence_std: float
    clients: list[int]
    """Ids of the cohort."""
    divergence: list[float]
    """Of each of them."""


@dataclass(frozen=True)
class AbsenceRecord:
    """From this step of the round on it goes on without these clients, which are real devices (hw_profile/)."""

    event: ClassVar[str] = "absence"
    round: int
    step: int
    clients: list[int]
    """Ids, of the cohort; none where all are there again."""


Record = StepRecord | RoundRecord | EvaluationRecord | ProbeRecord | SyncRecord | AbsenceRecord
FIELDS = {kind.event: {field.name for field in fields(kind)} for kind in get_args(Record)}
"""Names of what a record of each kind holds."""
ENDINGS = ("finished", "stopped", "failed")
"""Activities of a run that is over."""


@dataclass(frozen=True)
class Status:
    """How a run is going: everything timed, which is not in the records. The content of ``live.json``."""

    activity: str
    """"training", the evaluation under way, or one of `ENDINGS`."""
    updated: float
    """Seconds since 1970."""
    round: int
    """Rounds that are done with."""
    step: int
    """Finished steps of the round under way."""
    rounds: int
    steps: int
    """In a round."""
    seconds: float
    """Spent training, over all sessions."""
    step_seconds: float | None
    """Per step, of the latest steps; None before the first of the session."""
    client_steps_per_second: float | None
    """Over all sessions, as is `images_per_second`."""
    images_per_second: float | None
    phase_seconds: dict[str, float]
    """Of this session."""
    peak_memory_bytes: int
    participation: list[int]
    """How many clients have completed 0, 1, 2, ... rounds."""
    devices: list[DeviceStatus] = field(default_factory=list)
    """Real ones, if any take part."""

    @classmethod
    def load(cls, path: Path) -> Status | None:
        """From ``live.json``; None where there is none, or none that is whole."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            devices = [DeviceStatus(**device) for device in content.pop("devices", [])]
            status = cls(**content, devices=devices)
            numbers = (status.updated, status.round, status.step, status.rounds, status.steps, status.seconds)
            return status if all(isinstance(number, int | float) for number in numbers) else None
        except (OSError, ValueError, TypeError, AttributeError):
            return None


def to_dict(record: Record) -> dict[str, Any]:
    """A record as one JSON object."""
    return {"event": record.event, **asdict(record)}


class MetricsLog:
    """Appends records to ``metrics.jsonl``, one JSON object a line. No other process can, until this is closed.

    Args:
        path: the file; created where it does not exist.
        keep_bytes: cut the file to this length first: what it held at the checkpoint resumed from.

    Attributes:
        kept: the records that were left, as dicts.

    Raises:
        ValueError: the file is shorter than that, holds something else, or is another process's.
    """

    def __init__(self, path: Path, keep_bytes: int = 0):
        self._file = path.open("ab")
        try:
            if not lock(self._file):
                raise ValueError(f"resume: {path.parent} is being written to by another process; allowed once it ends")
            held = path.stat().st_size
            if held < keep_bytes:
                raise ValueError(f"resume: {path} has {held} bytes, but its checkpoint belongs to {keep_bytes}")
            self._file.truncate(keep_bytes)
            self.kept = [record for record, _ in read_records(path)]
        except ValueError:
            self._file.close()
            raise

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


def lock(file: IO[bytes]) -> bool:
    """Lock an open file for this process, until it is closed; whether that could be done."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def is_written(path: Path) -> bool:
    """Whether a process has a `MetricsLog` open on this file."""
    with path.open("rb") as file:
        return not lock(file)


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
                if set(record) != FIELDS[record["event"]] | {"event"}:
                    raise ValueError("it lacks fields, or has others")
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"metrics: {path} holds no record before byte {offset} ({error})") from error
            yield record, offset


class History:
    """What the views and the summary need of the records so far, as dicts of `to_dict`."""

    def __init__(self) -> None:
        self.latest: dict[str, dict[str, Any]] = {}
        self.rounds: list[dict[str, Any]] = []
        self.evaluations: list[dict[str, Any]] = []
        self.probes: dict[str, dict[str, Any]] = {}
        self.syncs: list[dict[str, Any]] = []

    def clear(self) -> None:
        """Forget everything."""
        self.latest.clear()
        self.rounds.clear()
        self.evaluations.clear()
        self.probes.clear()
        self.syncs.clear()

    def feed(self, record: dict[str, Any]) -> None:
        """Take in the next record."""
        self.latest[record["event"]] = record
        if record["event"] == "round":
            self.rounds.append(record)
        elif record["event"] == "evaluation":
            self.evaluations.append(record)
        elif record["event"] == "probe":
            self.probes[record["kind"]] = record
        elif record["event"] == "sync":
            self.syncs.append({name: value for name, value in record.items() if name != "divergence"})

    def untrained(self, key: str) -> Any:
        """A value of the untrained network's evaluation, None where there is none yet."""
        first = self.evaluations[0] if self.evaluations else {"round": None}
        return first.get(key) if first["round"] == 0 else None

    def value(self, event: str, key: str) -> Any:
        """A value of the latest record of a kind, None where there is none yet."""
        return self.latest.get(event, {}).get(key)
