"""What every operator's test shares: how near to float64 is near enough, and which versions run here."""

import os
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
from packaging.version import Version

from simsfl.kernels import gpu

TOLERANCES = {
    torch.float64: {"rtol": 1e-10, "atol": 1e-10},
    torch.float32: {"rtol": 2e-4, "atol": 2e-5},
    torch.bfloat16: {"rtol": 5e-2, "atol": 8e-2},
}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TRITON = pytest.param(
    "triton",
    marks=[
        pytest.mark.skipif(not gpu.runs_on(DEVICE), reason="Triton needs CUDA, or its interpreter"),
        pytest.mark.cuda,
    ],
)


def normal(seed, *shape, dtype=torch.float64, strided=False):
    """Standard normal numbers; `strided`: not contiguous."""
    generator = torch.Generator().manual_seed(seed)
    if strided:
        return torch.randn(*shape[:-1], 2 * shape[-1], generator=generator).to(DEVICE, dtype)[..., ::2]
    return torch.randn(shape, generator=generator).to(DEVICE, dtype)


def assert_agree(function, reference, inputs, *, dtype):
    """Outputs and gradients of `function` in `dtype` against those of `reference` in float64."""
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


def run_interpreted(file):
    """The Triton tests of a file, in a process where Triton is interpreted."""
    triton = pytest.importorskip("triton")
    if Version(triton.__version__) < Version("3.7") and Version(numpy.__version__) >= Version("2.4"):
        pytest.skip("the interpreter of Triton before 3.7 does not work with NumPy 2.4 (triton-lang/triton#9171)")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-k",
        "triton and not interpreter",
        "-p",
        "no:cacheprovider",
        "-W",
        "ignore:Conversion of an array:DeprecationWarning",  # of NumPy, by Triton 3.2
        file,
    ]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    root = Path(__file__).parents[2]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "skipped" not in done.stdout.splitlines()[-1]
    assert "passed" in done.stdout.splitlines()[-1]
