"""Choices made by measuring: versions of operators, and how many clients run together.

They depend on the machine and take time to make, so they are kept in a file, from one process to the next.
"""

from __future__ import annotations

import json
import logging
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import simsfl
from simsfl.algorithm import clients, server
from simsfl.algorithm.batch import Hyperparameters
from simsfl.algorithm.plan import RoundPlan
from simsfl.data import Images
from simsfl.kernels import (
    CHOICES,
    CannotRunError,
    accelerating,
    are_choices,
    choosing,
    measuring,
    preferred,
    reason,
    sgd_,
)
from simsfl.models import FlatModule
from simsfl.models.central import CentralModule
from simsfl.system.files import write_json
from simsfl.system.memory import is_out_of_memory
from simsfl.system.paths import cache_directory

_CHUNKS = (100, 50, 25, 10)
"""Numbers of clients that may run together on a CPU, the default first. On a GPU all clients run together."""
_MEASURED = 100
"""Most clients that a number is tried with on a CPU."""
_CLEARLY = 0.85
"""Share of the default's time that another number of clients must stay below to be chosen."""
_OTHERS_BYTES = 64 << 20
"""Bytes that are written before each try, since in a step the caches hold the server's data when the clients begin."""
SECONDS = 0.3
"""Least seconds that each number is tried for, after one pass to warm up."""

_DAMAGED = (OSError, ValueError, TypeError, AttributeError, RecursionError)
"""Exceptions that reading the file of choices raises where it is damaged."""

log = logging.getLogger(__name__)


