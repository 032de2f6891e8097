"""Checkpoints: safetensors files, each of which carries what a resume believes, and its own checksum.

The header of a file says where the run stood, which run it was, and how its metrics began; its last tensor is the
SHA-256 of everything before it. So a file can be judged by itself, and it is the same, byte for byte, whether the run
was interrupted or not. ``manifest.json`` lists the files, newest first, with what was timed; checkpoints of older
versions are described there alone. It is replaced once a new file is on disk, and older files are deleted only after
that.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from torch import Tensor

from simsfl.algorithm.communication import Communication
from simsfl.cost.model import Missed, Traffic
from simsfl.runs.metrics import AbsenceCount
from simsfl.runs.metrics_log import Extent
from simsfl.runs.records import read, to_json
from simsfl.system.decoding import Amount, Count, decode, parse_json
from simsfl.system.files import digest, write_json
from simsfl.system.messages import shown
from simsfl.system.tensor_file import Rows, is_sealed, open_tensors, write_tensors

_KEEP = 2
"""Number of checkpoints that are kept, so that a run can go back to an older one if the newest is damaged."""
_NAME = re.compile(r"round-(\d{6,19})-step-(\d{6,19})\.safetensors")
"""Names of checkpoints; a user's own files beside them have others."""
MANIFEST = "manifest.json"
"""Name of the file that lists the checkpoints."""
SEAL = "sha256"
"""Name of the last tensor of a file."""
_KEY = "simsfl.checkpoint"
"""Key of a `Standing` in the header of a file."""


@dataclass(frozen=True)
class Standing:
    """Where a run stands at a checkpoint, as only its seed determines it."""

    round: Count
    """Number of rounds that are finished."""
    step: Count
    """Number of finished steps of the current round."""
    communication: Communication
    """What clients and server exchange in the current round."""
    traffic: Traffic
    """Bytes sent so far."""
    metrics: Extent
    """The part of ``metrics.jsonl`` that belongs to the checkpoint."""
    run: str
    """The run that it belongs to (`simsfl.runs.records.RunRecord.identity`)."""
    usual: Traffic | None = None
    """Bytes that would have been sent if no communication had been saved; None in checkpoints of versions that did not
    count absences."""
    missed: Missed = field(default_factory=Missed)
    """What absent clients have missed in the current round."""
    absences: AbsenceCount | None = None
    """How often clients were absent so far; None in checkpoints of versions that did not count it."""


@dataclass(frozen=True)
class Timed:
    """What was timed and measured until a checkpoint, over all sessions of a run."""

    seconds: Amount = 0.0
    """Seconds spent training."""
    peak_memory_bytes: Count = 0
    """The most memory held."""
    phase_seconds: dict[str, Amount] = field(default_factory=dict)
    """Seconds by phase."""


@dataclass(frozen=True)
class _Meta:
    """What the manifest says of a checkpoint beside its file: most of `Standing`, and `Timed`."""

    round: Count
    step: Count
    seconds: Amount
    metrics_bytes: Count
    peak_memory_bytes: Count
    communication: Communication
    traffic: Traffic
    phase_seconds: dict[str, Amount]


@dataclass(frozen=True)
class _Entry:
    """An entry of the manifest: a file, the checksum of the whole file, and what goes with it."""

    file: str
    sha256: str
    meta: _Meta

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.file):
            raise ValueError(f"{shown(self.file)} is not the name of a checkpoint")


@dataclass(frozen=True)
class _Manifest:
    """The content of ``manifest.json``, newest checkpoint first, with the checksum of all else in it."""

    checkpoints: list[_Entry]
    sha256: str = ""


@dataclass(frozen=True)
class Found:
    """A usable checkpoint."""

    path: Path
    """Its safetensors file."""
    standing: Standing
    """Where the run stood."""
    timed: Timed
    """What was timed until then; zeros where that is lost."""
    problems: list[str]
    """A line on each newer checkpoint that is not usable, and one if what was timed is lost."""


def save(directory: Path, tensors: Mapping[str, Tensor | Rows], standing: Standing, timed: Timed) -> None:
    """Write a checkpoint and delete all but the newest `_KEEP`.

    Checkpoints that do not come before this one were abandoned when the run went back to an older checkpoint, and are
    deleted. Files that are not checkpoints of this run stay.

    Args:
        directory: directory of the checkpoints, created if it does not exist.
        tensors: everything to restore, by name.
        standing: where the run stands.
        timed: what was timed until now.

    Raises:
        OSError: the checkpoint cannot be written; the older ones are kept.
    """
    directory.mkdir(parents=True, exist_ok=True)
    name = f"round-{standing.round:06d}-step-{standing.step:06d}.safetensors"
    entries, own = _listed(directory) or {}, _own(directory, standing.run)
    kept = [name, *(older for older in own if _place(older) < _place(name))][:_KEEP]
    sha256 = write_tensors(directory / name, tensors, {_KEY: json.dumps(asdict(standing))}, SEAL)
    meta = _Meta(
        round=standing.round,
        step=standing.step,
        metrics_bytes=standing.metrics.bytes,
        communication=standing.communication,
        traffic=standing.traffic,
        **vars(timed),
    )
    listed = [_Entry(name, sha256, meta), *(entries[older] for older in kept[1:] if older in entries)]
    write_json(directory / MANIFEST, to_json(_Manifest(listed)))
    for other in set(own) - set(kept):
        (directory / other).unlink()


