"""The work of a client that a trace has recorded, on either runtime.

Each step is timed by phase, and its results are compared with the recorded ones.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from importlib import import_module
from typing import Any, Protocol

import numpy as np

from simsfl.runs.client_trace import STATE, Trace, Visit, checksums

PHASES = ("views", "query", "momentum", "key", "backward", "sgd", "sync")
"""Phases of a client's step, in order.

``query`` and ``key`` are the forward passes of the online model and of the momentum encoder."""
RUNTIMES = ("torch", "lean")
"""Names of the runtimes that can do a client's computing."""

Clock = Callable[[str], AbstractContextManager[object]]
"""Function that returns a context manager for the phase of the given name, such as `Stopwatch`."""


class Client(Protocol):
    """A client's side of a step; `torch_client.TorchClient` and `lean_client.LeanClient` implement it.

    They also have the flat arrays of `STATE` as attributes, which `put` writes into.
    """

    def views(self, pixels: np.ndarray, parameters: Mapping[str, np.ndarray]) -> Sequence[Any]:
        """Return both normalised views, each ``[B, 3, H, H]``, of ``pixels [B, 3, H, H]`` uint8."""

    def query(self, images: Any, *, learns: bool = True) -> np.ndarray:
        """Return the online model's smashed data ``[B, c, h, w]``; if it `learns`, keep what `backward` needs."""

    def move(self, tau: float) -> None:
        """Move the momentum encoder towards the online model: ``tau`` times itself plus ``1 - tau`` times that."""

    def key(self, images: Any) -> np.ndarray:
        """Return the momentum encoder's smashed data ``[B, c, h, w]``."""

    def backward(self, gradient: np.ndarray) -> None:
        """Compute the gradient of the parameters from ``gradient [B, c, h, w]``, that of the query's smashed data."""

    def descend(self, lr: float, momentum: float, weight_decay: float) -> None:
        """Do a step of SGD with momentum."""


def import_runtime(runtime: str) -> Any:
    """Import and return the module of a runtime.

    It is imported only here because a board may lack the other runtime, and because memory is measured without it.

    Raises:
        ValueError: a package that the runtime needs is not installed.
    """
    try:
        return import_module(f"simsfl.hw_profile.runtimes.{runtime}_client")
    except ModuleNotFoundError as error:
        other = next(name for name in RUNTIMES if name != runtime)
        raise ValueError(f"runtime: {runtime} needs {error.name}, which is not installed; allowed: {other}") from error


def make_client(about: Mapping[str, Any], runtime: str, *, precision: str, compile: bool = False) -> Client:
    """Return a client with the network that a trace describes, its weights not yet set.

    Args:
        about: the content of a trace's ``trace.json``.
        runtime: one of `RUNTIMES`.
        precision: of the forward passes, such as ``fp32``.
        compile: whether to run the models through `torch.compile`; only with PyTorch.

    Raises:
        ValueError: the runtime does not support the network or the precision, or is not installed.
    """
    module = import_runtime(runtime)
    if runtime == "lean":
        if precision != "fp32":
            raise ValueError(f"dtype: lean computes in fp32, not {precision}; allowed: --runtime torch")
        return module.LeanClient(about)
    return module.TorchClient(about, precision, compile=compile)


def versions(runtime: str) -> dict[str, Any]:
    """Return the versions of the packages that compute, and with PyTorch the number of threads."""
    found: dict[str, Any] = {"numpy": np.__version__}
    if runtime == "torch":
        import torch  # noqa: PLC0415  (only this runtime needs it)

        found |= {"torch": torch.__version__, "threads": torch.get_num_threads()}
    return found


def put(client: Client, arrays: Mapping[str, np.ndarray]) -> None:
    """Copy new weights into the client; `arrays` holds some of `STATE`, and empty ones are skipped."""
    for name, array in arrays.items():
        if array.size:
            getattr(client, name)[...] = array


class Comparison:
    """The largest relative differences between what is computed and what is recorded.

    A difference is relative to the largest recorded value of its array.

    Attributes:
        activations: largest difference of the checksums of a view's activations.
        weights: largest difference of a model's weights at the averagings and at the end of a visit.
    """

    def __init__(self) -> None:
        self.activations = self.weights = 0.0

    def see_activations(self, smashed: np.ndarray, expected: np.ndarray) -> None:
        """Compare the activations of one view, ``smashed [B, c, h, w]``, with their checksums ``expected [B, k]``."""
        self.activations = max(self.activations, difference(checksums(smashed), expected))

    def see_weights(self, client: Client, expected: Mapping[str, np.ndarray]) -> None:
        """Compare the client's state with the recorded one, except SGD's velocity.

        One activation that rounding puts on the other side of a ReLU's zero changes the velocity.
        """
        for name, array in expected.items():
            if array.size and name != "velocity":
                self.weights = max(self.weights, difference(getattr(client, name), array))


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest absolute difference, divided by the largest absolute expected value.

    Where a value is not finite, the result is the largest float, because JSON has no infinity.

    Raises:
        ValueError: the shapes differ.
    """
    if found.shape != expected.shape:
        raise ValueError(
            f"replay: an array of the trace has shape {expected.shape} instead of {found.shape}; allowed: a whole trace"
        )
    apart = float(np.abs(found.astype(np.float64) - expected).max())
    scale = float(np.abs(expected).max()) or 1.0
    return apart / scale if np.isfinite(apart) else sys.float_info.max


def perform(client: Client, trace: Trace, visit: Visit, clock: Clock, compare: Comparison | None) -> Iterator[int]:
    """Do what the client did in a visit, and yield the index of each step after it is done.

    What would cross the network, that is incoming gradients and weights, is read from the trace outside of the clock.

    Args:
        client: does the computing.
        trace: the trace that the visit is from.
        visit: the visit to repeat.
        clock: times each phase.
        compare: collects differences from the record; None to skip the comparison.
    """
    optimiser = trace.about["optimiser"]
    syncs = {sync.step: sync for sync in visit.syncs}
    keys = visit.checksums.shape[1] == 2
    put(client, visit.begin)
    for step in range(visit.steps):
        gradient = visit.gradient(step) if visit.learns else None
        parameters = {name: values[step] for name, values in visit.views.items()}
        with clock("views"):
            views = client.views(visit.pixels[step], parameters)
        with clock("query"):
            smashed = client.query(views[0], learns=visit.learns)
        if compare:
            compare.see_activations(smashed, visit.checksums[step, 0])
        del smashed  # a real client has sent it, so it takes no memory from here on
        with clock("momentum"):
            client.move(optimiser["tau"])
        if keys:
            with clock("key"):
                smashed = client.key(views[1])
            if compare:
                compare.see_activations(smashed, visit.checksums[step, 1])
            del smashed
        if gradient is not None:
            with clock("backward"):
                client.backward(gradient)
            with clock("sgd"):
                client.descend(float(visit.lr[step]), optimiser["momentum"], optimiser["weight_decay"])
        if compare and step == visit.steps - 1:
            compare.see_weights(client, visit.end)
        if step in syncs:
            if compare:
                compare.see_weights(client, syncs[step].sent)
            with clock("sync"):
                put(client, syncs[step].received)
        yield step


def state_of(client: Client) -> dict[str, np.ndarray]:
    """Return a copy of the client's state: the arrays of `STATE` by name."""
    return {name: getattr(client, name).copy() for name in STATE}
