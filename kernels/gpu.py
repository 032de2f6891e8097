"""Triton where it can be used: on a CUDA device, or interpreted (``TRITON_INTERPRET=1``, for tests).

Elsewhere `jit` leaves a function as it is, never to be called, and operators do without.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

try:
    if not (torch.cuda.is_available() or INTERPRETED):
        raise ImportError("no CUDA device")
    import triton
    import triton.language as tl
    from triton import cdiv, jit, next_power_of_2
except ImportError as error:
    logging.getLogger(__name__).debug("Triton is not used: %s", error)
    triton = cdiv = next_power_of_2 = None

    class tl:
        """Stands for ``triton.language``, which annotations and constants name."""

        @staticmethod
        def constexpr(value):
            """Leave a constant as it is."""
            return value

    def jit(function):
        """Leave a kernel that nobody will call as it is."""
        return function


@jit
def add_both(a, b, c, d):
    """Add two pairs of numbers."""
    return a + c, b + d


_broken = False


def give_up(reason: str) -> None:
    """Use no Triton kernels from now on in this process, and warn of the reason."""
    global _broken  # noqa: PLW0603  (whether it works is a fact of the process)
    if not _broken:
        logging.getLogger(__name__).warning("Triton cannot run, and PyTorch's operators are used: %s", reason)
    _broken = True


def runs_on(device: torch.device) -> bool:
    """Return whether Triton kernels run on this device."""
    return triton is not None and not _broken and (device.type == "cuda" or INTERPRETED)


def usable(tensor: Tensor) -> bool:
    """Whether Triton kernels take this tensor: they compute in float32."""
    return runs_on(tensor.device) and tensor.dtype in (torch.float32, torch.bfloat16)


@contextmanager
def fastest_convolutions() -> Iterator[None]:
    """Inside, cuDNN measures which of its algorithms is fastest when it first meets a shape, and remembers it.

    A step that is recorded and replayed has the same shapes for ever, so this is worth the time.
    """
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