@contextmanager
def remembering(known: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Collect the choices that are made or looked up in this context, and yield them.

    New ones are kept for the next process.

    Args:
        known: choices that take precedence, such as those of a resumed run. They are not kept for other runs.
    """
    kept = _read_choices()
    CHOICES.update({**kept, **CHOICES})
    with choosing(dict(known)) as used:
        yield used
    new = {name: choice for name, choice in CHOICES.items() if name not in kept}
    if new:
        _write_choices({**kept, **new})


@contextmanager
def able(engine: str) -> Iterator[None]:
    """Raise a ValueError about the config's `engine` if an operator that is called in this context cannot run.

    If it lacks memory, its CannotRunError passes through instead, for callers who can say what would need less.
    """
    try:
        yield
    except CannotRunError as error:
        if is_out_of_memory(error):
            raise
        others = ", ".join(name for name in ("fused", "vmap", "loop") if name != engine)
        raise ValueError(f"engine: {engine} does not work here, {error}; allowed: {others}") from error


def chunk_of(
    model: FlatModule,
    hyper: Hyperparameters,
    used: dict[str, str],
    *,
    cohort: int,
    batch_size: int,
    image_size: int,
    device: torch.device,
    dtype: torch.dtype,
) -> int:
    """Return the number of clients that run together (`Hyperparameters.chunk`).

    On the way, operators are called with all shapes that will occur. They make their choices, and those that cannot run
    fail before training instead of during it.

    Args:
        model: the clients' network.
        hyper: the precision of forward passes.
        used: choices that take precedence, and to which the one made here is added.
        cohort: number of clients in a cohort.
        batch_size: images per client and step.
        image_size: height and width of an image in pixels.
        device: device that trains.
        dtype: dtype of the clients' weights.

    Raises:
        CannotRunError: an operator cannot run.
    """
    images_each = f"{cohort}x{batch_size} images of {image_size}"
    how = "fastest" if measuring() else "plain"
    what = f"chunk {how}, {model.size} parameters, {images_each}, {hyper.precision} {device.type}"
    total = cohort if device.type == "cuda" else min(cohort, _MEASURED)  # a GPU runs all clients together
    parameters = model.initial.to(device, dtype).expand(total, -1).clone().requires_grad_()
    statistics = model.initial_statistics.to(device, dtype).expand(total, -1).clone()
    images = torch.zeros(total, batch_size, 3, image_size, image_size, device=device, dtype=dtype)

    def passes(size: int, count: int = total) -> None:
        rows, own, x = parameters[:count], statistics[:count], images[:count]
        with hyper.autocast(device):
            smashed = clients.forward(model, rows, own, [x], size)
            with torch.no_grad():
                clients.forward(model, rows, own, [x], size)
        clients.backward(rows, smashed, torch.cat(smashed).flatten(0, 1).detach())

    chunk = used.get(what) or CHOICES.get(what, "")
    if not chunk.isdecimal() and device.type == "cpu" and cohort > min(_CHUNKS):
        chunk = CHOICES[what] = _quickest_chunk(passes, [size for size in _CHUNKS if size <= cohort])
    if chunk:
        used[what] = chunk
    size = int(chunk or cohort)
    if accelerating():
        for count in {min(size, total), cohort % size} - {0}:
            passes(size, count)
    return size


def working_server(model: FlatModule, hyper: Hyperparameters, parameters: Tensor, smashed: Tensor) -> FlatModule:
    """Return the server's network, after trying whether it can run.

    If it has kernels of its own for CUDA (`CentralModule`) and they cannot run, log a warning and return the plain one.

    Args:
        model: the server's network.
        hyper: the precision of forward passes.
        parameters: ``[Q]`` weights.
        smashed: ``[n, c, h, w]`` smashed data, of the shape and dtype that a step has.

    Raises:
        Exception: the plain network cannot run, or there is not enough memory.
    """
    try:
        server_passes(model, hyper, parameters, smashed)
    except Exception as error:  # Triton and its compilers raise exceptions of their own types
        if not isinstance(model, CentralModule) or is_out_of_memory(error):
            raise
        log.warning("the server's own kernels cannot run, and PyTorch's operators are used: %s", reason(error))
        return working_server(model.plain, hyper, parameters, smashed)
    return model


def views_and_descent(images: Images, plan: RoundPlan, online: Tensor) -> None:
    """Call the operators that augment images and do SGD, which have one version per device, to see if they can run.

    Args:
        images: training images.
        plan: plan of any round.
        online: ``[C, P]`` the cohort's models, which stay as they are.

    Raises:
        CannotRunError: one of them cannot run.
    """
    try:
        for group in plan.groups:
            images.augmented(images.pixels[group.indices[0]], group.views.map(lambda t: t[0]), online.dtype)
        zeros = torch.zeros_like(online)
        sgd_(zeros, zeros.clone(), zeros.clone(), zeros[:, :1].clone(), 0.0, 0.0)
    except Exception as error:
        raise CannotRunError(f"views or SGD of the fused engine cannot run: {reason(error)}") from error


def server_passes(model: FlatModule, hyper: Hyperparameters, parameters: Tensor, smashed: Tensor) -> None:
    """Run the server's network forward and back once, without changing its weights or running statistics.

    Operators make their choices on the way, and those that cannot run fail before training instead of during it.

    Args:
        model: the server's network.
        hyper: the precision of forward passes.
        parameters: ``[Q]`` weights.
        smashed: ``[n, c, h, w]`` smashed data, of the shape and dtype that a step has.
    """
    leaves = model.leaves(parameters)
    statistics = model.named_statistics(model.initial_statistics.to(parameters, copy=True))
    with hyper.autocast(smashed.device):
        output = server.embed(model, leaves.tensors, statistics, model.received(smashed).detach().requires_grad_())
    output.sum().backward()
    leaves.gradient()


def _quickest_chunk(passes: Callable[[int], None], sizes: Sequence[int]) -> str:
    """Return the size with which `passes` takes the least time: the first size, unless another is clearly better.

    Args:
        passes: function of a size that runs the clients forward and back.
        sizes: numbers of clients that run together, the default first.
    """
    others = torch.zeros(_OTHERS_BYTES // 4)

    def seconds(size: int) -> float:
        passes(size)  # operators make their choices in the first call
        times: list[float] = []
        while sum(times) < SECONDS:
            others.add_(1.0)
            times.append(_timed(passes, size))
        return min(times)

    return preferred({str(size): seconds(size) for size in sizes}, _CLEARLY) if len(sizes) > 1 else str(sizes[0])


def _timed(function: Callable[[int], None], argument: int) -> float:
    """Return the seconds that a call of `function` takes."""
    begin = time.perf_counter()
    function(argument)
    return time.perf_counter() - begin


def where() -> str:
    """Return one line that says what choices depend on besides shapes: versions, processor, threads and GPU."""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    versions = f"simsfl {simsfl.__version__}, torch {torch.__version__}"
    return f"{versions}, {processor()}, {torch.get_num_threads()} threads{gpu}"


def processor() -> str:
    """Return the name of the processor's model, or that of its architecture if the model is unknown."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _path() -> Path:
    """Return the path of the file of choices, which holds those of all machines and versions."""
    return cache_directory() / "choices.json"


def _read_choices() -> dict[str, str]:
    """Return the kept choices of this machine and these versions; none, with a warning, if the file is damaged."""
    try:
        return _read_all().get(where(), {})
    except _DAMAGED as error:
        log.warning("%s is damaged (%s) and will be replaced", _path(), error)
        return {}


def _read_all() -> dict[str, dict[str, str]]:
    """Return the kept choices of all machines and versions, by `where`; none if there is no file.

    Raises:
        OSError, ValueError, TypeError, AttributeError, RecursionError: the file is damaged (`_DAMAGED`).
    """
    try:
        content: Any = json.loads(_path().read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    if not all(are_choices(choices) for choices in content.values()):
        raise TypeError("it holds no choices")
    return content


def _write_choices(choices: Mapping[str, str]) -> None:
    """Write the choices of this machine and these versions into the file, which keeps those of others.

    If the file cannot be written, the choices are made again next time.
    """
    try:
        others = _read_all()
    except _DAMAGED:
        others = {}
    try:
        _path().parent.mkdir(parents=True, exist_ok=True)
        write_json(_path(), {**others, where(): dict(choices)}, durable=False)
    except OSError as error:
        log.debug("choices are not kept: %s", error)
