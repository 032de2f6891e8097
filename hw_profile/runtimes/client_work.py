"""A client's work as a trace has it, on either runtime: step by step, timed by phase, held to what is recorded."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from importlib import import_module
from typing import Any, Protocol

import numpy as np

from simsfl.runs.client_trace import STATE, Trace, Visit, checksums

PHASES = ("views", "query", "momentum", "key", "backward", "sgd", "sync")
"""Of a client's step, in order; query and key are the forward passes of the online and the momentum model."""
RUNTIMES = ("torch", "lean")

Clock = Callable[[str], AbstractContextManager[object]]


class Client(Protocol):
    """A client's side of a step; see `torch_client.TorchClient` and `lean_client.LeanClient`."""

    def views(self, pixels: np.ndarray, parameters: Mapping[str, np.ndarray]) -> Sequence[Any]: ...

    def query(self, images: Any, *, learns: bool = True) -> np.ndarray: ...

    def move(self, tau: float) -> None: ...

    def key(self, images: Any) -> np.ndarray: ...

    def backward(self, gradient: np.ndarray) -> None: ...

    def descend(self, lr: float, momentum: float, weight_decay: float) -> None: ...


def import_runtime(runtime: str) -> Any:
    """The module of a runtime, imported now: a board may lack the other, and memory is measured without it.

    Raises:
        ValueError: what it needs is not installed.
    """
    try:
        return import_module(f"{runtime}_client")
    except ModuleNotFoundError as error:
        other = next(name for name in RUNTIMES if name != runtime)
        raise ValueError(f"runtime: {runtime} needs {error.name}, which is not installed; allowed: {other}") from error


def make_client(about: Mapping[str, Any], runtime: str, *, precision: str, compile: bool = False) -> Client:
    """A client of the network that a trace is of.

    Raises:
        ValueError: the runtime cannot do it.
    """
    module = import_runtime(runtime)
    if runtime == "lean":
        if precision != "fp32":
            raise ValueError(f"dtype: lean computes in fp32, not {precision}; allowed: --runtime torch")
        return module.LeanClient(about)
    return module.TorchClient(about, precision, compile=compile)


def versions(runtime: str) -> dict[str, Any]:
    """Of what computes, and on how many threads."""
    found: dict[str, Any] = {"numpy": np.__version__}
    if runtime == "torch":
        import torch  # noqa: PLC0415  (of one runtime)

        found |= {"torch": torch.__version__, "threads": torch.get_num_threads()}
    return found


def put(client: Client, arrays: Mapping[str, np.ndarray]) -> None:
    """Give the client new weights, of `STATE`."""
    for name, array in arrays.items():
        if array.size:
            getattr(client, name)[...] = array


class Comparison:
    """The largest difference from what is recorded: relative to the largest value of its kind.

    Attributes:
        activations: of the sums that each view's activations are recorded as.
        weights: of the models that the client had at averagings and in the end.
    """

    def __init__(self) -> None:
        self.activations = self.weights = 0.0

    def see_activations(self, smashed: np.ndarray, expected: np.ndarray) -> None:
        """Of one view, against its checksums ``[B, k]``."""
        self.activations = max(self.activations, difference(checksums(smashed), expected))

    def see_weights(self, client: Client, expected: Mapping[str, np.ndarray]) -> None:
        """Of what the client has now, but for SGD's velocity: one rectified value on the other side of 0 changes it."""
        for name, array in expected.items():
            if array.size and name != "velocity":
                self.weights = max(self.weights, difference(getattr(client, name), array))


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest, relative to the largest expected value; the largest number there is where a value is not finite."""
    if found.shape != expected.shape:
        raise ValueError(
            f"replay: the trace has arrays of shape {expected.shape} for {found.shape}; allowed: a whole one"
        )
    apart = float(np.abs(found.astype(np.float64) - expected).max())
    scale = float(np.abs(expected).max()) or 1.0
    return apart / scale if np.isfinite(apart) else sys.float_info.max  # JSON has no infinity


def perform(client: Client, trace: Trace, visit: Visit, clock: Clock, compare: Comparison | None) -> Iterator[int]:
    """Do what the client did in a visit; each step when it is done.

    What would cross the network, gradients that come in and weights, is read from the trace outside the clock.
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
        del smashed  # it is sent
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
    """A copy of what the client has, of `STATE`."""
    return {name: getattr(client, name).copy() for name in STATE}
