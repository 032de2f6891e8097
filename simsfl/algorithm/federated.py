"""One step of federated learning without a split: each client has the whole network, and a loss of its own.

These are the paper's baselines. FL-MoCo is MoCo (He et al., CVPR 2020) on each client, with a key queue of its own.
FL-BYOL is BYOL (Grill et al., NeurIPS 2020) on each client; it becomes FedEMA (Zhuang et al., ICLR 2022) where clients
mix the average with their own models (``--divergence-tau``). Averaging and the stacking of clients are as for MocoSFL.

Names of tensors end in their shape: C clients in the cohort, B images each, N = C*B, D outputs per image (for BYOL the
projection and the prediction side by side), P parameters and S running statistics of a client, 3HH an image.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from simsfl.algorithm import clients, server
from simsfl.algorithm.batch import Batch, Clock, Hyperparameters, Outcome, untimed
from simsfl.algorithm.state import KeyQueue, State
from simsfl.kernels import ema_, info_nce, sgd_, tie_width
from simsfl.models import SplitModel

_Objective = Callable[[Tensor, Tensor, KeyQueue, float], tuple[Tensor, Tensor]]
"""Function of the outputs ``[C, B, D]`` of the online models for one view and of the momentum models for the other, the
key queues, and the temperature. It returns two scalars, the mean loss of all images and the accuracy in percent."""


def _local_step(
    objective: _Objective,
    model: SplitModel,
    state: State,
    batch: Batch,
    hyper: Hyperparameters,
    clock: Clock = untimed,
) -> Outcome:
    """Train every client of the cohort on its own batch, in place; the server has nothing to do.

    Args:
        objective: the loss of one direction.
        model: a network whose client half is all of it.
        batch: images of a single group: all clients have the same batch size.
        clock: called with the phases "data", "client forward" and "client backward".
    """
    cohort = state.cohort
    (pixels,), (parameters,) = batch.pixels, batch.views
    directions = [(0, 1), (1, 0)] if hyper.symmetric else [(0, 1)]

    with clock("data"):
        views_2CB3HH = batch.images.augmented(pixels, parameters, cohort.online.dtype)

    def encode(models_CP: Tensor, statistics_CS: Tensor, view: int) -> Tensor:
        outputs = clients.forward(model.client, models_CP, statistics_CS, [views_2CB3HH[view]], hyper.chunk)
        return torch.cat(outputs).to(cohort.online.dtype)

    with clock("client forward"), hyper.autocast(cohort.online.device):
        ema_(cohort.momentum, cohort.online, hyper.tau)
        onlines_CBD = [encode(cohort.online, cohort.online_statistics, query) for query, _ in directions]
        with torch.no_grad():
            targets_CBD = [encode(cohort.momentum, cohort.momentum_statistics, key) for _, key in directions]

    with clock("client backward"):
        losses, top1s = zip(
            *(
                objective(online_CBD, target_CBD, state.queue, hyper.temperature)
                for online_CBD, target_CBD in zip(onlines_CBD, targets_CBD, strict=True)
            ),
            strict=True,
        )
        loss = sum(losses)
        if hyper.clients_learn:
            # times C: each client descends the mean over its own images, not its share of the cohort's mean
            (gradient_CP,) = torch.autograd.grad(len(pixels) * loss, cohort.online)
            sgd_(cohort.online, gradient_CP, cohort.velocity, batch.client_lr, hyper.momentum, hyper.weight_decay)
        for keys_CBD in reversed(targets_CBD):  # the keys of the first view are written first
            if state.queue.keys.shape[1]:
                server.enqueue_(state.queue, F.normalize(keys_CBD.flatten(0, 1), dim=1), hyper.batches)

    nothing = cohort.online.new_empty(0)
    return Outcome(loss.detach(), sum(top1s) / len(top1s), nothing, nothing)


def _contrast(online_CBD: Tensor, target_CBD: Tensor, queue: KeyQueue, temperature: float) -> tuple[Tensor, Tensor]:
    """Return MoCo's loss, InfoNCE against the keys that the client itself has made, and its accuracy in percent."""
    query_ND, key_ND = (F.normalize(output.flatten(0, 1), dim=1) for output in (online_CBD, target_CBD))
    return info_nce(query_ND, key_ND, queue.keys, temperature)


def _predict(online_CBD: Tensor, target_CBD: Tensor, queue: KeyQueue, temperature: float) -> tuple[Tensor, Tensor]:
    """Return BYOL's loss, between the prediction from one view and the momentum model's projection of the other.

    The accuracy is the percentage of images whose own projection is nearer than all others in the client's batch.

    Args:
        online_CBD: projection and prediction, side by side; the prediction is used.
        target_CBD: projection and prediction of the momentum models, of which the projection is used.
        queue: not used.
        temperature: not used.
    """
    _, prediction_CBD = F.normalize(online_CBD.unflatten(2, (2, -1)), dim=3).unbind(dim=2)
    projection_CBD, _ = F.normalize(target_CBD.unflatten(2, (2, -1)), dim=3).unbind(dim=2)
    cosine_CBB = prediction_CBD @ projection_CBD.transpose(1, 2)
    own_CB = cosine_CBB.diagonal(dim1=1, dim2=2)
    own_BB = torch.eye(own_CB.shape[1], dtype=torch.bool, device=own_CB.device)
    rival_CB = cosine_CBB.masked_fill(own_BB, -torch.inf).amax(dim=2)
    top1 = 100.0 * (own_CB - rival_CB > tie_width(projection_CBD)).to(own_CB.dtype).mean()
    return (2.0 - 2.0 * own_CB).mean(), top1


moco_step = partial(_local_step, _contrast)
"""The step of FL-MoCo; see `simsfl.algorithm.step.train_step` for its arguments."""
byol_step = partial(_local_step, _predict)
"""The step of FL-BYOL; see `simsfl.algorithm.step.train_step` for its arguments."""
