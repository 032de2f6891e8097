"""Triton kernels agree with PyTorch under Triton's interpreter, in a process of its own; no GPU is needed."""

import os
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
from packaging.version import Version

SHORT = (
    "triton and not interpreter and (usual-False or one-client-False or gray or rate_per or shape0 or test_gradient)"
)
"""Names of tests of which each kernel has one that is short."""


@pytest.mark.parametrize("names", [SHORT, pytest.param("triton and not interpreter", marks=pytest.mark.slow)])
def test_triton_under_its_interpreter(names):
    triton = pytest.importorskip("triton")
    if Version(triton.__version__) < Version("3.7") and Version(numpy.__version__) >= Version("2.4"):
        pytest.skip("the interpreter of Triton before 3.7 does not work with NumPy 2.4 (triton-lang/triton#9171)")
    command = [
        *(sys.executable, "-m", "pytest", "-q", "-n", "0", "-k", names, "-p", "no:cacheprovider"),
        *("-W", "ignore:Conversion of an array:DeprecationWarning"),  # Triton 3.2 makes NumPy warn
        Path(__file__).parent,
    ]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    root = Path(__file__).parents[2]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "skipped" not in done.stdout.splitlines()[-1]
    assert "passed" in done.stdout.splitlines()[-1]
