"""The file ``metrics.jsonl`` of a run: its records as JSON lines, written by one process at a time."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from simsfl.runs.metrics import Record, from_dict, to_dict
from simsfl.system.decoding import Count, parse_json
from simsfl.system.files import lock, naming
from simsfl.system.programs import command, pasted
from simsfl.system.reading import open_regular

__all__ = ["read_records"]


@dataclass(frozen=True)
class Extent:
    """The part of ``metrics.jsonl`` that belongs to a state of the run: its first `bytes`, and their checksum."""

    bytes: Count = 0
    sha256: str | None = hashlib.sha256().hexdigest()
    """None where it is not known, as in older runs."""

    def problem(self, path: Path) -> str:
        """Return how the file at `path` differs from this part as far as that goes; empty if it does not.

        Raises:
            ValueError: the file is shorter, so that it is not the file that the run has left.
        """
        held = path.stat().st_size if path.exists() else 0
        if held < self.bytes:
            raise ValueError(f"resume: {path} has {held} bytes, but its checkpoint belongs to {self.bytes}")
        whole = self.sha256 in (None, _hashed(path, self.bytes).hexdigest())
        return "" if whole else f"{path} is damaged, or was edited, before byte {self.bytes}"


NOTHING = Extent()
"""The part of ``metrics.jsonl`` that belongs to a state before the first record."""


def _hashed(path: Path, count: int) -> hashlib._Hash:
    """Return the SHA-256 of the first `count` bytes of a file, to which more can be added; the file may be missing."""
    result = hashlib.sha256()
    if count:
        with open_regular(path) as file:
            while count and (block := file.read(min(count, 1 << 22))):
                result.update(block)
                count -= len(block)
    return result


class MetricsLog:
    """The open file ``metrics.jsonl``, to append records to, one JSON object per line; locked until it is closed.

    Args:
        path: path of the file, which is created if it does not exist.
        keep: what is kept of the file: the part that belongs to the checkpoint that the run is resumed from.

    Attributes:
        kept: the records that are left after the cut, as dicts.

    Raises:
        ValueError: the file does not begin with `keep`, does not hold records, or is locked by another process.
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path, keep: Extent = NOTHING):
        if path.exists():
            open_regular(path).close()
        self._path, self._file = path, path.open("ab", buffering=0)
        try:
            if not _lock(self._file):
                raise _taken(path)
            if problem := keep.problem(path):
                raise ValueError(f"resume: {problem}")
            with naming(path):
                self._file.truncate(keep.bytes)
            self.kept = [record for record, _ in read_records(path)]
            self._hash, self._bytes = _hashed(path, keep.bytes), keep.bytes
        except BaseException:
            self._file.close()
            raise

    def write(self, record: Record) -> None:
        """Append a record, and give it to the operating system."""
        line = json.dumps(to_dict(record)).encode() + b"\n"
        with naming(self._path):
            rest = memoryview(line)
            while rest:  # a disk that gets full takes a part first
                rest = rest[self._file.write(rest) :]
        self._hash.update(line)
        self._bytes += len(line)

    def sync(self) -> Extent:
        """Force everything written onto the disk (fsync); return how much it is."""
        with naming(self._path):
            os.fsync(self._file.fileno())
        return Extent(self._bytes, self._hash.hexdigest())

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.sync()
        self._file.close()


def _lock(file: IO[bytes], kind: int = fcntl.LOCK_EX) -> bool:
    """Lock an open file for this process until it is closed; return False if another process has locked it."""
    try:
        lock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_written(path: Path) -> bool:
    """Return whether a process has a `MetricsLog` open on this file."""
    with open_regular(path) as file:
        return not _lock(file, fcntl.LOCK_SH)  # shared with others that ask at this moment, such as other ranks


def check_goes_on(path: Path) -> None:
    """Raise a ValueError if a process has a `MetricsLog` open on this file, so that no other can go on with the run."""
    if path.exists() and is_written(path):
        raise _taken(path)


def _taken(path: Path) -> ValueError:
    """Return the error that a process goes on with the run whose ``metrics.jsonl`` this is."""
    return ValueError(
        f"resume: another process trains the run in {path.parent} at present; allowed: once that has ended, or "
        f"{pasted([*command('watch'), str(path.parent)])} to see it"
    )


def read_records(path: Path, offset: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield the records of a metrics file from byte `offset` on, as dicts, each with the offset of the next one.

    A last line without its end, which another process may still be writing, is left out.

    Raises:
        ValueError: a line is not a record.
    """
    with open_regular(path) as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            try:
                yield to_dict(from_dict(parse_json(line))), offset
            except ValueError as error:
                raise ValueError(f"metrics: {path} holds no record before byte {offset} ({error})") from error
