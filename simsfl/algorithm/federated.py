"""One step of federated learning as it was before the network was split: each client has all of it, and its own loss.

The baselines of the paper: FL-MoCo (He et al., CVPR 2020, on each client, with a queue of its own), and FL-BYOL
(Grill et al., NeurIPS 2020), which is FedEMA (Zhuang et al., ICLR 2022) once clients mix the average with their own
models (``--divergence-tau``). What is averaged when, and how clients are stacked, is the same as for MocoSFL.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from simsfl.algorithm import clients, server
from simsfl.algorithm.state import KeyQueue, State
from simsfl.algorithm.step import Batch, Clock, Hyperparameters, Outcome, untimed
from simsfl.kernels import ema_, info_nce, sgd_
from simsfl.models import SplitModel

Objective = Callable[[Tensor, Tensor, KeyQueue, float], tuple[Tensor, Tensor]]
"""Outputs ``[C, B, D]`` of online and momentum models for two views, queues, temperature: mean loss, accuracy."""


def local_step(
    objective: Objective,
    model: SplitModel,
    state: State,
    batch: Batch,
    hyper: Hyperparameters,
    clock: Clock = untimed,
) -> Outcome:
    """Train every client of the cohort on its own batch, in place. The server has nothing to do.

    Args:
        model: its client's half is the whole network.
    """
    cohort = state.cohort
    (pixels,), (parameters,) = batch.pixels, batch.views
    directions = [(0, 1), (1, 0)] if hyper.symmetric else [(0, 1)]

    with clock("data"):
        views = batch.images.augmented(pixels, parameters, cohort.online.dtype)

    def encode(models_CP: Tensor, statistics_CS: Tensor, view: int) -> Tensor:
        outputs = clients.forward(model.client, models_CP, statistics_CS, [views[view]], hyper.chunk)
        return torch.cat(outputs).to(cohort.online.dtype)

    with clock("client forward"), hyper.autocast(cohort.online.device):
        ema_(cohort.momentum, cohort.online, hyper.tau)
        online = [encode(cohort.online, cohort.online_statistics, query) for query, _ in directions]
        with torch.no_grad():
            targets = [encode(cohort.momentum, cohort.momentum_statistics, key) for _, key in directions]

    with clock("client backward"):
        losses, top1s = zip(
            *(objective(o, t, state.queue, hyper.temperature) for o, t in zip(online, targets, strict=True)),
            strict=True,
        )
        loss = sum(losses)
        if hyper.clients_learn:
            (gradient_CP,) = torch.autograd.grad(len(pixels) * loss, cohort.online)  # of each client's own mean
            sgd_(cohort.online, gradient_CP, cohort.velocity, batch.client_lr, hyper.momentum, hyper.weight_decay)
        for keys_CBD in reversed(targets):  # those of the first view first
            if state.queue.keys.shape[1]:
                server.enqueue_(state.queue, F.normalize(keys_CBD.flatten(0, 1), dim=1), hyper.batches)

    nothing = cohort.online.new_empty(0)
    return Outcome(loss.detach(), sum(top1s) / len(top1s), nothing, nothing)


def contrast(online_CBD: Tensor, target_CBD: Tensor, queue: KeyQueue, temperature: float) -> tuple[Tensor, Tensor]:
    """MoCo's: InfoNCE against the keys that the client itself has made."""
    query_ND, key_ND = (F.normalize(output.flatten(0, 1), dim=1) for output in (online_CBD, target_CBD))
    return info_nce(query_ND, key_ND, queue.keys, temperature)


def predict(online_CBD: Tensor, target_CBD: Tensor, queue: KeyQueue, temperature: float) -> tuple[Tensor, Tensor]:
    """BYOL's: what the predictor makes of one view against the momentum model's projection of the other.

    Outputs are projection and prediction, side by side. The accuracy is how often the own projection is the nearest
    of the batch.
    """
    _, prediction_CBD = F.normalize(online_CBD.unflatten(2, (2, -1)), dim=3).unbind(dim=2)
    projection_CBD, _ = F.normalize(target_CBD.unflatten(2, (2, -1)), dim=3).unbind(dim=2)
    cosine_CBB = prediction_CBD @ projection_CBD.transpose(1, 2)
    own_CB = cosine_CBB.diagonal(dim1=1, dim2=2)
    top1 = 100.0 * (own_CB >= cosine_CBB.amax(dim=2)).to(own_CB.dtype).mean()
    return (2.0 - 2.0 * own_CB).mean(), top1.detach()


moco_step = partial(local_step, contrast)
"""FL-MoCo's step; see `simsfl.algorithm.step.train_step` for the arguments."""
byol_step = partial(local_step, predict)
"""FL-BYOL's step."""
