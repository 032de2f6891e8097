"""Training steps recorded once as a CUDA graph, then replayed: one launch from the host instead of thousands."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from simsfl.algorithm.batch import Batch, Clock, Hyperparameters, Outcome
from simsfl.algorithm.state import State
from simsfl.algorithm.wire import Wire
from simsfl.kernels.gpu import fastest_convolutions
from simsfl.models import SplitModel

WARM_UP = 3
"""Steps that are run before one is recorded: in the first steps, libraries allocate memory and choose algorithms."""

log = logging.getLogger(__name__)


class Graph(Protocol):
    """A recorder of the operations that a function launches on a device, which can launch them again without it."""

    def warm_up(self, function: Callable[[], object]) -> None:
        """Call the function once, in the way that has to precede `record`."""

    def record(self, function: Callable[[], Outcome]) -> Outcome:
        """Call the function once, record the operations that it launches, and return its result.

        The operations may or may not be carried out now. Each `replay` writes its results into the tensors returned
        here.

        Raises:
            RuntimeError: the function cannot be recorded.
        """

    def replay(self) -> None:
        """Carry out the recorded operations, on the tensors they were recorded with; no Python of the function runs."""


class _CudaGraph:
    """A `Graph` on the current CUDA device."""

    def __init__(self):
        self._graph = torch.cuda.CUDAGraph()

    def warm_up(self, function: Callable[[], object]) -> None:
        """Call the function once, on a stream of its own, as recording does."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), fastest_convolutions():
            function()
        torch.cuda.current_stream().wait_stream(stream)

    def record(self, function: Callable[[], Outcome]) -> Outcome:
        """Call the function once, record the operations that it launches, and return its result.

        CUDA calls of other threads are not recorded, and do not disturb the recording.

        Raises:
            RuntimeError: the function cannot be recorded.
        """
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"), fastest_convolutions():
            return function()

    def replay(self) -> None:
        """Carry out the recorded operations."""
        self._graph.replay()


@dataclass(frozen=True)
class _Recording:
    """A recorded step, and what it was recorded with; a replay can differ from it only in the values of tensors."""

    graph: Graph
    """The recorded operations."""
    model: SplitModel
    """The model that was trained."""
    state: State
    """The state that was trained; replays change it."""
    inputs: list[object]
    """Leaves of the batch that was recorded. Its tensors belong to the recording: those of other batches are copied
    into them before a replay."""
    outcome: Outcome
    """The step's outcome, whose tensors each replay overwrites."""

    def suits(self, model: SplitModel, state: State, leaves: list[object]) -> bool:
        """Return whether a step on a batch with these leaves differs from the recorded one only in tensors' values."""
        return (
            (model is self.model and state is self.state)
            and len(leaves) == len(self.inputs)
            and all(_alike(own, new) for own, new in zip(self.inputs, leaves, strict=True))
        )


class CapturedStep:
    """A training step that is recorded on the first call and replayed on later ones, or run eagerly where it has to be.

    A step has to be run eagerly, operation by operation in Python, if its batch has a wire other than the plain one, if
    it cannot be recorded, or if more than the values of the batch's tensors has changed since the recording, such as
    their shapes, the images or the state. The first time, a warning gives the reason. There is one recording for each
    set of hyperparameters that the step is called with.

    Args:
        train_step: a step such as `simsfl.algorithm.step.train_step`.
        graph: function that makes a new, empty graph.

    Attributes:
        recordings: recorded steps by their hyperparameters.
        capture_seconds: seconds spent on recording so far, including the steps that warm up.
    """

    def __init__(self, train_step: Callable[..., Outcome], graph: Callable[[], Graph] = _CudaGraph):
        self.train_step, self.graph = train_step, graph
        self.recordings: dict[Hyperparameters, _Recording] = {}
        self.capture_seconds = 0.0
        self._problem = ""
        self._warned = False

    def __call__(self, model: SplitModel, state: State, batch: Batch, hyper: Hyperparameters, clock: Clock) -> Outcome:
        """Train on a batch, in place; see `simsfl.algorithm.step.train_step` for the arguments.

        The tensors of the result may be overwritten by the next call.
        """
        arguments = model, state, batch, hyper, clock
        if type(batch.wire) is not Wire:
            return self.eager("what is between clients and server takes part in them", *arguments)
        if batch.absent:
            return self.eager("clients miss some of them", *arguments)
        if hyper not in self.recordings and not self._problem:
            begin = time.perf_counter()
            with clock("capture"):
                self._record(model, state, batch, hyper)
            seconds = time.perf_counter() - begin
            self.capture_seconds += seconds
            log.info("recording a step as a CUDA graph took %.1f s", seconds)
        if self._problem:
            return self.eager(self._problem, *arguments)
        recording, leaves = self.recordings[hyper], batch.leaves()
        if not recording.suits(model, state, leaves):
            return self.eager("more than the values of tensors changes from one to the next", *arguments)
        with clock("step"):
            for own, new in zip(recording.inputs, leaves, strict=True):
                if isinstance(own, Tensor):
                    own.copy_(new)
            recording.graph.replay()
        return recording.outcome

    def eager(
        self, reason: str, model: SplitModel, state: State, batch: Batch, hyper: Hyperparameters, clock: Clock
    ) -> Outcome:
        """Run a step eagerly, without a recording; the first time, log the reason as a warning."""
        if not self._warned:
            log.warning("steps are not replayed as a CUDA graph, and take longer: %s", reason)
            self._warned = True
        return self.train_step(model, state, batch, hyper, clock)

    def _record(self, model: SplitModel, state: State, batch: Batch, hyper: Hyperparameters) -> None:
        """Record a step, after some that warm up, and restore the state, which all of these train."""
        inputs, graph = batch.map(torch.clone), self.graph()
        apart = () if state.memory is state.memories else ("queues.",)
        untouched = ("clients.", "sent.", "aggregation.", *apart)
        trained = {name: tensor for name, tensor in state.tensors().items() if not name.startswith(untouched)}
        before = {name: tensor.clone() for name, tensor in trained.items()}
        for _ in range(WARM_UP):
            graph.warm_up(lambda: self.train_step(model, state, inputs, hyper))
        try:
            outcome = graph.record(lambda: self.train_step(model, state, inputs, hyper))
            self.recordings[hyper] = _Recording(graph, model, state, inputs.leaves(), outcome)
        except RuntimeError as error:
            self._problem = str(error).partition("\n")[0] or type(error).__name__
        for name, tensor in trained.items():
            tensor.copy_(before[name])


def _alike(one: object, other: object) -> bool:
    """Return whether leaves at the same place of two batches are the same thing, or tensors that differ in values only.

    Two plain wires count as the same.
    """
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return (one.shape, one.dtype, one.device) == (other.shape, other.dtype, other.device)
    return one is other or type(one) is type(other) is Wire
