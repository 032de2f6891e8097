"""Memory: how much is free and in use, and what the C library does with memory that tensors free."""

from __future__ import annotations

import ctypes
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import torch

from simsfl.system.cgroup import free_in_groups

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


def free_memory(root: Path = Path("/")) -> int:
    """Return the bytes of memory that a program can take without others being swapped out; 4 GiB if unknown.

    In a container it is what the container's limit leaves, if that is less.

    Args:
        root: directory in which ``proc`` and ``sys`` lie.
    """
    of_machine = next((free for way in (_meminfo, _vm_stat, _sysconf) if (free := way(root)) is not None), 4 << 30)
    in_groups = free_in_groups(root)
    return of_machine if in_groups is None else min(of_machine, in_groups)


def _meminfo(root: Path) -> int | None:
    """Return the free memory of Linux, with what the file cache can give back; None on other systems."""
    try:
        lines = (root / "proc/meminfo").read_text(encoding="ascii").splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1])
    except (OSError, StopIteration):
        return None


def _vm_stat(root: Path) -> int | None:
    """Return the free memory of macOS; None on other systems."""
    try:
        said = subprocess.run(["vm_stat"], capture_output=True, text=True, check=True).stdout
        pages = dict(re.findall(r"Pages (\w+): +(\d+)", said))
        size = re.search(r"page size of (\d+) bytes", said)[1]
        return int(size) * sum(int(pages[kind]) for kind in ("free", "inactive", "speculative"))
    except (OSError, subprocess.SubprocessError, KeyError, TypeError):
        return None


def _sysconf(root: Path) -> int | None:
    """Return the free pages of other systems, in bytes; None where these names are not known, as on macOS."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def resident_bytes(root: Path = Path("/")) -> int:
    """Return the bytes of memory that this process uses now.

    Args:
        root: directory in which ``proc`` lies, if there is one.
    """
    try:
        return int((root / "proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    except OSError:  # not Linux
        command = ["ps", "-o", "rss=", "-p", str(os.getpid())]
        return 1024 * int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def peak_memory_bytes(device: torch.device) -> int:
    """Return the most bytes held so far, by PyTorch's allocator on a GPU or by this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
