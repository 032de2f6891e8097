"""Where the state of clients lies that do not take part: on the device, in host memory, or in a file."""

from __future__ import annotations

import mmap
import shutil
import tempfile

import torch
from torch import Tensor

from simsfl.system.files import cache_directory


class Storage:
    """Makes the stacks with a row per client.

    Args:
        kind: "device"; "host"; or "mmap": a file without a name in the cache directory, so that what is not in use is
            no part of the process's memory.
        device: of the computation.
        dtype: of the stacks; what is gathered from bfloat16 has been rounded to it.

    Attributes:
        device: the stacks are on.
    """

    def __init__(self, kind: str, device: torch.device, dtype: torch.dtype):
        self.kind, self.dtype = kind, dtype
        self.device = device if kind == "device" else torch.device("cpu")
        self._mappings: list[mmap.mmap] = []
        self._promised = 0  # bytes: files take room as they are written

    def zeros(self, rows: int, columns: int, dtype: torch.dtype | None = None) -> Tensor:
        """A stack ``[rows, columns]``, of `dtype` instead of its own; on a CPU its memory is taken as it is written.

        Raises:
            OSError: the file cannot be made, or might not fit: a file without room ends the process when it is written.
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
        """Leave what was read and written to the system, which has the file."""
        for mapping in self._mappings:
            mapping.madvise(mmap.MADV_DONTNEED)
