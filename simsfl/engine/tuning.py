"""Choices made by measuring, kept from one process to the next: they depend on the machine, and take time to make."""

from __future__ import annotations

import json
import logging
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simsfl.algorithm import clients, server
from simsfl.algorithm.plan import RoundPlan
from simsfl.algorithm.step import Hyperparameters
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
from simsfl.system.files import cache_directory, write_json
from simsfl.system.memory import is_out_of_memory

CHUNKS = (100, 50, 25, 10)
"""Clients run together on a CPU: what is tried, the usual first. On a GPU it is all of them."""
MEASURED = 100
"""Clients it is tried with on a CPU, if there are so many."""
CLEARLY = 0.85
"""Another chunk than the usual has to take no more than this share of its time."""
OTHERS_BYTES = 64 << 20
"""Written before each try: in a step, what the clients find in the caches is the server's."""
SECONDS = 0.3
"""Spent on each, and no less than two passes."""

DAMAGED = (OSError, ValueError, TypeError, AttributeError, RecursionError)
"""What reading the file raises where it cannot be used."""

log = logging.getLogger(__name__)


@contextmanager
def remembering(known: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Gives the choices made or found inside; those that are new are kept for the next process.

    Args:
        known: choices to abide by, such as those of the run that is resumed. They are this run's alone.
    """
    kept = read_choices()
    CHOICES.update({**kept, **CHOICES})
    with choosing(dict(known)) as used:
        yield used
    new = {name: choice for name, choice in CHOICES.items() if name not in kept}
    if new:
        write_choices({**kept, **new})


@contextmanager
def able(engine: str) -> Iterator[None]:
    """Raise a ValueError about the config's `engine` where an operator that is called inside cannot run.

    Where it cannot for lack of memory, its own error is left to those who know what would need less.
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
    """How many clients to run together.

    On the way operators are called with all shapes that will occur: they make their choices, and one that cannot run
    is known of before training.

    Args:
        model: the clients'.
        used: choices to go by, and to add to.
    """
    images_each = f"{cohort}x{batch_size} images of {image_size}"
    how = "fastest" if measuring() else "plain"
    what = f"chunk {how}, {model.size} parameters, {images_each}, {hyper.precision} {device.type}"
    total = cohort if device.type == "cuda" else min(cohort, MEASURED)  # all shapes of a step are to be known
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
    if not chunk.isdecimal() and device.type == "cpu" and cohort > min(CHUNKS):
        chunk = CHOICES[what] = quickest_chunk(passes, [size for size in CHUNKS if size <= cohort])
    if chunk:
        used[what] = chunk
    size = int(chunk or cohort)
    if accelerating():
        for count in {min(size, total), cohort % size} - {0}:
            passes(size, count)
    return size


def working_server(model: FlatModule, hyper: Hyperparameters, parameters: Tensor, smashed: Tensor) -> FlatModule:
    """Return the server's network after a try; where one of its own for CUDA cannot run, the plain one, with a warning.

    Args:
        parameters: ``[Q]``.
        smashed: ``[n, c, h, w]`` like that of a step.
    """
    try:
        server_passes(model, hyper, parameters, smashed)
    except Exception as error:  # of Triton and its compilers, of whatever type
        if not isinstance(model, CentralModule) or is_out_of_memory(error):
            raise
        log.warning("the server's own kernels cannot run, and PyTorch's operators are used: %s", reason(error))
        return working_server(model.plain, hyper, parameters, smashed)
    return model


def views_and_descent(images: Images, plan: RoundPlan, online: Tensor) -> None:
    """Call the operators of a step that have a single version for the device, so that it is known whether they run.

    Args:
        plan: of any round.
        online: ``[C, P]`` the cohort's models, which stay as they are.

    Raises:
        CannotRunError: one of them cannot.
    """
    try:
        for group in plan.groups:
            images.augmented(images.pixels[group.indices[0]], group.views.map(lambda t: t[0]), online.dtype)
        zeros = torch.zeros_like(online)
        sgd_(zeros, zeros.clone(), zeros.clone(), zeros[:, :1].clone(), 0.0, 0.0)
    except Exception as error:
        raise CannotRunError(f"views or descent of the fused engine cannot run: {reason(error)}") from error


def server_passes(model: FlatModule, hyper: Hyperparameters, parameters: Tensor, smashed: Tensor) -> None:
    """Run the server's network forward and back, which changes nothing.

    Operators make their choices on the way, and one that cannot run is known of before training.
    """
    leaves = model.leaves(parameters)
    statistics = model.named_statistics(model.initial_statistics.to(parameters, copy=True))
    with hyper.autocast(smashed.device):
        output = server.embed(model, leaves.tensors, statistics, model.received(smashed).detach().requires_grad_())
    output.sum().backward()
    leaves.gradient()


def quickest_chunk(passes: Callable[[int], None], sizes: Sequence[int]) -> str:
    """The size of a chunk with which `passes` take the least time; the first, unless another is clearly better."""
    others = torch.zeros(OTHERS_BYTES // 4)

    def seconds(size: int) -> float:
        passes(size)  # operators make their choices
        times: list[float] = []
        while sum(times) < SECONDS:
            others.add_(1.0)
            times.append(timed(passes, size))
        return min(times)

    return preferred({str(size): seconds(size) for size in sizes}, CLEARLY) if len(sizes) > 1 else str(sizes[0])


def timed(function: Callable[[int], None], argument: int) -> float:
    """Seconds of a call."""
    begin = time.perf_counter()
    function(argument)
    return time.perf_counter() - begin


def where() -> str:
    """What choices depend on besides shapes."""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    versions = f"simsfl {version('simsfl')}, torch {torch.__version__}"
    return f"{versions}, {processor()}, {torch.get_num_threads()} threads{gpu}"


def processor() -> str:
    """Name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def path() -> Path:
    """The file they are kept in."""
    return cache_directory() / "choices.json"


def read_choices() -> dict[str, str]:
    """Those made on this kind of machine with this version of PyTorch; none where the file is damaged."""
    try:
        return read_all().get(where(), {})
    except DAMAGED as error:
        log.warning("%s is damaged (%s) and is made anew", path(), error)
        return {}


def read_all() -> dict[str, dict[str, str]]:
    """Those of all machines and versions; one of `DAMAGED` is raised where the file holds something else."""
    try:
        content: Any = json.loads(path().read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    if not all(are_choices(choices) for choices in content.values()):
        raise TypeError("it holds something else")
    return content


def write_choices(choices: Mapping[str, str]) -> None:
    """Keep them beside those of other machines and versions; where that cannot be, they are made again next time."""
    try:
        others = read_all()
    except DAMAGED:
        others = {}
    try:
        path().parent.mkdir(parents=True, exist_ok=True)
        write_json(path(), {**others, where(): dict(choices)}, durable=False)
    except OSError as error:
        log.debug("choices are not kept: %s", error)
