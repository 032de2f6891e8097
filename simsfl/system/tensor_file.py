"""Tensors written as safetensors without having them all in memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simsfl.system.files import replacing

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
