"""Tensors in safetensors files: written without having them all in memory, and read whatever a file is called."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from simsfl.system.files import replacing
from simsfl.system.reading import open_regular
from simsfl.system.world import ALONE, World

if TYPE_CHECKING:
    from safetensors import safe_open

_BLOCK_BYTES = 1 << 26
"""Bytes of rows that are written at a time, at most, unless a single row has more."""
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Name of each dtype in safetensors files."""
_SEAL_BYTES = 32
"""Length of a SHA-256."""


@dataclass(frozen=True)
class Rows:
    """Selected rows of a tensor, to be written block by block instead of being gathered in memory."""

    tensor: Tensor
    """The tensor ``[M, ...]`` that the rows are taken from, or this rank's part of it."""
    rows: Tensor
    """``[n]`` indices of rows among all M."""
    done: Callable[[], None]
    """Function that is called after each block is written."""
    world: World = ALONE
    """The ranks, among whom the rows of the tensor may be divided."""
    count: int = 0
    """M, the number of rows of all ranks; not used by a single one."""

    @property
    def shape(self) -> torch.Size:
        """Shape ``[n, ...]`` of all the selected rows together."""
        return torch.Size((len(self.rows), *self.tensor.shape[1:]))

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the rows."""
        return self.tensor.dtype

    def blocks(self) -> Iterator[Tensor]:
        """Yield the selected rows in blocks ``[b, ...]``, and call `done` after each."""
        for rows in self.rows.split(rows_in_block(self.tensor)):
            yield self.world.rows(self.tensor, rows, self.count)
            self.done()


class Once:
    """Rows that are read once: whoever asks for their blocks gets those that are left.

    Args:
        rows: the rows.
    """

    def __init__(self, rows: Rows):
        self.shape, self.dtype, self._left = rows.shape, rows.dtype, rows.blocks()

    def blocks(self) -> Iterator[Tensor]:
        """Return the blocks that nobody has read yet."""
        return self._left


def rows_in_block(tensor: Tensor) -> int:
    """Return how many rows of a tensor make a block, at least 1."""
    return max(1, _BLOCK_BYTES // max(1, tensor[:1].nbytes))


def blocks_of(tensor: Tensor | Rows | Once) -> Iterator[Tensor]:
    """Return the blocks of rows, or a tensor as a single block."""
    return iter([tensor]) if isinstance(tensor, Tensor) else tensor.blocks()


def write_tensors(
    path: Path,
    tensors: Mapping[str, Tensor | Rows | Once],
    metadata: dict[str, str] | None = None,
    seal: str | None = None,
) -> str:
    """Write tensors into a safetensors file, atomically, and return the file's SHA-256 in hexadecimal.

    The format is written here because the safetensors library needs all tensors in memory, twice. The library reads
    the file.

    Args:
        path: the file, which is replaced if it exists.
        tensors: tensors or rows by name, in the order of the file.
        metadata: strings for the header of the file.
        seal: name of a last tensor to add, ``[32]`` uint8: the SHA-256 of all that comes before it in the file, header
            included, which `is_sealed` checks; None to add none.

    Raises:
        OSError: the file cannot be written.
    """
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    offset = 0
    for name, tensor in tensors.items():
        end = offset + prod(tensor.shape) * tensor.dtype.itemsize
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    if seal:
        header[seal] = {"dtype": "U8", "shape": [_SEAL_BYTES], "data_offsets": [offset, offset + _SEAL_BYTES]}
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
            if seal:
                put(sha256.digest())
        return sha256.hexdigest()


def is_sealed(path: Path) -> bool:
    """Return whether the last bytes of a file are the checksum of all others, as `write_tensors` writes it."""
    sha256, rest = hashlib.sha256(), path.stat().st_size - _SEAL_BYTES
    with path.open("rb") as file:
        while rest > 0 and (block := file.read(min(rest, 1 << 22))):
            sha256.update(block)
            rest -= len(block)
        return file.read() == sha256.digest()


@contextmanager
def open_tensors(path: Path, framework: str = "pt") -> Iterator[safe_open]:
    """Open a safetensors file, also one whose path is not UTF-8, which the library itself does not open.

    Args:
        path: the file.
        framework: "pt" for tensors on the CPU, "np" for NumPy's arrays.

    Raises:
        ValueError: there is no such file, it is damaged, or it lacks a tensor that is asked for inside.
    """
    from safetensors import SafetensorError, safe_open  # noqa: PLC0415  (small boards lack it, and read no such file)

    if not path.is_file():
        raise ValueError(f"{path} is missing")
    try:
        with open_regular(path) as stream:
            is_text = os.fsencode(path).decode(errors="ignore") == str(path)
            file = safe_open(path if is_text else f"/dev/fd/{stream.fileno()}", framework=framework)
        with file:
            yield file
    except (SafetensorError, RuntimeError) as error:  # of the file, or of mapping it into memory
        raise ValueError(f"{path} is damaged ({error})") from error
