"""Storage for the state of clients outside the cohort: on the device, in host memory, or in a file."""

from __future__ import annotations

import mmap
import shutil
import tempfile

import torch
from torch import Tensor

from simsfl.system.paths import cache_directory


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
        self._promised = 0  # bytes of all files: they take room on the disk only as they are written

    def zeros(self, rows: int, columns: int, dtype: torch.dtype | None = None) -> Tensor:
        """Return a stack ``[rows, columns]`` of zeros; on a CPU it takes memory only as it is written.

        Args:
            dtype: the dtype of this stack, the storage's own if None.

        Raises:
            OSError: the file cannot be made, or might not fit on the disk. This is checked here because writing to a
                mapped file without room kills the process.
        """
        dtype = dtype or self.dtype
        size = rows * columns * dtype.itemsize
        if self.kind != "mmap" or size == 0:
            return torch.zeros(rows, columns, device=self.device, dtype=dtype)
        cache_directory().mkdir(parents=True, exist_ok=True)
        self._promised += size
        if (free := shutil.disk_usage(cache_directory()).free) < self._promised:
            raise OSError(
                f"client_state: mmap needs {self._promised / 1e9:,.1f} GB in {cache_directory()}, where "
                f"{free / 1e9:,.1f} GB are free; allowed: --client-state host, or SIMSFL_CACHE elsewhere"
            )
        with tempfile.TemporaryFile(dir=cache_directory()) as file:
            file.truncate(size)
            mapping = mmap.mmap(file.fileno(), size)
        self._mappings.append(mapping)
        return torch.frombuffer(mapping, dtype=dtype).view(rows, columns)

    def release(self) -> None:
        """Give the memory of "mmap" stacks back to the system; their content stays in the files."""
        for mapping in self._mappings:
            mapping.madvise(mmap.MADV_DONTNEED)
