"""Writing files so that a reader finds either the old content or the new, never a part of it."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

_PREFIX, _SUFFIX = ".simsfl-", ".tmp"
"""How the names of temporary directories begin and end; random letters are between."""
_LOCK = "lock"
"""Name of the file in a temporary directory that its process keeps locked."""
SEAL = "sha256"
"""Key under which a JSON object may have the checksum of all its other entries, which says that it was not edited."""
_UNSUPPORTED = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES)
"""Errors with which file systems refuse to open a directory, or to force its entries onto the disk."""


@contextmanager
def replacing(path: Path, *, durable: bool = True, new: bool = False) -> Iterator[Path]:
    """Yield a temporary path with the same file name; it replaces `path` when the block ends without an error.

    If `durable`, the content is on disk (fsync) before the rename, and the rename before this returns, so that even a
    power cut at any moment leaves a whole file. Temporary files of a killed process are removed by the next call.

    Args:
        path: the file or directory to write.
        durable: whether it has to outlive a power cut.
        new: whether `path` must still not exist when the block ends.

    Raises:
        OSError: the file cannot be written, or exists although it is to be new; the message names `path`.
    """
    sweep(path.parent)
    with naming(path), _scratch(path.parent) as directory:
        temporary = directory / path.name
        yield temporary
        if durable:
            _flush(temporary)
        if new and os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        temporary.replace(path)
        if durable:
            _flush(path.parent)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an OSError that is raised inside name `path`, unless it names a file that is not a temporary one."""
    try:
        yield
    except OSError as error:
        parts = Path(os.fsdecode(error.filename)).parts if isinstance(error.filename, str | bytes) else ()
        temporary = any(part.startswith(_PREFIX) and part.endswith(_SUFFIX) for part in parts)
        if error.errno is not None and (error.filename is None or temporary):
            error.filename = str(path)
            del error.filename2
        raise


@contextmanager
def _scratch(parent: Path) -> Iterator[Path]:
    """Yield a temporary directory in `parent`, which is removed at the end.

    A file in it is locked until then, and says where the lock holds, so that `sweep` recognises what a killed process
    left. Where there are no locks it stays empty.
    """
    directory = Path(tempfile.mkdtemp(prefix=_PREFIX, suffix=_SUFFIX, dir=parent))
    try:
        with (directory / _LOCK).open("wb", buffering=0) as file:
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                file.write(_here(file.fileno()))
            yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _here(handle: int) -> bytes:
    """Return a text that names the running system, and the mounted file system that an open file is on.

    Locks are certain only within these two: another machine, or another mount of the same storage, may not see them.

    Raises:
        OSError: the system does not say which it is.
    """
    system = Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()
    return b"temporary directory of simsfl, on system %s, device %d\n" % (system, os.fstat(handle).st_dev)


def sweep(parent: Path) -> None:
    """Remove the temporary directories in `parent` that are certainly ours, and whose process has certainly ended."""
    for directory in parent.glob(f"{_PREFIX}*{_SUFFIX}"):
        if _is_abandoned(directory):
            shutil.rmtree(directory, ignore_errors=True)


def _is_abandoned(directory: Path) -> bool:
    """Return whether a directory is a temporary one of ours whose process has ended; False where that is not certain.

    It is ours if its lock file says so, and it holds at most one thing besides. The process has ended if the lock is
    free, on the system and the mount on which it was taken.
    """
    try:
        handle = os.open(directory / _LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(handle, "rb", buffering=0) as file:
            here = _here(handle)
            if directory.is_symlink() or file.read(len(here) + 1) != here:
                return False
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return len(list(directory.iterdir())) <= 2
    except OSError:
        return False


def _flush(path: Path) -> None:
    """Force a file's content, or a directory's entries, onto the disk; for directories, where that is supported."""
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if not (error.errno in _UNSUPPORTED and path.is_dir()):
            raise


def write_json(path: Path, value: Any, *, durable: bool = True) -> None:
    """Write `value` into `path` as indented JSON, atomically; unless `durable`, a power cut may lose it."""
    with replacing(path, durable=durable) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def checksum(content: Any) -> str:
    """Return the SHA-256 of a JSON value, which does not depend on how it is laid out."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def seal_of(content: Mapping[str, Any]) -> str:
    """Return the checksum of a JSON object without its entry `SEAL`."""
    return checksum({name: value for name, value in content.items() if name != SEAL})


def digest(path: Path, algorithm: str = "sha256") -> str:
    """Return the checksum of a file's content in hexadecimal, by one of the algorithms of hashlib."""
    state = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            state.update(block)
    return state.hexdigest()


def check_writable(path: Path, flag: str) -> None:
    """Raise a ValueError that names `flag` unless a file can be made at `path`, or the one there be replaced."""
    try:
        if path.is_dir() or not path.parent.is_dir():
            reason = "it is a directory" if path.is_dir() else f"there is no directory {path.parent}"
            raise ValueError(f"{flag}: {path} cannot be written: {reason}; allowed: a file in a directory")
        with tempfile.TemporaryFile(dir=path.parent):  # raises if it cannot be written to
            pass
    except OSError as error:
        raise ValueError(f"{flag}: {path} cannot be written ({error.strerror}); allowed: another file") from error


@contextmanager
def claimed(out: Path, *results: str) -> Iterator[None]:
    """Make the directory `out` before results for it are computed; remove what was made after an error, if it is empty.

    Args:
        out: the directory that was given as ``--out``.
        results: names of the files that the block will write into it.

    Raises:
        ValueError: `out` holds such a file already, or cannot be written to.
    """
    held = [name for name in results if os.path.lexists(out / name)]
    if held:
        raise ValueError(f"out: {out} holds a result already, {held[0]}; allowed: a new directory")
    new = [path for path in (out, *out.parents) if not path.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):  # raises if it cannot be written to
            pass
    except OSError as error:
        raise ValueError(f"out: {out} cannot be written to ({error.strerror}); allowed: a new directory") from error
    try:
        yield
    except BaseException:
        with suppress(OSError):  # a directory is no longer empty
            for path in new:
                path.rmdir()
        raise


def lock(file: IO[bytes] | int, how: int) -> None:
    """Lock an open file or directory until it is closed; where the file system has no locks, go on without.

    Args:
        file: the file, or its handle.
        how: flags of `fcntl.flock`.

    Raises:
        BlockingIOError: a process has locked it, and the flags say not to wait.
    """
    try:
        fcntl.flock(file, how)
    except BlockingIOError:
        raise
    except OSError:
        return


@contextmanager
def alone_in(directory: Path, *, wait: bool) -> Iterator[None]:
    """Lock a directory inside against all other processes that ask for it in this way.

    Where there are no locks, it goes on without. The directory is created if need be, and then removed at the end if
    it is empty.

    Args:
        directory: the directory.
        wait: whether to wait for a process that has locked it.

    Raises:
        BlockingIOError: a process has locked it, and is not to be waited for.
        OSError: the directory cannot be created.
    """
    new = [path for path in (directory, *directory.parents) if not path.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    handle = os.open(directory, os.O_RDONLY)
    try:
        lock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(handle)
        with suppress(OSError):  # one of them holds something
            for path in new:
                path.rmdir()
