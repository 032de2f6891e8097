"""One step of federated learning without a split: each client has the whole network, and a loss of its own.

These are the paper's baselines. FL-MoCo is MoCo (He et al., CVPR 2020) on each client, with a key queue of its own.
FL-BYOL is BYOL (Grill et al., NeurIPS 2020) on each client; it becomes FedEMA (Zhuang et al., ICLR 2022) where clients
mix the average with their own models (``--divergence-tau``). Averaging and the stacking of clients are as for MocoSFL.

Names of tensors end in their shape: C clients in the cohort, B images each, D outputs per image, P parameters and S
running statistics of a client, 3HH an image.
"""

from __future__ import annotations

import torch
from torch import Tensor

from simsfl.algorithm import clients
from simsfl.algorithm.batch import Batch, Clock, Hyperparameters, Outcome, untimed
from simsfl.algorithm.gathering import put_back_, rows_before
from simsfl.algorithm.state import State
from simsfl.config.catalogue import Targets
from simsfl.kernels import ema_
from simsfl.models import SplitModel
from simsfl.objectives import let_remember_


def train_step(
    model: SplitModel, state: State, batch: Batch, hyper: Hyperparameters, clock: Clock = untimed
) -> Outcome:
    """Train every client of the cohort on its own batch, in place; the server has nothing to do.

    Args:
        model: a network whose client half is all of it.
        state: what is trained; `state.cohort` has the clients of this round.
        batch: images of a single group: all clients have the same batch size.
        hyper: the objective, and how it is computed.
        clock: called with the phases "data", "client forward" and "client backward".
    """
    cohort, before = state.cohort, rows_before(state, batch.absent)
    (pixels,), (parameters,) = batch.pixels, batch.views

    with clock("data"):
        views_2CB3HH = batch.images.augmented(pixels, parameters, cohort.online.dtype)

    def encode(models_CP: Tensor, statistics_CS: Tensor, view: int) -> Tensor:
        outputs = clients.forward(model.client, models_CP, statistics_CS, [views_2CB3HH[view]], hyper.chunk)
        return torch.cat(outputs).to(cohort.online.dtype)

    with clock("client forward"), hyper.autocast(cohort.online.device):
        ema_(cohort.momentum, cohort.online, hyper.tau)
        first_CBD = encode(cohort.online, cohort.online_statistics, 0)
        pairs = []
        if hyper.targets is Targets.LABELS:
            pairs.append((first_CBD, batch.labels[0]))
        if hyper.targets is Targets.ONLINE:
            pairs.append((first_CBD, encode(cohort.online, cohort.online_statistics, 1)))
        if hyper.targets is Targets.MOMENTUM:
            outputs_CBD = [first_CBD]
            if hyper.symmetric:
                outputs_CBD.append(encode(cohort.online, cohort.online_statistics, 1))
            with torch.no_grad():
                targets_CBD = [
                    encode(cohort.momentum, cohort.momentum_statistics, 1 - query) for query in range(len(outputs_CBD))
                ]
            pairs += zip(outputs_CBD, targets_CBD, strict=True)

    with clock("client backward"):
        there = slice(None)
        if batch.absent:
            there = [position for position in range(len(pixels)) if position not in batch.absent]
        memory = {name: one[there] for name, one in state.memory.items()}
        if hyper.labels:
            memory["labels"] = batch.labels[0][there]
        if there:
            results = [hyper.objective.losses(own_CBD[there], targets[there], memory) for own_CBD, targets in pairs]
        else:  # all clients of this rank are absent
            results = [(0.0 * cohort.online.sum(), cohort.online.new_zeros(()))]
        loss = sum(loss for loss, _ in results)
        if hyper.clients_learn:
            # times clients: each descends the mean over its own images, not its share of the cohort's mean
            (gradient_CP,) = torch.autograd.grad((len(pixels) - len(batch.absent)) * loss, cohort.online)
            clients.descend_(model.client, state, gradient_CP, batch.client_lr, hyper)
        for _, targets in reversed(pairs):  # those of the first view are remembered first
            let_remember_(hyper.objective, state.memory, targets.detach())
        put_back_(before, batch.absent)

    nothing = cohort.online.new_empty(0)
    top1 = sum(top1 for _, top1 in results) / len(results)
    loss, top1 = _of_all_ranks(loss.detach(), top1, batch)
    return Outcome(loss, top1, nothing, nothing, absent=batch.absent)


def _of_all_ranks(loss: Tensor, top1: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return means over the rows of all ranks, given those over this rank's rows."""
    if batch.everyone is None:
        return loss, top1
    everyone = batch.everyone
    figures = torch.stack([loss, top1.to(loss)]) * (everyone.counts[everyone.world.rank] / everyone.rows)
    everyone.world.sum_(figures)
    return figures[0], figures[1]
