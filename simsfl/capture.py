"""A training step recorded once as a CUDA graph, then replayed: one launch from the host instead of thousands."""

from __future__ import annotations

import logging
from dataclasses import replace

import torch
from torch import Tensor

from simsfl.models import SplitModel
from simsfl.state import State
from simsfl.step import Batch, Clock, Hyperparameters, train_step

WARM_UP = 3
"""Steps before recording: libraries allocate and choose in the first ones."""

log = logging.getLogger(__name__)


class CapturedStep:
    """`simsfl.step.train_step` as a CUDA graph, or as it is where it cannot be recorded.

    All calls must be with the same model, state and hyperparameters, and batches of the same shapes: the graph reads
    and writes the state's tensors where they lie, and batches are copied to where the first one was.
    """

    def __init__(self) -> None:
        self.graph: torch.cuda.CUDAGraph | None = None
        self.failed = False

    def __call__(
        self, model: SplitModel, state: State, batch: Batch, hyper: Hyperparameters, clock: Clock
    ) -> tuple[Tensor, Tensor]:
        """See `simsfl.step.train_step`. The result is overwritten by the next call."""
        if self.graph is None and not self.failed:
            self._record(model, state, batch, hyper)
        if self.failed:
            return train_step(model, state, batch, hyper, clock)
        with clock("step"):
            for mine, new in zip(tensors_of(self.batch), tensors_of(batch), strict=True):
                mine.copy_(new)
            self.graph.replay()
        return self.result

    def _record(self, model: SplitModel, state: State, batch: Batch, hyper: Hyperparameters) -> None:
        """Warm up, which trains, put the state back, and record."""
        self.batch = replace(
            batch,
            indices=batch.indices.clone(),
            views=batch.views.map(torch.clone),
            server_lr=batch.server_lr.clone(),
            client_lr=batch.client_lr.clone(),
        )
        trained = {name: t for name, t in state.tensors().items() if not name.startswith("clients.")}
        before = {name: tensor.clone() for name, tensor in trained.items()}
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                train_step(model, state, self.batch, hyper)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self.result = train_step(model, state, self.batch, hyper)
            self.graph = graph
        except RuntimeError as error:
            log.warning("steps are not replayed as a CUDA graph (%s)", str(error).partition("\n")[0])
            self.failed = True
        for name, tensor in trained.items():
            tensor.copy_(before[name])


def tensors_of(batch: Batch) -> list[Tensor]:
    """What differs from batch to batch."""
    return [batch.indices, *vars(batch.views).values(), batch.server_lr, batch.client_lr]
