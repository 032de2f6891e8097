"""Records of a run's results, and the file of JSON lines that they are written to.

Records hold only what the seed determines, so that a run that was interrupted and resumed has the same file, byte for
byte, as one that was not. Everything timed goes into ``live.json`` and ``summary.json`` instead.
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
    """One training step. In all records, rounds and steps are counted from 1."""

    event: ClassVar[str] = "step"
    round: int
    step: int
    loss: float
    contrast_top1: float
    """Contrastive accuracy: percentage of queries whose own key scores higher than all others; a tie is no hit."""


@dataclass(frozen=True)
class RoundRecord:
    """One finished round; the record comes after that of the round's evaluation, if there is one."""

    event: ClassVar[str] = "round"
    round: int
    loss: float
    """Mean loss over the round's steps."""
    contrast_top1: float
    """Mean contrastive accuracy over the round's steps, in percent."""
    server_lr: float
    """Learning rate of the server in the round."""
    bytes_up_per_client: int
    """Bytes that a client has sent so far, averaged over all clients of the run."""
    bytes_down_per_client: int
    """Bytes that a client has received so far, averaged over all clients of the run."""
    communication: str
    """What the round exchanged, a value of `simsfl.algorithm.communication.Exchange`: "A" if nothing was saved."""
    bytes_saved_per_client: int
    """Bytes, up and down together, that a client has sent and received less so far than if all rounds were "A"."""
    attackers_ssim_before: float | None = None
    """SSIM of the simulated attackers' reconstructions before they learn from a step, averaged over the round.

    None without simulated attackers, and in rounds in which clients get no gradients."""
    attackers_ssim: float | None = None
    """SSIM of the simulated attackers' reconstructions after they have learnt from a step, averaged over the round, or
    None like `attackers_ssim_before`."""


@dataclass(frozen=True)
class EvaluationRecord:
    """What the network is worth after a round; round 0 is the untrained network."""

    event: ClassVar[str] = "evaluation"
    round: int
    knn_top1: float
    """kNN accuracy in percent of the test images."""
    pixel_knn_top1: float | None = None
    """kNN accuracy on raw pixels in percent, for comparison; only in round 0, otherwise None."""
    output_std: float | None = None
    """Standard deviation of the normalised outputs over the test images, averaged over their D dimensions: 0 if the
    network has collapsed, at most ``1 / sqrt(D)``. None in runs of versions that did not record it."""


@dataclass(frozen=True)
class ProbeRecord:
    """Accuracy of a probe that is trained on frozen features after the last round."""

    event: ClassVar[str] = "probe"
    round: int
    kind: str
    """"linear", or "semi-10%" and "semi-1%" for probes with a hidden layer on that share of the labels."""
    top1: float
    """Accuracy after the probe's last epoch, in percent of the test images."""
    best_top1: float
    """Highest accuracy over the probe's epochs, chosen on the test set, in percent of the test images."""
    features: str
    """Features that the probe is trained on, "backbone" or "projector"."""


@dataclass(frozen=True)
class SyncRecord:
    """How far the cohort's models were from their average, at the averaging after a step."""

    event: ClassVar[str] = "sync"
    round: int
    step: int
    divergence_mean: float
    """Mean of `divergence` over the cohort."""
    divergence_std: float
    """Standard deviation of `divergence` over the cohort, uncorrected."""
    clients: list[int]
    """Ids of the clients in the cohort."""
    divergence: list[float]
    """Divergence of each of the `clients`, in that order (`simsfl.algorithm.aggregation.divergence`)."""


@dataclass(frozen=True)
class AbsenceRecord:
    """Clients, which are real devices (hw_profile/), that are absent from this step of the round on."""

    event: ClassVar[str] = "absence"
    round: int
    step: int
    clients: list[int]
    """Ids of all clients of the cohort that are absent; empty once everyone is back."""


Record = StepRecord | RoundRecord | EvaluationRecord | ProbeRecord | SyncRecord | AbsenceRecord
_FIELDS = {kind.event: {field.name for field in fields(kind)} for kind in get_args(Record)}
"""Names of the fields of a record, by its `event`."""
_ADDED = {"evaluation": {"output_std"}}
"""Names of those fields that runs of earlier versions lack, by `event`; they read as None."""
ENDINGS = ("finished", "stopped", "failed")
"""Activities of a run that is over; see `Status`."""


