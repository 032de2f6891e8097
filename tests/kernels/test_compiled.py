"""Every Triton kernel compiles for the GPUs that it is for, and fits into their registers; no GPU is needed."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock  # which torch needs

pytest.importorskip("triton")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("compiled")]  # one process runs them all, and compiles once

ROOT = Path(__file__).parents[2]


def kernels_in_the_source():
    """Return the full names of all functions of `simsfl.kernels` that are decorated with `jit`."""
    return [
        f"simsfl.kernels.{file.stem}.{node.name}"
        for file in sorted((ROOT / "kernels").glob("*.py"))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and any("jit" in ast.unparse(name) for name in node.decorator_list)
    ]


@pytest.fixture
def compiled(architectures, tmp_path_factory):
    """Return what `compile_ahead.py` prints for GPUs of these kinds: one dictionary for each compiled kernel.

    The first process of a parallel run that asks for it compiles; the others wait for its file.
    """
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared
    file = shared / f"compiled-{'-'.join(map(str, architectures))}.json"
    with FileLock(f"{file}.lock"):
        if not file.exists():
            environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
            command = [sys.executable, "-m", "tests.kernels.compile_ahead", *map(str, architectures)]
            done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            file.write_text(done.stdout)
    return json.loads(file.read_text())


HOPPER, OTHERS = (90,), (80, 100)
"""Compute capabilities times ten: those of H100 and H200, and those of A100 and B200."""
GPUS = pytest.mark.parametrize("architectures", [HOPPER, OTHERS], ids=["90", "80, 100"])


def of(kernel, compiled):
    """Return the cases of a kernel; those of a function that kernels call are the cases of these kernels."""
    return [case for case in compiled if kernel in (case["kernel"], *case["called"])]


def lines(cases):
    """Return a text with a line about each of these cases, for the message of a failed assertion."""
    return "".join(f"\n{case}" for case in cases)


@GPUS
@pytest.mark.parametrize("kernel", kernels_in_the_source())
def test_compiles_without_spills(compiled, architectures, kernel):
    cases = of(kernel, compiled)
    types = {(case["architecture"], kind) for case in cases for kind in case["types"].values()}
    missing = {(architecture, kind) for architecture in architectures for kind in ("*fp32", "*bf16")} - types
    assert not missing, f"tests/kernels/launches.py does not launch {kernel} with {sorted(missing)}"
    failed = lines(case for case in cases if "error" in case)
    assert not failed
    spilling = lines(case for case in cases if case["stack"] or case["spill_stores"])
    assert not spilling


@GPUS
@pytest.mark.parametrize("kernel", kernels_in_the_source())
def test_bfloat16_is_computed_in_float32(compiled, architectures, kernel):
    """Tests with the interpreter in float32 therefore hold for bfloat16, except for rounding in loads and stores."""
    cases = [case for case in of(kernel, compiled) if "*bf16" in case["types"].values()]
    computes = "transpose" not in kernel  # which only moves values
    assert {kind for case in cases for kind in case["computed"]} == ({"f32"} if computes else set())
