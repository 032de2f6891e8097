"""The precision of a run: what a device supports, what "auto" means on it, and PyTorch's switches for TF32.

TF32 rounds the factors of float32 products to 10 bits of mantissa, for speed. By default, PyTorch lets cuDNN's
convolutions use it, but not matrix products. Its switches are global, so `arithmetic` sets them only inside a context.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

TF32_CAPABILITY = (8, 0)
"""The lowest compute capability of a CUDA device whose tensor cores have TF32."""


def name_of(device: str) -> str:
    """Return the name of a device ("cpu" or "cuda:N") for messages: "the CPU", or that of the GPU's model."""
    return "the CPU" if device == "cpu" else torch.cuda.get_device_name(device)


def has_bf16(device: str) -> bool:
    """Return whether a device computes in bfloat16 without emulating it.

    Of CPUs, those with AVX512-BF16 or AMX do; versions of PyTorch that cannot tell (before 2.10) say no.
    """
    if device == "cpu":
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    with torch.cuda.device(device):
        return torch.cuda.is_bf16_supported(including_emulation=False)


def has_tf32(device: str) -> bool:
    """Return whether a CUDA device has TF32; False for the CPU."""
    return device != "cpu" and torch.cuda.get_device_capability(device) >= TF32_CAPABILITY


def automatic(device: str, *, bf16_on_cpu: bool = False) -> tuple[str, str]:
    """Return the precision that "auto" means on a device ("cpu" or "cuda:N"), and the reason for it.

    Example: ``("bf16", "NVIDIA H200 has bf16")``.

    Args:
        device: the device.
        bf16_on_cpu: whether bf16 suits the network and its images on CPUs that have it.
    """
    if device == "cpu" and not bf16_on_cpu:
        return "fp32", "no CUDA device in use"
    if has_bf16(device):
        return "bf16", f"{name_of(device)} has bf16"
    return "fp32", f"{name_of(device)} has no bf16"


@contextmanager
def arithmetic(precision: str) -> Iterator[None]:
    """Let float32 matrix products and convolutions use TF32 in this context if `precision` is "tf32", otherwise not.

    The switches apply to the whole process; at the end they are restored. A CUDA graph keeps the arithmetic that it was
    recorded with.
    """
    switches = _switches()
    before = [switch.fp32_precision for switch in switches]
    try:
        older = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    except RuntimeError:  # only the newer switches have been set, after which the older ones cannot be read
        older = "high" if before[0] == "tf32" else "highest", before[1] == "tf32"
    _set_older("high" if precision == "tf32" else "highest", precision == "tf32")
    for switch in switches:
        switch.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    try:
        yield
    finally:
        _set_older(*older)
        for switch, value in zip(switches, before, strict=True):
            switch.fp32_precision = value


def _set_older(products: str, convolutions: bool) -> None:
    """Set the switches that all versions of PyTorch have, and that ``torch.compile`` reads.

    It refuses to compile where they contradict the newer switches, so both kinds are always set.

    Args:
        products: PyTorch's name for the precision of matrix products: "high" or "highest".
        convolutions: whether cuDNN may use TF32.
    """
    torch.set_float32_matmul_precision(products)
    torch.backends.cudnn.allow_tf32 = convolutions


def _switches() -> list[Any]:
    """Return PyTorch's switches by library and operator, which exist from version 2.9 on; an empty list before that.

    A switch that is not set follows ``torch.backends.fp32_precision``, and reads as that value. The switch for
    recurrent networks is included although simsfl has none, because the older switch of cuDNN applies to them, too.
    """
    backends = torch.backends
    if not hasattr(backends, "fp32_precision"):
        return []
    return [
        backends.cuda.matmul,
        backends.cudnn.conv,
        backends.cudnn.rnn,
        backends.mkldnn.matmul,
        backends.mkldnn.conv,
    ]
