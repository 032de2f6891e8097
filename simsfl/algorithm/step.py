"""One MocoSFL step, as one batched program over the cohort (Li et al., ICLR 2023, algorithm 1).

`train_step` is the whole step, and the place to start reading.

Names of tensors end in their shape: C clients in the cohort, B images each, N = C*B, D key dimension, P client
parameters, 3HW an image, chw its smashed data. Clients may have different batch sizes. Names that end in CB... are
therefore lists, with a tensor ``[C', B', ...]`` for each group of clients that share a batch size, or for each chunk of
such a group; all of them together have N images.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from simsfl.algorithm import clients, server
from simsfl.algorithm.batch import Batch, Clock, Everyone, Hyperparameters, Outcome, untimed
from simsfl.algorithm.gathering import put_back_, rows_before
from simsfl.algorithm.state import State
from simsfl.algorithm.wire import NOBODY
from simsfl.config.catalogue import Targets
from simsfl.kernels import ema_
from simsfl.models import SplitModel
from simsfl.optimisers import take_step_

_Learnt = tuple[Tensor, Tensor, Tensor]
"""Results of the server's part of a step: scalar loss, scalar accuracy in percent, and the gradient with respect to the
activations of the online models, ``[N, c, h, w]``, or ``[2N, c, h, w]`` where both views are theirs."""


def train_step(
    model: SplitModel, state: State, batch: Batch, hyper: Hyperparameters, clock: Clock = untimed
) -> Outcome:
    """Train the cohort's clients and the server on one batch, in place (Li et al., ICLR 2023, algorithm 1).

    1. The clients make two views of each of their images.
    2. Their online models turn the first view into query activations.
    3. Their momentum models move towards the online models, and turn the second view into key activations.
    4. The clients send both. The server concatenates them, computes the loss of the objective, updates its models and
       what the objective remembers, such as the key queue (`learn_`), and sends each client the gradient of its own
       query activations.
    5. With defences, each client changes this gradient, or adds one of its own, such as one that makes the
       reconstructions of a simulated attacker worse (TAResSFL).
    6. The clients backpropagate the gradient through their online models, and descend.

    Where an objective compares the two views by the online models alone (`Targets.ONLINE`), these make the key
    activations as well, and clients learn from both. With labels there are no key activations. Clients that do not
    learn (`hyper.clients_learn`) skip 5 and 6.

    Args:
        model: halves of the network.
        state: what is trained; `state.cohort` has the clients of this round.
        clock: called with the phases "data", "client forward", "server", "attackers" and "client backward".
    """
    cohort, before = state.cohort, rows_before(state, batch.absent)
    autocast, draws = hyper.autocast(cohort.online.device), batch.draws()

    with clock("data"):
        views = [
            batch.images.augmented(pixels, parameters, cohort.online.dtype)
            for pixels, parameters in zip(batch.pixels, batch.views, strict=True)
        ]
        query_CB3HW, key_CB3HW = zip(*views, strict=True)

    online, momentum = (cohort.online, cohort.online_statistics), (cohort.momentum, cohort.momentum_statistics)
    with clock("client forward"), autocast:
        with nullcontext() if hyper.clients_learn else torch.no_grad():
            graded_CBchw = clients.forward(model.client, *online, query_CB3HW, hyper.chunk)
            if hyper.targets is Targets.ONLINE:
                graded_CBchw += clients.forward(model.client, *online, key_CB3HW, hyper.chunk)
            graded_CBchw = clients.protected(graded_CBchw, hyper.defence, draws)
        ema_(cohort.momentum, cohort.online, hyper.tau)
        key_CBchw = []
        if hyper.targets is Targets.MOMENTUM:
            with torch.no_grad():
                key_CBchw = clients.forward(model.client, *momentum, key_CB3HW, hyper.chunk)
                key_CBchw = clients.protected(key_CBchw, hyper.defence, draws, start=sum(hyper.batches))

    with clock("server"):
        smashed_2Nchw, absent = batch.wire.up(_cut([*graded_CBchw, *key_CBchw], hyper.precision))
        absent = batch.absent.union(absent) if batch.absent else absent
        del key_CBchw  # the server's passes need the memory
        labels_N = None if batch.labels is None else torch.cat([labels.flatten() for labels in batch.labels])
        told = labels_N, absent, batch.everyone
        loss, top1, gradient_Nchw = learn_(model, state, smashed_2Nchw, batch.server_lr, hyper, *told)

    gradient_Nchw = batch.wire.down(gradient_Nchw)
    figures: tuple[Tensor, ...] = ()
    if hyper.clients_learn and hyper.defence:
        with clock(hyper.defence.phase):
            seen_CB3HW = [*query_CB3HW, *key_CB3HW] if hyper.targets is Targets.ONLINE else query_CB3HW
            images_CB3HW = [batch.images.restore(images) for images in seen_CB3HW]
            how = state.remembered, hyper.defence, draws, batch.round_index
            gradient_Nchw, figures = clients.defended(gradient_Nchw, images_CB3HW, smashed_2Nchw, *how)

    if hyper.clients_learn:
        with clock("client backward"):
            gradient_CP = clients.backward(cohort.online, graded_CBchw, gradient_Nchw)
            if hyper.defence.learns:
                gradient_CP = hyper.defence.learn(gradient_CP, batch.draws_of_clients())
            clients.descend_(model.client, state, gradient_CP, batch.client_lr, hyper)

    put_back_(before, batch.absent)
    return Outcome(loss, top1, smashed_2Nchw, gradient_Nchw, figures, absent)


def learn_(
    model: SplitModel,
    state: State,
    smashed_2Nchw: Tensor,
    server_lr: Tensor,
    hyper: Hyperparameters,
    labels_N: Tensor | None = None,
    absent: Collection[int] = NOBODY,
    everyone: Everyone | None = None,
) -> _Learnt:
    """Do the server's part of a step, in place, and return its loss and accuracy, and the gradient for the clients.

    The momentum model moves towards the online one, the loss is computed against the memory (such as the key queue) as
    it was before this step, the online model descends, and the objective remembers the new targets. Each replica of the
    server, if there are several, does this with its own part of the cohort.

    Args:
        smashed_2Nchw: activations that arrived, those of the queries before those of the keys; with labels only the
            former, N rows.
        server_lr: scalar learning rate.
        labels_N: class of each image where the objective needs labels, otherwise None.
        absent: positions of clients whose rows are not used; their gradient is 0.
        everyone: rows of each rank, each of which has a part of the cohort, and learns the same; None in a single
            process.
    """
    if absent:
        return _learn_without_(model, state, smashed_2Nchw, server_lr, hyper, labels_N, absent, everyone)
    if state.replicas:
        return _learn_in_replicas_(model, state, smashed_2Nchw, server_lr, hyper, labels_N)
    central = state.server
    ema_(central.momentum, central.online, hyper.tau)
    found = server.gradients(model.server, central, smashed_2Nchw, state.memory, hyper, labels_N, everyone)
    take_step_(hyper.optimiser, model.server, central.online, found.parameters, central.velocity, server_lr)
    server.remember_(state.memory, found.targets, hyper)
    return found.loss, found.top1, found.smashed


def _learn_in_replicas_(
    model: SplitModel,
    state: State,
    smashed_2Nchw: Tensor,
    server_lr: Tensor,
    hyper: Hyperparameters,
    labels_N: Tensor | None,
) -> _Learnt:
    """Do what `learn_` does in each replica of the server, with the rows of its own clients.

    These are the first clients of the cohort in the first replica, the next as many in the second one, and so on. The
    loss of a replica, and so the gradient for its clients, is a mean over its own rows. The loss and accuracy that are
    returned are means over all rows. A replica without rows, whose clients are all absent, stays as it is.
    """
    rows, clients, start = sum(hyper.batches), len(hyper.batches) // len(state.servers), 0
    loss, top1, gradients = 0.0, 0.0, []
    for number in range(len(state.servers)):
        batches = hyper.batches[number * clients : (number + 1) * clients]
        own = slice(start, start := start + sum(batches))
        if own.start == own.stop:
            continue
        part, labels_n = _rows_of_views(smashed_2Nchw, rows, own), None if labels_N is None else labels_N[own]
        apart = replace(hyper, batches=batches)
        own_loss, own_top1, gradient = learn_(model, state.of_replica(number), part, server_lr, apart, labels_n)
        share = sum(batches) / rows
        loss, top1 = loss + share * own_loss, top1 + share * own_top1
        gradients.append(gradient.unflatten(0, (-1, sum(batches))))
    return loss, top1, torch.cat(gradients, dim=1).flatten(0, 1)


def _learn_without_(
    model: SplitModel,
    state: State,
    smashed_2Nchw: Tensor,
    server_lr: Tensor,
    hyper: Hyperparameters,
    labels_N: Tensor | None,
    absent: Collection[int],
    everyone: Everyone | None,
) -> _Learnt:
    """Do what `learn_` does with the rows of those clients that are not absent; the others' gradient is 0."""
    batches = tuple(0 if client in absent else rows for client, rows in enumerate(hyper.batches))
    there_N = torch.tensor([client not in absent for client, rows in enumerate(hyper.batches) for _ in range(rows)])
    rows_n = there_N.nonzero().flatten().to(smashed_2Nchw.device)
    smashed_2nchw = _rows_of_views(smashed_2Nchw, len(there_N), rows_n)
    labels_n = None if labels_N is None else labels_N[rows_n]
    without = replace(hyper, batches=batches)
    loss, top1, gradient_nchw = learn_(model, state, smashed_2nchw, server_lr, without, labels_n, NOBODY, everyone)
    graded = 2 if hyper.targets is Targets.ONLINE else 1
    gradient_Nchw = torch.zeros_like(smashed_2Nchw[: graded * len(there_N)])
    gradient_Nchw.unflatten(0, (graded, -1))[:, rows_n] = gradient_nchw.unflatten(0, (graded, -1))
    return loss, top1, gradient_Nchw


def _rows_of_views(smashed_2Nchw: Tensor, count: int, rows: Tensor | slice) -> Tensor:
    """Return some rows of each view of smashed data, in which a view has `count` rows."""
    return smashed_2Nchw.unflatten(0, (-1, count))[:, rows].flatten(0, 1)


def _cut(smashed_CBchw: Sequence[Tensor], precision: torch.dtype) -> Tensor:
    """Return what crosses the wire: smashed data of all clients, one row per image, detached from the clients' graph.

    Args:
        smashed_CBchw: ``[C', B', c, h, w]`` of each chunk of clients.
        precision: dtype of the result.
    """
    return torch.cat([chunk.detach().flatten(0, 1).to(precision) for chunk in smashed_CBchw])
