"""Compile every kernel that `launches.py` launches and print what each needs, as JSON: ``compile_ahead.py 80 90``.

The numbers are compute capabilities times ten, of the GPUs that it is compiled for.

No GPU is needed. A driver that stands in for one names its architecture, and Triton does with a launch what it would do
there, until it would compile the kernel: that is done later, in several processes. This is a program of its own, since
`simsfl.kernels` decides when it is imported whether it uses Triton.
"""

import io
import json
import multiprocessing
import os
import re
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from unittest.mock import patch

import torch

with patch("torch.cuda.is_available", return_value=True):
    from tests.kernels import launches

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

RESOURCES = re.compile(
    r"(?P<stack>\d+) bytes stack frame, (?P<spill_stores>\d+) bytes spill stores.*?Used (?P<registers>\d+) registers",
    re.DOTALL,
)
"""The resources of a kernel, in what the assembler prints."""
CALLED = re.compile(r"tt\.call @([\w.]+?)__")
"""A function that a kernel calls, in its intermediate code."""
COMPUTED = re.compile(
    r"(?:arith\.\w+f|math\.\w+) [^:\n]*: (?:tensor<[\dx]*x)?(b?f\d+)>?(?: loc|$)|tt\.dot .*-> tensor<[\dx]*x(b?f\d+)",
    re.MULTILINE,
)
"""The type of a floating-point result in a kernel's intermediate code; a conversion names two types and is left out."""
RECORDED = []
"""Launches to compile: (architecture, source, options). They cannot be sent to other processes, so those are forked."""


class Driver:
    """A stand-in for the driver of a GPU, which names its architecture to Triton, also as the number of the device."""

    architecture = None

    def get_current_device(self):
        return self.architecture

    def get_current_target(self):
        return GPUTarget("cuda", self.architecture, 32)

    def get_current_stream(self, device):
        return 0


def record(architectures):
    """Fill `RECORDED` with one launch for each combination of kernel, architecture, types of pointers and constants."""
    distinct = {}

    def note(*, fn, compile, **_):
        data = json.loads(compile["specialization_data"])
        options = {name: tuple(value) if isinstance(value, list) else value for name, value in data["options"].items()}
        source = ASTSource(fn.jit_function, compile["signature"], compile["constants"], compile["configs"][0])
        pointers = [kind for kind in source.signature.values() if kind.startswith("*")]
        key = str((driver.architecture, fn.module, fn.name, pointers, source.constants, options))
        distinct.setdefault(key, (driver.architecture, source, options))
        return True  # so that it is neither compiled now nor launched

    driver = Driver()
    triton.runtime.driver.set_active(driver)
    triton.knobs.runtime.jit_cache_hook = note
    for driver.architecture in architectures:
        for dtype in (torch.float32, torch.bfloat16):
            for name, launch in vars(launches).items():
                if name.startswith("launch_"):
                    launch(dtype)
    RECORDED.extend(distinct.values())


def compiled(number):
    """Compile launch `number` of `RECORDED`; return what it is, and what it needs or why it does not compile."""
    architecture, source, options = RECORDED[number]
    kernel = {
        "kernel": f"{source.fn.module}.{source.fn.__name__}",
        "architecture": architecture,
        "types": {name: kind for name, kind in source.signature.items() if kind != "constexpr"},
        "constants": {source.fn.arg_names[path[0]]: value for path, value in source.constants.items()},
    }
    log = io.StringIO()
    try:
        with redirect_stdout(log):
            result = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    except Exception as error:
        return kernel | {"error": f"{type(error).__name__}: {error}", "called": [], "computed": []}
    resources = {name: int(text) for name, text in RESOURCES.search(log.getvalue()).groupdict().items()}
    code = result.asm["source"]
    computed, called = {first or second for first, second in COMPUTED.findall(code)}, set(CALLED.findall(code))
    return kernel | resources | {"computed": sorted(computed), "called": sorted(called)}


def main():
    """Compile everything without a cache, since the assembler reports only of what it assembles."""
    record([int(text) for text in sys.argv[1:]])
    with tempfile.TemporaryDirectory() as directory:
        triton.knobs.cache.dir = directory
        triton.knobs.compilation.always_compile = True
        triton.knobs.compilation.store_binary_only = True
        triton.knobs.nvidia.dump_ptxas_log = True
        cores = len(os.sched_getaffinity(0))
        with ProcessPoolExecutor(cores, mp_context=multiprocessing.get_context("fork")) as processes:
            json.dump(list(processes.map(compiled, range(len(RECORDED)))), sys.stdout)


if __name__ == "__main__":
    main()
