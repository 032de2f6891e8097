"""Triton, where it can be used: on a CUDA device, or interpreted (``TRITON_INTERPRET=1``, for tests).

Elsewhere, `jit` returns a kernel unchanged, which is then never called, and operators fall back to PyTorch.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether Triton kernels run in Triton's interpreter, on any device."""

try:
    if not (torch.cuda.is_available() or _INTERPRETED):
        raise ImportError("no CUDA device")
    import triton
    import triton.language as tl
    from triton import cdiv, jit, next_power_of_2
except ImportError as error:
    logging.getLogger(__name__).debug("Triton is not used: %s", error)
    triton = cdiv = next_power_of_2 = None

    class tl:
        """Stand-in for ``triton.language``, which annotations and module constants refer to."""

        @staticmethod
        def constexpr(value):
            """Return a constant unchanged."""
            return value

    def jit(function):
        """Return a kernel unchanged; without Triton it is never called."""
        return function


@jit
def add_both(a, b, c, d):
    """Return the sum of the pairs ``(a, b)`` and ``(c, d)``, to reduce two values at once."""
    return a + c, b + d


_broken = False


def give_up(reason: str) -> None:
    """Stop using Triton kernels in this process, and log `reason` as a warning the first time."""
    global _broken  # noqa: PLW0603  (whether Triton works is a fact about the process)
    if not _broken:
        logging.getLogger(__name__).warning("Triton cannot run, and PyTorch's operators are used: %s", reason)
    _broken = True


def runs_on(device: torch.device) -> bool:
    """Return whether Triton kernels can run on this device."""
    return triton is not None and not _broken and (device.type == "cuda" or _INTERPRETED)


def usable(tensor: Tensor) -> bool:
    """Return whether Triton kernels can run on this tensor's device, and it is float32 or bfloat16.

    Triton kernels compute in float32, so tensors of other types, such as float64, are left to PyTorch.
    """
    return runs_on(tensor.device) and tensor.dtype in (torch.float32, torch.bfloat16)


@contextmanager
def fastest_convolutions() -> Iterator[None]:
    """Let cuDNN measure which of its algorithms is fastest, once per shape, inside this context.

    A step that is recorded and replayed always has the same shapes, so this is worth the time.
    """
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