def clear(directory: Path, run: str) -> None:
    """Delete the checkpoints of a run, their manifest, and the directory if it is empty then."""
    for name in _own(directory, run):
        (directory / name).unlink()
    (directory / MANIFEST).unlink(missing_ok=True)
    with suppress(OSError):  # there is none, or it holds other files
        directory.rmdir()


def newest(directory: Path, run: str, metrics: Path | None = None) -> Found:
    """Return the newest checkpoint that is whole, and belongs to the run.

    Args:
        directory: directory of the checkpoints.
        run: the run (`simsfl.runs.records.RunRecord.identity`).
        metrics: ``metrics.jsonl``, which then has to begin as it did at the checkpoint; None if the run does not go on.

    Raises:
        ValueError: no checkpoint in the directory is usable, or ``metrics.jsonl`` is not that of the run.
    """
    entries = _listed(directory)
    problems = [] if entries is not None else [f"{directory / MANIFEST} is missing or damaged: earlier times are lost"]
    unusable: list[str] = []
    for name in _names(directory) if entries is None else sorted(entries, key=_place, reverse=True):
        entry = (entries or {}).get(name)
        try:
            standing = _checked(directory / name, entry, run)
        except ValueError as error:
            unusable.append(str(error))
            continue
        if metrics and (problem := standing.metrics.problem(metrics)):
            unusable.append(problem)
            continue
        timed = Timed(entry.meta.seconds, entry.meta.peak_memory_bytes, entry.meta.phase_seconds) if entry else Timed()
        problems = [*(f"{one}; the one before is used" for one in unusable), *problems]
        return Found(directory / name, standing, timed, problems)
    raise ValueError("; ".join([f"resume: {directory.parent} holds no usable checkpoint", *unusable]))


def _listed(directory: Path) -> dict[str, _Entry] | None:
    """Return the entries of the manifest by file name; None if it is missing or damaged."""
    try:
        return {entry.file: entry for entry in read(directory / MANIFEST, _Manifest).checkpoints}
    except ValueError:
        return None


def _names(directory: Path) -> list[str]:
    """Return the names of all files in a directory that are called as checkpoints are, from the latest place on."""
    names = [path.name for path in directory.glob("*.safetensors") if _NAME.fullmatch(path.name) and path.is_file()]
    return sorted(names, key=_place, reverse=True)


def _own(directory: Path, run: str) -> list[str]:
    """Return those of `_names` that are checkpoints of the run, by their header or the manifest."""
    entries = _listed(directory) or {}

    def is_own(name: str) -> bool:
        with suppress(ValueError):
            standing = _described(directory / name)
            return name in entries if standing is None else standing.run == run
        return name in entries

    return [name for name in _names(directory) if is_own(name)]


def others(directory: Path, run: str | None) -> list[str]:
    """Return the names of files that are called as checkpoints are, but are not those of the run; None is no run."""
    own = [] if run is None else _own(directory, run)
    return [name for name in _names(directory) if name not in own]


def _place(name: str) -> tuple[int, ...]:
    """Return round and step of the checkpoint with this file name."""
    return tuple(map(int, _NAME.fullmatch(name).groups()))


def _described(path: Path) -> Standing | None:
    """Return what the header of a checkpoint says; None for one of an older version, which says nothing.

    Raises:
        ValueError: the file is missing or damaged.
    """
    with open_tensors(path) as file:
        metadata = file.metadata() or {}
    try:
        return decode(Standing, parse_json(metadata[_KEY])) if _KEY in metadata else None
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error})") from error


def _checked(path: Path, entry: _Entry | None, run: str) -> Standing:
    """Return where the run stood at a checkpoint, if the whole file is as it was written.

    Args:
        path: the file.
        entry: its entry in the manifest, if it has one.
        run: the run.

    Raises:
        ValueError: the file is missing or damaged, or belongs to another run.
    """
    try:
        standing = _described(path)
    except ValueError as error:
        raise ValueError(f"checkpoint {error}") from error
    if standing is None and entry is None:
        raise ValueError(f"checkpoint {path} does not say where the run stood, and neither does {MANIFEST}")
    if not (is_sealed(path) if standing else digest(path) == entry.sha256):
        raise ValueError(f"checkpoint {path} is damaged (SHA-256 differs)")
    if standing is None:
        meta, metrics = entry.meta, Extent(entry.meta.metrics_bytes, None)
        return Standing(meta.round, meta.step, meta.communication, meta.traffic, metrics, run)
    if standing.run != run:
        raise ValueError(
            f"checkpoint {path} belongs to another run than config.json describes; allowed: a new run with --config"
        )
    return standing
