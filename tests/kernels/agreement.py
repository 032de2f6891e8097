"""Helpers that the tests of all operators share: tolerances, random inputs, and which versions run here."""

import pytest
import torch

from simsfl.kernels import gpu

TOLERANCES = {
    torch.float64: {"rtol": 1e-10, "atol": 1e-10},
    torch.float32: {"rtol": 2e-4, "atol": 2e-5},
    torch.bfloat16: {"rtol": 5e-2, "atol": 8e-2},
}
"""How far a result in each dtype may be from one in float64."""
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
"""Device that operators are tested on."""
TRITON = pytest.param(
    "triton",
    marks=[
        pytest.mark.skipif(not gpu.runs_on(DEVICE), reason="Triton needs CUDA, or its interpreter"),
        pytest.mark.cuda,
    ],
)
"""Version "triton" of an operator as a parameter of tests, which are skipped where it does not run."""


def normal(seed, *shape, dtype=torch.float64, strided=False):
    """Return a tensor of standard normal numbers, which is not contiguous if `strided`."""
    generator = torch.Generator().manual_seed(seed)
    if strided:
        return torch.randn(*shape[:-1], 2 * shape[-1], generator=generator).to(DEVICE, dtype)[..., ::2]
    return torch.randn(shape, generator=generator).to(DEVICE, dtype)


def assert_agree(function, reference, inputs, *, dtype):
    """Compare the output and gradients of `function` in `dtype` with those of `reference` in float64.

    Both are divided by the largest number in what `reference` returns, if it is more than 1, and have to agree up to
    `TOLERANCES`.
    """
    mine = [tensor.detach().to(dtype).requires_grad_() for tensor in inputs]
    exact = [tensor.detach().double().requires_grad_() for tensor in mine]
    output, expected = function(*mine), reference(*exact)
    assert output.dtype == dtype
    weight = normal(99, *expected.shape)
    gradients = torch.autograd.grad(output, mine, weight.to(dtype))
    wanted = torch.autograd.grad(expected, exact, weight.to(dtype).double())
    for ours, theirs in zip((output, *gradients), (expected, *wanted), strict=True):
        scale = theirs.abs().max().clamp(min=1.0)
        torch.testing.assert_close(ours.double() / scale, theirs / scale, **TOLERANCES[dtype])