@dataclass(frozen=True)
class Status:
    """The content of ``live.json``: how far a run has come, and everything timed, which the records leave out."""

    activity: str
    """What the run is doing, for people: such as "training", the current evaluation, or one of `ENDINGS`."""
    updated: float
    """Time of this status, in seconds since 1970."""
    round: int
    """Number of finished rounds."""
    step: int
    """Number of finished steps of the current round."""
    rounds: int
    """Number of rounds of the whole run."""
    steps: int
    """Number of steps in a round."""
    seconds: float
    """Seconds spent training, over all sessions of the run."""
    step_seconds: float | None
    """Seconds per step, averaged over the latest steps; None before the first step of the session."""
    client_steps_per_second: float | None
    """Steps of single clients per second, over all sessions of the run; None before any time is spent."""
    images_per_second: float | None
    """Training images per second, over all sessions of the run; None before any time is spent."""
    phase_seconds: dict[str, float]
    """Seconds of training and evaluation by phase (`simsfl.system.clock.PHASES`), over all sessions of the run."""
    peak_memory_bytes: int
    """The most memory held so far, over all sessions of the run."""
    participation: list[int]
    """Number of clients that have completed 0, 1, 2, ... rounds."""
    devices: list[DeviceStatus] = field(default_factory=list)
    """Status of each real device that takes part (hw_profile/)."""

    @classmethod
    def load(cls, path: Path) -> Status | None:
        """Read a status from ``live.json``; return None if the file is missing or malformed."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            devices = [DeviceStatus(**device) for device in content.pop("devices", [])]
            status = cls(**content, devices=devices)
            numbers = (status.updated, status.round, status.step, status.rounds, status.steps, status.seconds)
            return status if all(isinstance(number, int | float) for number in numbers) else None
        except (OSError, ValueError, TypeError, AttributeError):
            return None


def to_dict(record: Record) -> dict[str, Any]:
    """Return a record as a dict for JSON, with its kind under "event"."""
    return {"event": record.event, **asdict(record)}


class MetricsLog:
    """The open file ``metrics.jsonl``, to append records to, one JSON object per line; locked until it is closed.

    Args:
        path: path of the file, which is created if it does not exist.
        keep_bytes: length in bytes to which the file is cut first: the one it had at the checkpoint that the run is
            resumed from.

    Attributes:
        kept: the records that are left after the cut, as dicts.

    Raises:
        ValueError: the file is shorter than `keep_bytes`, does not hold records, or is locked by another process.
    """

    def __init__(self, path: Path, keep_bytes: int = 0):
        self._file = path.open("ab")
        try:
            if not _lock(self._file):
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
        """Append a record and flush it to the operating system."""
        self._file.write(json.dumps(to_dict(record)).encode() + b"\n")
        self._file.flush()

    def sync(self) -> int:
        """Force everything written onto the disk (fsync); return the length of the file in bytes."""
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.sync()
        self._file.close()


def _lock(file: IO[bytes]) -> bool:
    """Lock an open file for this process until it is closed; return False if another process has locked it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # some file systems have no locks: go on without
        return True
    return True


def is_written(path: Path) -> bool:
    """Return whether a process has a `MetricsLog` open on this file."""
    with path.open("rb") as file:
        return not _lock(file)


def read_records(path: Path, offset: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield the records of a metrics file from byte `offset` on, as dicts, each with the offset of the next one.

    A last line without its end, which another process may still be writing, is left out.

    Raises:
        ValueError: a line is not a record.
    """
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            try:
                record = json.loads(line)
                record = dict.fromkeys(_ADDED.get(record["event"], ())) | record
                if set(record) != _FIELDS[record["event"]] | {"event"}:
                    raise ValueError("it lacks fields, or has others")
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"metrics: {path} holds no record before byte {offset} ({error})") from error
            yield record, offset


class History:
    """The records so far, as dicts of `to_dict`, as the views, the report and the summary need them.

    Attributes:
        latest: the latest record of each kind, by its "event".
        rounds: all records of rounds.
        evaluations: all records of evaluations.
        probes: the latest record of each probe, by its "kind".
        syncs: all records of averagings, without the divergence of each client.
    """

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
        """Add the next record."""
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
        """Return a value of the untrained network's evaluation, None if it has not been evaluated yet."""
        first = self.evaluations[0] if self.evaluations else {"round": None}
        return first.get(key) if first["round"] == 0 else None

    def value(self, event: str, key: str) -> Any:
        """Return a value of the latest record of a kind, None if there is no such record yet."""
        return self.latest.get(event, {}).get(key)
