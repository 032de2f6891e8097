"""Writing files so that a reader finds either the old content or the new, never a part of it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path with the same file name; it replaces `path` when the block ends without an error.

    If `durable`, the content is on disk (fsync) before the rename, and the rename before this returns, so that even a
    power cut at any moment leaves a whole file. Temporary files of a killed process are removed by the next call.
    """
    _sweep(path.parent)
    directory = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    directory.mkdir(exist_ok=True)
    try:
        yield directory / path.name
        if durable:
            _flush(directory / path.name)
        (directory / path.name).replace(path)
        if durable:
            _flush(path.parent)
    finally:
        shutil.rmtree(directory)


def _sweep(directory: Path) -> None:
    """Remove the temporary directories of `replacing` whose process no longer runs."""
    for leftover in directory.glob(".*.tmp"):
        process = leftover.name.split(".")[-2]
        if process.isdigit() and not _alive(int(process)):
            shutil.rmtree(leftover, ignore_errors=True)


def _alive(process: int) -> bool:
    """Return whether a process with this number runs on this machine."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _flush(path: Path) -> None:
    """Force a file's content, or a directory's entries, onto the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, value: Any, *, durable: bool = True) -> None:
    """Write `value` into `path` as indented JSON, atomically; unless `durable`, a power cut may lose it."""
    with replacing(path, durable=durable) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def digest(path: Path, algorithm: str = "sha256") -> str:
    """Return the checksum of a file's content in hexadecimal, by one of the algorithms of hashlib."""
    state = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            state.update(block)
    return state.hexdigest()


@contextmanager
def claimed(out: Path, result: str) -> Iterator[None]:
    """Make the directory `out` before a result for it is computed; remove it after an error if it was new and is empty.

    Args:
        out: the directory that was given as ``--out``.
        result: name of the file that the block will write into it.

    Raises:
        ValueError: `out` holds such a file already, or cannot be written to.
    """
    if (out / result).exists():
        raise ValueError(f"out: {out} holds a result already; allowed: a new directory")
    new = not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):  # raises if it cannot be written to
            pass
    except OSError as error:
        raise ValueError(f"out: {out} cannot be written to ({error.strerror}); allowed: a new directory") from error
    try:
        yield
    except BaseException:
        if new:
            with suppress(OSError):  # the directory is no longer empty
                out.rmdir()
        raise
