"""Which version of an operator is fastest for a shape, dtype and device: measured once, then remembered.

No version wins everywhere (a grouped convolution was seen from 10 times slower to 4 times faster than the
alternatives), and versions differ in rounding. So a choice, once made, stays: `CHOICES` can be read out, kept, and
put back in another process, and `choosing` has its own go before them.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import pairwise

import torch
from torch import Tensor

from simsfl.kernels import gpu
from simsfl.kernels.memory_format import turned

CHOICES: dict[str, str] = {}
"""Name of the version by what was measured."""
TRIES = 3
CLEARLY = 0.8
"""Another version than the first is chosen where it takes no more than this share of its time: a choice that a little
noise turns round would make equal runs differ."""
log = logging.getLogger(__name__)
_WARNED: set[tuple[str, str]] = set()
"""Operators and versions that this process has warned of already."""
_FAILED: set[tuple[str, str]] = set()
"""Choices that could not run, each with what it was made for."""
_VERSION: ContextVar[str | None] = ContextVar("version", default=None)
_USED: ContextVar[dict[str, str] | None] = ContextVar("used", default=None)


class CannotRunError(RuntimeError):
    """A version of an operator cannot run for a shape: one that was asked for, or all there are."""


@contextmanager
def accelerated(version: str | None = "fastest") -> Iterator[None]:
    """Inside, operators use their accelerated versions; outside, and with None, their plain PyTorch references.

    Args:
        version: "fastest" by measuring, or the name of one, used wherever an operator has it.
    """
    token = _VERSION.set(version)
    try:
        yield
    finally:
        _VERSION.reset(token)


def accelerating() -> bool:
    """Whether operators use their accelerated versions; a program that is compiled is made of their references."""
    return not torch.compiler.is_compiling() and _VERSION.get() is not None


def measuring() -> bool:
    """Whether they use the fastest, and so may have to find out which it is."""
    return _VERSION.get() == "fastest"


@contextmanager
def choosing(used: dict[str, str] | None = None) -> Iterator[dict[str, str]]:
    """Gives the choices that operators make or go by inside.

    Args:
        used: choices that they go by first, and that theirs are added to; those of `CHOICES` come after.
    """
    used = {} if used is None else used
    token = _USED.set(used)
    try:
        yield used
    finally:
        _USED.reset(token)


def setting() -> tuple[str | None, dict[str, str] | None]:
    """Return how operators are told which versions to use here, as `as_in` takes it."""
    return _VERSION.get(), _USED.get()


@contextmanager
def as_in(there: tuple[str | None, dict[str, str] | None]) -> Iterator[None]:
    """Inside, versions are used as where `setting` was called. On CUDA, backward passes run in threads of their own."""
    version, used = there
    with accelerated(version):
        token = _USED.set(used)
        try:
            yield
        finally:
            _USED.reset(token)


def key(operator: str, tensors: tuple[Tensor | None, ...], settings: tuple) -> str:
    """What a choice is made for, as one line."""
    shapes = " ".join("x".join(map(str, tensor.shape)) for tensor in tensors if tensor is not None)
    return f"{operator} {shapes} {settings} {_number(tensors[0])} {tensors[0].device.type}"


def _number(tensor: Tensor) -> str:
    """Return what a tensor is computed in: its dtype, or "tf32" where cuDNN may round its float32 numbers to that."""
    if tensor.device.type == "cuda" and tensor.dtype == torch.float32:
        convolution = getattr(torch.backends.cudnn, "conv", None)  # before torch 2.9 there is only the older switch
        if torch.backends.cudnn.allow_tf32 if convolution is None else convolution.fp32_precision == "tf32":
            return "tf32"
    return str(tensor.dtype).removeprefix("torch.")


def fastest(
    operator: str, versions: Mapping[str, Callable[..., object]], tensors: tuple[Tensor | None, ...], *settings: object
) -> object:
    """Call the fastest of `versions` with `tensors` and `settings`, finding out which it is if need be.

    One called "triton" is passed over where Triton does not take the first of the tensors.

    Raises:
        CannotRunError: the version that was asked for cannot run, or none can.
    """
    if "triton" in versions and not gpu.usable(tensors[0]):
        versions = {name: version for name, version in versions.items() if name != "triton"}
    choice = _VERSION.get() if _VERSION.get() in versions else next(iter(versions))
    if choice != _VERSION.get() and len(versions) > 1:
        what = key(operator, tensors, settings)
        used = _USED.get()
        choice = (used or {}).get(what) or CHOICES.get(what)
        if choice not in versions or (choice, what) in _FAILED:
            choice = CHOICES[what] = preferred(measured(operator, versions, tensors, settings), CLEARLY)
        if used is not None:
            used[what] = choice
    try:
        return versions[choice](*tensors, *settings)
    except Exception as error:  # Triton and its compilers have types of their own
        what = key(operator, tensors, settings)
        if choice != _VERSION.get() and len(versions) > 1 and (choice, what) not in _FAILED:
            _FAILED.add((choice, what))  # it was chosen earlier, perhaps elsewhere, and cannot run any more
            return fastest(operator, versions, tensors, *settings)
        raise CannotRunError(f"version {choice} of {what} cannot run: {reason(error)}") from error


def try_triton(device: torch.device) -> None:
    """Run a small Triton kernel on a CUDA device; where that fails, Triton is given up, with a warning."""
    try:
        turned(torch.zeros(1, 2, 1, 2, device=device), torch.channels_last)
        torch.cuda.synchronize(device)
    except Exception as error:  # there may be no compiler, or a device that is too new or too old
        gpu.give_up(reason(error))


def measured(
    operator: str, versions: Mapping[str, Callable[..., object]], tensors: tuple[Tensor | None, ...], settings: tuple
) -> dict[str, float]:
    """Seconds of each of the versions that can run. Of another a warning is given, once a process.

    Raises:
        CannotRunError: none can.
    """
    seconds, what = {}, key(operator, tensors, settings)
    reasons: dict[str, str] = {}
    for name, version in versions.items():
        try:
            seconds[name] = measure(version, tensors, settings)
        except Exception as error:  # out of memory is one, too: another version may need less
            reasons[name] = reason(error)
    if not seconds:
        everything = "; ".join(f"{name}: {why}" for name, why in reasons.items())
        raise CannotRunError(f"no version of {what} can run: {everything}")
    for name, why in reasons.items():
        if (operator, name) not in _WARNED:
            _WARNED.add((operator, name))
            log.warning("version %s of %s cannot run, and another is used: %s", name, what, why)
    return seconds


def reason(error: Exception) -> str:
    """Return what an error says, in one line: its type and its first words."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def preferred(seconds: Mapping[str, float], clearly: float) -> str:
    """The name with the fewest seconds, if they are less than a share `clearly` of the first's; else the first."""
    first, quickest = next(iter(seconds)), min(seconds, key=seconds.__getitem__)
    return quickest if seconds[quickest] < clearly * seconds[first] else first


