"""Writing files so that a reader finds the old content or the new, never a part."""

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


def cache_directory() -> Path:
    """``$SIMSFL_CACHE``, else ``simsfl`` in the user's cache directory."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("SIMSFL_CACHE") or Path(base) / "simsfl")


@contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """A temporary path of the same name that takes the place of `path` when the block ends without an error.

    Where `durable`, the content is on disk (fsync) before the rename, and the rename before the block
    returns, so that even a power cut at any moment leaves a whole file. What a killed process left behind is
    removed by the next.
    """
    sweep(path.parent)
    directory = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    directory.mkdir(exist_ok=True)
    try:
        yield directory / path.name
        if durable:
            flush(directory / path.name)
        (directory / path.name).replace(path)
        if durable:
            flush(path.parent)
    finally:
        shutil.rmtree(directory)


def sweep(directory: Path) -> None:
    """Remove temporary directories of `replacing` whose process is no more."""
    for leftover in directory.glob(".*.tmp"):
        process = leftover.name.split(".")[-2]
        if process.isdigit() and not alive(int(process)):
            shutil.rmtree(leftover, ignore_errors=True)


def alive(process: int) -> bool:
    """Whether a process with this number runs on this machine."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def flush(path: Path) -> None:
    """Put a file's content, or a directory's entries, on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, value: Any, *, durable: bool = True) -> None:
    """Write `value` as indented JSON, atomically; without `durable` a power cut may lose it."""
    with replacing(path, durable=durable) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def digest(path: Path, algorithm: str = "sha256") -> str:
    """Checksum of a file's content."""
    state = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            state.update(block)
    return state.hexdigest()


@contextmanager
def claimed(out: Path, result: str) -> Iterator[None]:
    """Make a directory while something is found out that is to be written there; remove it again after an error.

    Args:
        result: the name of what is to be written.

    Raises:
        ValueError: ``--out`` holds it already, or cannot be written to.
    """
    if (out / result).exists():
        raise ValueError(f"out: {out} holds a result already; allowed: a new directory")
    new = not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):  # it may be written to
            pass
    except OSError as error:
        raise ValueError(f"out: {out} cannot be written to ({error.strerror}); allowed: a new directory") from error
    try:
        yield
    except BaseException:
        if new:
            with suppress(OSError):  # it holds something by now
                out.rmdir()
        raise
