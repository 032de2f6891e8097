"""A training step recorded once as a CUDA graph, then replayed: one launch from the host instead of thousands."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from simsfl.models import SplitModel
from simsfl.state import State
from simsfl.step import Batch, Clock, Hyperparameters, Outcome

WARM_UP = 3
"""Steps before recording: libraries allocate and choose in the first ones."""

log = logging.getLogger(__name__)


class CapturedStep:
    """A training step as a CUDA graph, or as it is where it cannot be recorded.

    Args:
        train_step: such as `simsfl.step.train_step`.

    All calls must be with the same model and state, and batches of the same shapes: a graph reads and writes the
    state's tensors where they lie, and batches are copied to where the first one was. There is a graph for each of the
    hyperparameters it is called with.
    """

    def __init__(self, train_step: Callable[..., Outcome]):
        self.train_step = train_step
        self.graphs: dict[Hyperparameters, tuple[torch.cuda.CUDAGraph, Batch, Outcome]] = {}
        self.failed = False

    def __call__(self, model: SplitModel, state: State, batch: Batch, hyper: Hyperparameters, clock: Clock) -> Outcome:
        """See `simsfl.step.train_step`. The result is overwritten by the next call."""
        if hyper not in self.graphs and not self.failed:
            self._record(model, state, batch, hyper)
        if self.failed:
            return self.train_step(model, state, batch, hyper, clock)
        graph, first, outcome = self.graphs[hyper]
        with clock("step"):
            for mine, new in zip(tensors_of(first), tensors_of(batch), strict=True):
                mine.copy_(new)
            graph.replay()
        return outcome

    def _record(self, model: SplitModel, state: State, batch: Batch, hyper: Hyperparameters) -> None:
        """Warm up, which trains, put the state back, and record."""
        batch = replace(
            batch,
            pixels=[pixels.clone() for pixels in batch.pixels],
            views=[views.map(torch.clone) for views in batch.views],
            server_lr=batch.server_lr.clone(),
            client_lr=batch.client_lr.clone(),
            labels=batch.labels and [labels.clone() for labels in batch.labels],
        )
        untouched = ("clients.", "sent.") if state.queue is state.queues else ("clients.", "sent.", "queues.")
        trained = {name: tensor for name, tensor in state.tensors().items() if not name.startswith(untouched)}
        before = {name: tensor.clone() for name, tensor in trained.items()}
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self.train_step(model, state, batch, hyper)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                outcome = self.train_step(model, state, batch, hyper)
            self.graphs[hyper] = graph, batch, outcome
        except RuntimeError as error:
            log.warning("steps are not replayed as a CUDA graph (%s)", str(error).partition("\n")[0])
            self.failed = True
        for name, tensor in trained.items():
            tensor.copy_(before[name])


def tensors_of(batch: Batch) -> list[Tensor]:
    """What differs from batch to batch."""
    views = [tensor for group in batch.views for tensor in vars(group).values()]
    return [*batch.pixels, *views, batch.server_lr, batch.client_lr, *(batch.labels or [])]
