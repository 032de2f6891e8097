"""Writing files so that a reader finds the old content or the new, never a part."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

BLOCK_BYTES = 1 << 26
"""Of rows that are written at a time."""
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.uint8: "U8",
}
"""As safetensors names them."""


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


@dataclass(frozen=True)
class Rows:
    """Some rows of a tensor, to be written without having them all in memory."""

    tensor: Tensor
    rows: Tensor
    """``[n]`` of its first dimension."""
    done: Callable[[], None]
    """Called after each block."""

    @property
    def shape(self) -> torch.Size:
        """Of all the rows together."""
        return torch.Size((len(self.rows), *self.tensor.shape[1:]))

    @property
    def dtype(self) -> torch.dtype:
        """Of each."""
        return self.tensor.dtype

    def blocks(self) -> Iterator[Tensor]:
        """The rows, some at a time."""
        for rows in self.rows.split(rows_in_block(self.tensor)):
            yield self.tensor[rows]
            self.done()


def rows_in_block(tensor: Tensor) -> int:
    """How many rows of a tensor make a block."""
    return max(1, BLOCK_BYTES // max(1, tensor[:1].nbytes))


def blocks_of(tensor: Tensor | Rows) -> Iterator[Tensor]:
    """A tensor whole, or rows some at a time."""
    return tensor.blocks() if isinstance(tensor, Rows) else iter([tensor])


def write_tensors(path: Path, tensors: Mapping[str, Tensor | Rows], metadata: dict[str, str] | None = None) -> str:
    """Write tensors as safetensors, atomically; the file's SHA-256.

    By our own hand, for the library wants everything in memory, twice; it is what reads the file.

    Raises:
        OSError: the file cannot be written.
    """
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    offset = 0
    for name, tensor in tensors.items():
        end = offset + prod(tensor.shape) * tensor.dtype.itemsize
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    start = json.dumps(header).encode()
    start += b" " * (-len(start) % 8)
    sha256 = hashlib.sha256()
    with replacing(path) as temporary:
        with temporary.open("wb") as file:

            def put(content: bytes | memoryview) -> None:
                sha256.update(content)
                file.write(content)

            put(len(start).to_bytes(8, "little"))
            put(start)
            for tensor in tensors.values():
                for block in blocks_of(tensor):
                    put(memoryview(block.detach().contiguous().cpu().view(-1).view(torch.uint8).numpy()))
        return sha256.hexdigest()


def digest(path: Path, algorithm: str = "sha256") -> str:
    """Checksum of a file's content."""
    state = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            state.update(block)
    return state.hexdigest()
