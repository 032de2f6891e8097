"""One MocoSFL step, as one batched program over the cohort (Li et al., ICLR 2023, algorithm 1).

Shapes: C clients in the cohort, B images each, N = C*B, P client parameters, D key dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from simsfl import augment, clients, server
from simsfl.augment import ViewParameters
from simsfl.data import Images
from simsfl.kernels import ema_, sgd_
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
        query_images, key_images = augment.apply(batch.images, batch.indices, batch.views, cohort.online.dtype)

    with clock("client forward"), autocast:
        smashed = clients.forward(model.client, cohort.online, query_images)
        ema_(cohort.momentum, cohort.online, hyper.tau)
        with torch.no_grad():
            key = clients.forward(model.client, cohort.momentum, key_images)

    with clock("server"):
        query = cut(smashed, hyper).requires_grad_()
        key = cut(key, hyper)
        ema_(central.momentum, central.online, hyper.tau)
        with autocast:
            queries, keys = server.project(model.server, central, query, key, symmetric=hyper.symmetric)
        loss, top1 = server.contrast(queries, keys, state.queue, hyper.temperature)
        query_gradient, server_gradient = torch.autograd.grad(loss, (query, central.online))
        sgd_(
            central.online,
            server_gradient,
            central.velocity,
            batch.server_lr,
            hyper.momentum,
            hyper.weight_decay,
        )
        for direction in reversed(keys):  # those of the query activations first
            server.enqueue_(state.queue, direction)

    with clock("client backward"):
        gradient = clients.backward(cohort.online, smashed, query_gradient.view(smashed.shape).to(smashed.dtype))
        sgd_(cohort.online, gradient, cohort.velocity, batch.client_lr, hyper.momentum, hyper.weight_decay)

    return loss.detach(), top1


def cut(smashed: Tensor, hyper: Hyperparameters) -> Tensor:
    """What crosses the wire: ``[C, B, c, h, w]`` -> ``[N, c, h, w]``, off the clients' graph."""
    return smashed.detach().flatten(0, 1).to(hyper.precision)
