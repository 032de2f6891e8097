"""The choice of an operator's fastest version for a shape, dtype and device, measured once and then remembered.

No version is the fastest everywhere (a grouped convolution has been between 10 times slower and 4 times faster than
the alternatives), and versions round differently. So a choice, once made, is kept: `CHOICES` can be saved and restored
in another process, and the choices given to `choosing` take precedence over them.
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
"""Name of the chosen version by what it was chosen for (see `key`)."""
_TRIES = 3
"""Timed calls of each version, after one to warm up."""
_CLEARLY = 0.8
"""Share of the first version's time that another version must stay below to be chosen instead. Were it 1, a little
noise could reverse a choice, and equal runs would differ."""
log = logging.getLogger(__name__)
_WARNED: set[tuple[str, str]] = set()
"""Pairs of an operator and a version that this process has already warned about."""
_FAILED: set[tuple[str, str]] = set()
"""Choices that failed to run: pairs of a version and what it was chosen for."""
_VERSION: ContextVar[str | None] = ContextVar("version", default=None)
_USED: ContextVar[dict[str, str] | None] = ContextVar("used", default=None)


class CannotRunError(RuntimeError):
    """Raised where an operator cannot run for a shape: the version that was asked for fails, or every version does."""


@contextmanager
def accelerated(version: str | None = "fastest") -> Iterator[None]:
    """Make operators use their accelerated versions inside this context, or with None their plain PyTorch references.

    Outside of any such context, operators use their references.

    Args:
        version: "fastest" to choose by measuring; or the name of a version, such as "grouped", which is used by every
            operator that has it, while the others choose by measuring.
    """
    token = _VERSION.set(version)
    try:
        yield
    finally:
        _VERSION.reset(token)


def accelerating() -> bool:
    """Return whether operators use their accelerated versions; ``torch.compile`` always gets their references."""
    return not torch.compiler.is_compiling() and _VERSION.get() is not None


def measuring() -> bool:
    """Return whether operators use their fastest version, and so may have to measure which one that is."""
    return _VERSION.get() == "fastest"


@contextmanager
def choosing(used: dict[str, str] | None = None) -> Iterator[dict[str, str]]:
    """Collect the choices that operators use inside this context, and yield them.

    Args:
        used: Choices that take precedence over those in `CHOICES`. All choices used inside are added to this
            dictionary, which is what the context yields; by default it starts empty.
    """
    used = {} if used is None else used
    token = _USED.set(used)
    try:
        yield used
    finally:
        _USED.reset(token)


def setting() -> tuple[str | None, dict[str, str] | None]:
    """Return the version and the choices that are in force here (see `accelerated`, `choosing`), for `as_in`."""
    return _VERSION.get(), _USED.get()


@contextmanager
def as_in(there: tuple[str | None, dict[str, str] | None]) -> Iterator[None]:
    """Use the same versions and choices inside this context as where `setting` returned `there`.

    Backward passes need this on CUDA: they run in other threads, which do not inherit context variables.
    """
    version, used = there
    with accelerated(version):
        token = _USED.set(used)
        try:
            yield
        finally:
            _USED.reset(token)


def key(operator: str, tensors: tuple[Tensor | None, ...], settings: tuple) -> str:
    """Return one line that identifies what a choice is made for: operator, shapes, settings, number type and device.

    Example: ``"conv2d 2x3x4x8x8 2x5x3x3x3 (1, 1, 1) float32 cpu"``.
    """
    shapes = " ".join("x".join(map(str, tensor.shape)) for tensor in tensors if tensor is not None)
    return f"{operator} {shapes} {settings} {_number(tensors[0])} {tensors[0].device.type}"


def _number(tensor: Tensor) -> str:
    """Return the number type that a tensor is computed in: its dtype, or "tf32" where cuDNN may round float32 to it."""
    if tensor.device.type == "cuda" and tensor.dtype == torch.float32:
        convolution = getattr(torch.backends.cudnn, "conv", None)  # torch before 2.9 has only the older switch
        if torch.backends.cudnn.allow_tf32 if convolution is None else convolution.fp32_precision == "tf32":
            return "tf32"
    return str(tensor.dtype).removeprefix("torch.")


def fastest(
    operator: str, versions: Mapping[str, Callable[..., object]], tensors: tuple[Tensor | None, ...], *settings: object
) -> object:
    """Call the fastest of `versions` with `tensors` and `settings`, after measuring them if no choice is known yet.

    The version given to `accelerated` by name is called without measuring. A version named "triton" is skipped where
    Triton does not support the first tensor.

    Args:
        operator: Name that identifies the operator in choices and messages.
        versions: Functions by name that compute the same; the first is the default.
        tensors: Arguments that a choice depends on by their shapes. The first is not None, and its dtype and device
            count, too.
        settings: Further arguments; a choice depends on their values.

    Returns:
        The result of the version that was called.

    Raises:
        CannotRunError: The version that was asked for by name cannot run, or no version can.
    """
    if "triton" in versions and not gpu.usable(tensors[0]):
        versions = {name: version for name, version in versions.items() if name != "triton"}
    choice = _VERSION.get() if _VERSION.get() in versions else next(iter(versions))
    if choice != _VERSION.get() and len(versions) > 1:
        what = key(operator, tensors, settings)
        used = _USED.get()
        choice = (used or {}).get(what) or CHOICES.get(what)
        if choice not in versions or (choice, what) in _FAILED:
            choice = CHOICES[what] = preferred(_measured(operator, versions, tensors, settings), _CLEARLY)
        if used is not None:
            used[what] = choice
    try:
        return versions[choice](*tensors, *settings)
    except Exception as error:  # Triton and its compilers raise exceptions of their own types
        what = key(operator, tensors, settings)
        if choice != _VERSION.get() and len(versions) > 1 and (choice, what) not in _FAILED:
            _FAILED.add((choice, what))  # it was chosen earlier, perhaps by another process, and no longer runs
            return fastest(operator, versions, tensors, *settings)
        raise CannotRunError(f"version {choice} of {what} cannot run: {reason(error)}") from error


def try_triton(device: torch.device) -> None:
    """Run a small Triton kernel on a CUDA device; if it fails, log a warning and stop using Triton in this process."""
    try:
        turned(torch.zeros(1, 2, 1, 2, device=device), torch.channels_last)
        torch.cuda.synchronize(device)
    except Exception as error:  # the compiler may be missing, or the device too new or too old
        gpu.give_up(reason(error))


def _measured(
    operator: str, versions: Mapping[str, Callable[..., object]], tensors: tuple[Tensor | None, ...], settings: tuple
) -> dict[str, float]:
    """Return the seconds that each version takes, by name, leaving out those that cannot run.

    A version that cannot run is logged as a warning, once per operator and process.

    Raises:
        CannotRunError: No version can run.
    """
    seconds, what = {}, key(operator, tensors, settings)
    reasons: dict[str, str] = {}
    for name, version in versions.items():
        try:
            seconds[name] = measure(version, tensors, settings)
        except Exception as error:  # including out of memory: another version may need less
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
    """Return an error in one line: its type, and the first line of its message that is not blank."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def preferred(seconds: Mapping[str, float], clearly: float) -> str:
    """Return the name with the fewest seconds if they are below `clearly` times the first's, else the first name."""
    first, quickest = next(iter(seconds)), min(seconds, key=seconds.__getitem__)
    return quickest if seconds[quickest] < clearly * seconds[first] else first


def are_choices(value: object) -> bool:
    """Return whether a value that was read from a file has the form of `CHOICES`: a dictionary of text by text."""
    return isinstance(value, dict) and all(isinstance(text, str) for pair in value.items() for text in pair)


def measure(function: Callable[..., object], tensors: tuple[Tensor | None, ...], settings: tuple) -> float:
    """Return the seconds of the quickest of `_TRIES` calls of `function`, after one to warm up.

    On CUDA, replays of a CUDA graph are timed, as in training: the time that the host takes to launch a call does not
    count.
    """
    if tensors[0].device.type == "cuda":
        return min(replays(lambda: function(*tensors, *settings)))
    function(*tensors, *settings)
    best = float("inf")
    for _ in range(_TRIES):
        begin = time.perf_counter()
        function(*tensors, *settings)
        best = min(best, time.perf_counter() - begin)
    return best


def replays(function: Callable[[], object], count: int = _TRIES) -> list[float]:
    """Return the seconds of each of `count` replays of a CUDA graph of a call of `function`, after one to warm up."""
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
