"""Storage for the state of clients outside the cohort: on the device, in host memory, or in a file."""

from __future__ import annotations

import errno
import mmap
import os
import shutil
import tempfile
from typing import BinaryIO

import torch
from torch import Tensor

from simsfl.system.paths import cache_directory

_BLOCK_BYTES = 1 << 22
"""Bytes that are written at a time where room cannot be reserved otherwise."""
_UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
"""Errors of file systems that cannot reserve room."""


class Storage:
    """An allocator of stacks ``[rows, columns]``, which hold a row for each client.

    Args:
        kind: "device", "host", or "mmap". The last is a file without a name in the cache directory, so that what is
            not in use does not count as the process's memory.
        device: the device that computes.
        dtype: the dtype of the stacks; values gathered from a bfloat16 stack have been rounded to bfloat16.

    Attributes:
        device: the device that the stacks are on; the CPU unless `kind` is "device".
    """

    def __init__(self, kind: str, device: torch.device, dtype: torch.dtype):
        self.kind, self.dtype = kind, dtype
        self.device = device if kind == "device" else torch.device("cpu")
        self._mappings: list[mmap.mmap] = []

    def zeros(self, rows: int, columns: int, dtype: torch.dtype | None = None) -> Tensor:
        """Return a stack ``[rows, columns]`` of zeros; on a CPU it takes memory only as it is written.

        Args:
            dtype: the dtype of this stack, the storage's own if None.

        Raises:
            OSError: the file cannot be made, or does not fit on the disk.
        """
        dtype = dtype or self.dtype
        size = rows * columns * dtype.itemsize
        if self.kind != "mmap" or size == 0:
            return torch.zeros(rows, columns, device=self.device, dtype=dtype)
        cache = cache_directory()
        try:
            cache.mkdir(parents=True, exist_ok=True)
            if (free := shutil.disk_usage(cache).free) < size:  # rather than take it from others for a while
                raise OSError(errno.ENOSPC, f"{free / 1e9:,.1f} GB are free")
            with tempfile.TemporaryFile(dir=cache) as file:
                _reserve(file, size)
                mapping = mmap.mmap(file.fileno(), size)
        except OSError as error:
            raise OSError(
                f"client_state: mmap needs {size / 1e9:,.1f} GB in {cache} ({error.strerror}); allowed: "
                "--client-state host, or SIMSFL_CACHE elsewhere"
            ) from error
        self._mappings.append(mapping)
        return torch.frombuffer(mapping, dtype=dtype).view(rows, columns)

    def release(self) -> None:
        """Give the memory of "mmap" stacks back to the system; their content stays in the files."""
        for mapping in self._mappings:
            mapping.madvise(mmap.MADV_DONTNEED)


def _reserve(file: BinaryIO, size: int) -> None:
    """Give an empty file `size` bytes of zeros, for which the disk has room from now on.

    If the disk were full when a page of a mapped file is first written, the system would end the process (SIGBUS).

    Raises:
        OSError: there is not so much room.
    """
    try:
        os.posix_fallocate(file.fileno(), 0, size)
        return
    except AttributeError:  # macOS has no such function
        pass
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
    for start in range(0, size, _BLOCK_BYTES):
        file.write(bytes(min(_BLOCK_BYTES, size - start)))
    file.flush()
