"""Memory: what is free, what the C library does with what tensors give back, and how much it has been."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
LARGEST = 2**31 - 1


def keep_memory() -> None:
    """Have memory freed from now on kept for the next tensor, not given back to the system (glibc; elsewhere nothing).

    A training step frees and allocates the same large temporaries over and over. By default glibc maps each anew, and
    the kernel zeroes it page by page: 40 % of a ResNet-18 step on two cores. What was freed before goes back.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim"):
            libc.malloc_trim(0)
            if not libc.mallopt(M_MMAP_THRESHOLD, LARGEST // 2):  # old versions take 32 MB at most
                libc.mallopt(M_MMAP_MAX, 0)
            libc.mallopt(M_TRIM_THRESHOLD, LARGEST)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of NumPy's or torch's says that memory could not be had."""
    return isinstance(error, MemoryError) or "allocate" in str(error)


def free_memory() -> int:
    """Bytes of memory that a program can have without others being swapped out."""
    with suppress(OSError, StopIteration):  # Linux; what is free there leaves out what files may give back
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4 << 30


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory held so far: of a GPU's allocator, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
