"""One MocoSFL step, as one batched program over the cohort (Li et al., ICLR 2023, algorithm 1).

Names of tensors end in their shape: C clients in the cohort, B images each, N = C*B, D key dimension, K queue
length, P client parameters, chw the smashed data of one image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from simsfl import clients, server
from simsfl.data import Images
from simsfl.kernels import ViewParameters, ema_, sgd_
from simsfl.models import SplitModel
from simsfl.state import State

Clock = Callable[[str], AbstractContextManager[object]]
"""Called with a phase's name; the time inside the context belongs to that phase."""


@dataclass(frozen=True)
class Batch:
    """What the cohort trains on in one step; everything random about it is already drawn."""

    images: Images
    """All training images."""
    indices: Tensor
    """``[C, B]`` int64 rows of `images`."""
    views: ViewParameters
    """Parameters of ``[2, C, B]`` views: the queries', then the keys'."""
    server_lr: Tensor
    """Scalar."""
    client_lr: Tensor
    """``[C, 1]``."""


@dataclass(frozen=True)
class Hyperparameters:
    """What stays the same from step to step; see `RunConfig` for each."""

    temperature: float
    symmetric: bool
    tau: float
    momentum: float
    weight_decay: float
    precision: torch.dtype = torch.float32
    """Dtype on the wire, and in bfloat16 of the forward passes; the state keeps its own."""
    chunk: int | None = None
    """Clients that are run together, None for all. How fast it goes depends on it, not what comes of it."""
    block: int | None = None
    """The same of the server: rows of smashed data."""

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        """Mixed precision where `precision` asks for it."""
        if self.precision == torch.bfloat16:
            return torch.autocast(device.type, self.precision)
        return nullcontext()


def untimed(phase: str) -> AbstractContextManager[object]:
    """The clock of those who do not ask."""
    return nullcontext()


def train_step(
    model: SplitModel, state: State, batch: Batch, hyper: Hyperparameters, clock: Clock = untimed
) -> tuple[Tensor, Tensor]:
    """Train cohort and server on one batch, in place.

    Returns:
        The scalar loss and contrastive accuracy (percent), still on the device.
    """
    cohort, central = state.cohort, state.server
    autocast = hyper.autocast(cohort.online.device)

    with clock("data"):
        query_CB3HW, key_CB3HW = batch.images.augmented(batch.indices, batch.views, cohort.online.dtype)

    with clock("client forward"), autocast:
        queries = clients.forward(model.client, cohort.online, query_CB3HW, hyper.chunk)
        ema_(cohort.momentum, cohort.online, hyper.tau)
        with torch.no_grad():
            keys = clients.forward(model.client, cohort.momentum, key_CB3HW, hyper.chunk)

    with clock("server"):
        smashed_2Nchw = cut([*queries, *keys], hyper.precision)
        del keys  # they are large
        ema_(central.momentum, central.online, hyper.tau)
        lesson = server.contrast(
            model.server,
            central,
            smashed_2Nchw,
            state.queue,
            hyper.temperature,
            symmetric=hyper.symmetric,
            block=hyper.block,
            autocast=autocast,
        )
        sgd_(
            central.online,
            lesson.gradient,
            central.velocity,
            batch.server_lr,
            hyper.momentum,
            hyper.weight_decay,
        )
        for keys_ND in lesson.keys:
            server.enqueue_(state.queue, keys_ND)

    with clock("client backward"):
        gradient_CP = clients.backward(cohort.online, queries, lesson.smashed_gradient)
        sgd_(cohort.online, gradient_CP, cohort.velocity, batch.client_lr, hyper.momentum, hyper.weight_decay)

    return lesson.loss, lesson.top1


def cut(smashed: Sequence[Tensor], precision: torch.dtype) -> Tensor:
    """What crosses the wire: ``[C', B, c, h, w]`` each -> ``[2N, c, h, w]``, off the clients' graph."""
    return torch.cat([chunk.detach().flatten(0, 1).to(precision) for chunk in smashed])
