"""Memory: how much is free, how much was used at most, and what the C library does with memory that tensors free."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
"""Parameters of mallopt, as glibc numbers them."""
_LARGEST = 2**31 - 1
"""Largest value of a C int, which is what mallopt takes."""


def keep_memory() -> None:
    """Keep memory that is freed from now on for the next tensor, instead of giving it back to the system.

    A training step frees and allocates the same large temporaries over and over. By default glibc maps each anew, and
    the kernel zeroes it page by page: 40 % of a ResNet-18 step on two cores. Memory that was freed before this call is
    given back. With a C library other than glibc, this does nothing.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim"):
            libc.malloc_trim(0)
            if not libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST // 2):  # old versions of glibc accept 32 MB at most
                libc.mallopt(_M_MMAP_MAX, 0)
            libc.mallopt(_M_TRIM_THRESHOLD, _LARGEST)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error of NumPy or torch says that memory could not be allocated."""
    return isinstance(error, MemoryError) or "allocate" in str(error)


def free_memory() -> int:
    """Return the bytes of memory that a program can take without others being swapped out; 4 GiB if unknown."""
    with suppress(OSError, StopIteration):  # Linux; SC_AVPHYS_PAGES leaves out what the file cache can give back
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4 << 30


def peak_memory_bytes(device: torch.device) -> int:
    """Return the most bytes held so far, by PyTorch's allocator on a GPU or by this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
