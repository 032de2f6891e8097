"""Every Triton kernel compiles for the GPUs it is meant for, and fits into their registers; no GPU is needed."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def kernels_in_the_source():
    """Return the full names of all functions of `simsfl.kernels` that are decorated with `jit`."""
    return [
        f"simsfl.kernels.{file.stem}.{node.name}"
        for file in sorted((ROOT / "kernels").glob("*.py"))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and any("jit" in ast.unparse(name) for name in node.decorator_list)
    ]


@pytest.fixture(scope="module")
def compiled():
    """Return what `compile_ahead.py` prints: one dictionary for each compiled kernel."""
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.kernels.compile_ahead"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def of(kernel, compiled):
    """Return the cases of a kernel; those of a function that kernels call are theirs, which it is compiled into."""
    return [case for case in compiled if kernel in (case["kernel"], *case["called"])]


def lines(cases):
    """Return a line of text about each of these cases, which should not be there."""
    return "".join(f"\n{case}" for case in cases)


@pytest.mark.parametrize("kernel", kernels_in_the_source())
def test_compiles_without_spills(compiled, kernel):
    types = {(case["architecture"], kind) for case in of(kernel, compiled) for kind in case["types"].values()}
    missing = {(architecture, kind) for architecture in (80, 90, 100) for kind in ("*fp32", "*bf16")} - types
    assert not missing, f"tests/kernels/launches.py does not launch {kernel} with {sorted(missing)}"
    failed = lines(case for case in of(kernel, compiled) if "error" in case)
    assert not failed
    spilling = lines(case for case in of(kernel, compiled) if case["stack"] or case["spill_stores"])
    assert not spilling


@pytest.mark.parametrize("kernel", kernels_in_the_source())
def test_bfloat16_is_computed_in_float32(compiled, kernel):
    """So that what the interpreter does in float32 stands for it, but for the rounding of what is loaded and stored."""
    cases = [case for case in of(kernel, compiled) if "*bf16" in case["types"].values()]
    computes = "transpose" not in kernel  # which moves values, whatever they are
    assert {kind for case in cases for kind in case["computed"]} == ({"f32"} if computes else set())