def are_choices(value: object) -> bool:
    """Whether this, read from a file, can be choices: a name for each name."""
    return isinstance(value, dict) and all(isinstance(text, str) for pair in value.items() for text in pair)


def measure(function: Callable[..., object], tensors: tuple[Tensor | None, ...], settings: tuple) -> float:
    """Seconds of the quickest of `TRIES` calls after one to warm up.

    On CUDA it is those of a graph's replays, as in training: what it takes the host to launch a call does not count.
    """
    if tensors[0].device.type == "cuda":
        return min(replays(lambda: function(*tensors, *settings)))
    function(*tensors, *settings)
    best = float("inf")
    for _ in range(TRIES):
        begin = time.perf_counter()
        function(*tensors, *settings)
        best = min(best, time.perf_counter() - begin)
    return best


def replays(function: Callable[[], object], count: int = TRIES) -> list[float]:
    """Return the seconds of so many replays of a CUDA graph of a call, after one to warm up."""
    torch.cuda.synchronize()
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.cuda.stream(stream), gpu.fastest_convolutions():
        function()
        torch.cuda.synchronize()
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            function()
        finally:
            graph.capture_end()
        events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
        graph.replay()
        events[0].record()
        for event in events[1:]:
            graph.replay()
            event.record()
        torch.cuda.synchronize()
    return [begin.elapsed_time(end) / 1000 for begin, end in pairwise(events)]
