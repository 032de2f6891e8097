"""A training step recorded once as a CUDA graph, then replayed: one launch from the host instead of thousands."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from simsfl.algorithm.state import State
from simsfl.algorithm.step import Batch, Clock, Hyperparameters, Outcome
from simsfl.algorithm.wire import Wire
from simsfl.kernels.gpu import fastest_convolutions
from simsfl.models import SplitModel

WARM_UP = 3
"""Steps before recording: libraries allocate and choose in the first ones."""

log = logging.getLogger(__name__)


class Graph(Protocol):
    """What can record the operations on a device that a function launches, and launch them again without it."""

    def warm_up(self, function: Callable[[], object]) -> None:
        """Call the function once, as is needed before `record`."""

    def record(self, function: Callable[[], Outcome]) -> Outcome:
        """Call the function once and record what it launches, which may or may not be carried out.

        The result's tensors are where each `replay` puts its own. A RuntimeError says that it cannot be recorded.
        """

    def replay(self) -> None:
        """Carry out what was recorded, on the tensors it was recorded with; no Python of the function is run."""


class CudaGraph:
    """A `Graph` on the current CUDA device."""

    def __init__(self):
        self._graph = torch.cuda.CUDAGraph()

    def warm_up(self, function: Callable[[], object]) -> None:
        """Call the function once, on a stream of its own, as recording does (see `Graph`)."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), fastest_convolutions():
            function()
        torch.cuda.current_stream().wait_stream(stream)

    def record(self, function: Callable[[], Outcome]) -> Outcome:
        """See `Graph`. What other threads do meanwhile is no part of it, and does not end it."""
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"), fastest_convolutions():
            return function()

    def replay(self) -> None:
        """See `Graph`."""
        self._graph.replay()


@dataclass(frozen=True)
class _Recording:
    """A recorded step, and what it was recorded with: all but the values of tensors stays in it as it was then."""

    graph: Graph
    model: SplitModel
    state: State
    inputs: list[object]
    """Leaves of the batch it was recorded with; its tensors are the recording's own, and others are copied to them."""
    outcome: Outcome

    def suits(self, model: SplitModel, state: State, leaves: list[object]) -> bool:
        """Whether a step on a batch of these leaves differs from the recorded one in values of their tensors alone."""
        return (
            (model is self.model and state is self.state)
            and len(leaves) == len(self.inputs)
            and all(_alike(own, new) for own, new in zip(self.inputs, leaves, strict=True))
        )


class CapturedStep:
    """A training step that is recorded the first time, then replayed; or carried out as it is where it has to be.

    It has to be where Python has a part in it: where the batch's wire is not the plain one, or where something other
    than the values of the batch's tensors is not as it was when the step was recorded, such as their shapes, the
    images or the state. A warning gives the first reason. There is a recording for each of the hyperparameters it is
    called with.

    Args:
        train_step: such as `simsfl.algorithm.step.train_step`.
        graph: makes what records it.

    Attributes:
        recordings: by hyperparameters.
        capture_seconds: spent on recording so far, with the steps that warm up.
    """

    def __init__(self, train_step: Callable[..., Outcome], graph: Callable[[], Graph] = CudaGraph):
        self.train_step, self.graph = train_step, graph
        self.recordings: dict[Hyperparameters, _Recording] = {}
        self.capture_seconds = 0.0
        self._problem = ""
        self._warned = False

    def __call__(self, model: SplitModel, state: State, batch: Batch, hyper: Hyperparameters, clock: Clock) -> Outcome:
        """See `simsfl.algorithm.step.train_step`. The result may be overwritten by the next call."""
        arguments = model, state, batch, hyper, clock
        if type(batch.wire) is not Wire:
            return self.eager("what is between clients and server takes part in them", *arguments)
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
        """Carry out a step as it is, and warn of the reason if it is the first."""
        if not self._warned:
            log.warning("steps are not replayed as a CUDA graph, and take longer: %s", reason)
            self._warned = True
        return self.train_step(model, state, batch, hyper, clock)

    def _record(self, model: SplitModel, state: State, batch: Batch, hyper: Hyperparameters) -> None:
        """Warm up, which trains, record, and put the state back."""
        inputs, graph = batch.map(torch.clone), self.graph()
        untouched = ("clients.", "sent.") if state.queue is state.queues else ("clients.", "sent.", "queues.")
        trained = {name: tensor for name, tensor in state.tensors().items() if not name.startswith(untouched)}
        before = {name: tensor.clone() for name, tensor in trained.items()}
        for _ in range(WARM_UP):
            graph.warm_up(lambda: self.train_step(model, state, inputs, hyper))
        try:
            outcome = graph.record(lambda: self.train_step(model, state, inputs, hyper))
            self.recordings[hyper] = _Recording(graph, model, state, inputs.leaves(), outcome)
        except RuntimeError as error:
            self._problem = str(error).partition("\n")[0]
        for name, tensor in trained.items():
            tensor.copy_(before[name])


def _alike(one: object, other: object) -> bool:
    """Whether two things that batches hold at the same place are the same but for the values of tensors."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return (one.shape, one.dtype, one.device) == (other.shape, other.dtype, other.device)
    return one is other or type(one) is type(other) is Wire
