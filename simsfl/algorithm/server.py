"""The server's part of a step: the loss of all clients' smashed data, its gradients, and what it remembers.

Names of tensors end in their shape: N rows (images) of this rank's part of the cohort's batch, r rows of all directions
of the loss (2N if it is symmetric, otherwise N), n rows of a block, chw the smashed data of an image, D the length of
the network's output, Q parameters of the server, G groups of rows that are trained apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from simsfl.algorithm.batch import Everyone, Hyperparameters
from simsfl.algorithm.blocks import blocks, owners
from simsfl.algorithm.state import ServerState
from simsfl.config.catalogue import Targets
from simsfl.kernels import accelerated
from simsfl.models import FlatModule
from simsfl.objectives import Memory, let_remember_

_BlockLoss = Callable[[slice, Tensor], tuple[Tensor, Tensor]]
"""Function of the rows of a block and the network's output ``[n, D]`` for them. It returns the block's share of the
loss, and of the accuracy in percent (scalars)."""


@dataclass(frozen=True)
class Gradients:
    """The loss of a batch on the server, and its gradients."""

    loss: Tensor
    """Scalar loss, summed over directions."""
    top1: Tensor
    """Scalar accuracy in percent, of the objective's own kind."""
    parameters: Tensor
    """``[Q]`` gradient with respect to the server's parameters."""
    smashed: Tensor
    """``[N, c, h, w]`` gradient with respect to the activations of the online models, ``[2N, c, h, w]`` where both
    views are theirs."""
    targets: list[Tensor]
    """What outputs were compared with and the objective remembers, in each direction of the loss: targets ``[N, D]``,
    those made of the query activations first, or labels ``[N]``."""


def gradients(
    model: FlatModule,
    server: ServerState,
    smashed: Tensor,
    memory: Memory,
    hyper: Hyperparameters,
    labels_N: Tensor | None = None,
    everyone: Everyone | None = None,
) -> Gradients:
    """Compute the loss of all clients' smashed data, and its gradients (Li et al., ICLR 2023, algorithm 1).

    Where several ranks have a part of the cohort each, the loss, accuracy and gradient of parameters are those of all
    rows, and the targets of all of them, in the order of the cohort, if clients share a memory.

    Args:
        model: the server's network.
        server: its weights, which stay as they are, and its running statistics, which are updated in place.
        smashed: ``[2N, c, h, w]`` activations of both views, or with labels ``[N, c, h, w]`` of one.
        memory: what the objective remembers of earlier steps, in one group for all clients or one for each client of
            the cohort.
        hyper: the objective, and how it is computed.
        labels_N: class of each image, if the objective needs labels.
        everyone: rows of each rank; None in a single process.
    """
    smashed = model.received(smashed)
    everyone = everyone or Everyone.alone(len(smashed) // (1 if hyper.targets is Targets.LABELS else 2))
    against = {Targets.LABELS: _against_labels, Targets.ONLINE: _against_itself, Targets.MOMENTUM: _against_momentum}
    found = against[hyper.targets](model, server, smashed, labels_N, memory, hyper, everyone)
    return found if everyone.world.alone else _of_all_ranks(found, memory, hyper, everyone)


def _of_all_ranks(found: Gradients, memory: Memory, hyper: Hyperparameters, everyone: Everyone) -> Gradients:
    """Return the gradients of all rows, given what each rank has computed of them; see `gradients`."""
    figures = torch.stack([found.loss, found.top1.to(found.loss)])
    if _sees_everyone(memory, hyper):  # so that each rank has computed the same loss
        figures /= everyone.world.size
    everyone.world.sum_(found.parameters, figures)
    targets = [everyone.gather(own) for own in found.targets] if memory and hyper.shared else found.targets
    return replace(found, loss=figures[0], top1=figures[1], targets=targets)


def _sees_everyone(memory: Memory, hyper: Hyperparameters) -> bool:
    """Return whether the objective compares a row with the rows of all clients."""
    return (hyper.whole_batch or hyper.targets is Targets.ONLINE) and (hyper.shared or not memory)


def _against_momentum(
    model: FlatModule,
    server: ServerState,
    smashed_2Nchw: Tensor,
    labels_N: Tensor | None,
    memory: Memory,
    hyper: Hyperparameters,
    everyone: Everyone,
) -> Gradients:
    """Compare the online network's outputs with those of the momentum network for the other view.

    The second direction of a symmetric loss has the roles of the two views swapped (V2). No gradient reaches the
    activations of the clients' momentum models.
    """
    rows, shared = len(smashed_2Nchw) // 2, _is_shared(memory)
    online_rchw = smashed_2Nchw if hyper.symmetric else smashed_2Nchw[:rows]
    momentum_rchw = smashed_2Nchw if hyper.symmetric else smashed_2Nchw[rows:]
    whole = hyper.whole_batch or _batch_norm_ties_rows(server)
    units = [1] * rows if shared else hyper.batches
    directions = 2 if hyper.symmetric else 1
    parts = blocks(units, len(online_rchw), rows if whole else hyper.block, apart=whole or not shared)
    parts = parts or [slice(0, 0)] * directions

    with torch.no_grad(), hyper.autocast(server.online.device):
        momentum, statistics = model.weights(server.momentum), model.named_statistics(server.momentum_statistics)
        keys_nD = [  # in the published order of directions, which running statistics depend on
            embed(model, momentum, statistics, momentum_rchw[part]) for part in reversed(parts)
        ]
    keys_rD = torch.cat(keys_nD[::-1]).to(server.momentum)
    targets_rD = keys_rD.roll(rows, 0) if hyper.symmetric else keys_rD

    def block_loss(part: slice, outputs_nD: Tensor) -> tuple[Tensor, Tensor]:
        start = part.start % max(1, rows)
        return _losses(outputs_nD, targets_rD[part], start, everyone, labels_N, memory, hyper, directions)

    found = _accumulate(model, server, online_rchw, parts, rows, block_loss, hyper)
    return replace(found, targets=[keys_rD[d * rows : (d + 1) * rows] for d in range(directions)])


def _against_itself(
    model: FlatModule,
    server: ServerState,
    smashed_2Nchw: Tensor,
    labels_N: Tensor | None,
    memory: Memory,
    hyper: Hyperparameters,
    everyone: Everyone,
) -> Gradients:
    """Compare the online network's outputs for the two views with each other; both of them get a gradient."""
    rows = len(smashed_2Nchw) // 2
    leaves, statistics = model.leaves(server.online), model.named_statistics(server.online_statistics)
    smashed_2Nchw = smashed_2Nchw.detach().requires_grad_()
    parts = smashed_2Nchw.split(rows) if _batch_norm_ties_rows(server) else [smashed_2Nchw]
    with hyper.autocast(server.online.device):
        outputs = [embed(model, leaves.tensors, statistics, part) for part in parts]
    outputs_rD = torch.cat(outputs).to(server.online)
    views = outputs_rD[:rows], outputs_rD[rows:]
    loss, top1 = _losses(*views, 0, everyone, labels_N, memory, hyper)
    loss.backward()
    gradient_2Nchw = smashed_2Nchw.grad if rows else torch.zeros_like(smashed_2Nchw)
    return Gradients(loss.detach(), top1, leaves.gradient(), gradient_2Nchw, targets=[views[1].detach()])


def _against_labels(
    model: FlatModule,
    server: ServerState,
    smashed_Nchw: Tensor,
    labels_N: Tensor,
    memory: Memory,
    hyper: Hyperparameters,
    everyone: Everyone,
) -> Gradients:
    """Compare the online network's outputs with labels."""
    rows, whole = len(smashed_Nchw), hyper.whole_batch or _batch_norm_ties_rows(server)
    parts = blocks([1] * rows, rows, rows if whole else hyper.block, apart=whole) or [slice(0, 0)]

    def block_loss(part: slice, outputs_nD: Tensor) -> tuple[Tensor, Tensor]:
        return _losses(outputs_nD, labels_N[part], part.start, everyone, labels_N, memory, hyper)

    return replace(_accumulate(model, server, smashed_Nchw, parts, rows, block_loss, hyper), targets=[labels_N])


def _losses(
    outputs_nD: Tensor,
    targets_n: Tensor,
    start: int,
    everyone: Everyone,
    labels_N: Tensor | None,
    memory: Memory,
    hyper: Hyperparameters,
    directions: int = 1,
) -> tuple[Tensor, Tensor]:
    """Return what some rows contribute to the loss and to the accuracy in percent of all rows.

    Args:
        outputs_nD: outputs of the online network.
        targets_n: ``[n, D]`` or ``[n]`` what they are compared with.
        start: the first of these rows.
        everyone: all rows of a direction of the loss.
        labels_N: class of each row of a direction, if the objective needs labels.
        memory: what the objective remembers, in one group for all clients or one for each client of the cohort.
        hyper: the objective, and the rows of each client.
        directions: directions, whose losses are added up, and whose accuracies are averaged.
    """
    loss = top1 = 0.0
    told = {}
    if hyper.labels:  # rows may reach from one direction into the other
        told = {"labels": labels_N.repeat(2)[start : start + len(outputs_nD)]}
    if _sees_everyone(memory, hyper):
        outputs_nD, targets_n = everyone.around(outputs_nD), everyone.around(targets_n)
        told = {name: everyone.gather(rows) for name, rows in told.items()}
    if not len(outputs_nD):  # a rank whose clients are all absent
        return outputs_nD.sum(), outputs_nD.detach().sum()
    rows = everyone.rows
    for piece, one in _groups(memory, hyper.batches, start, len(outputs_nD)):
        own = {name: _grouped(rows[piece], one) for name, rows in told.items()}
        both = (_grouped(rows[piece], one) for rows in (outputs_nD, targets_n))
        piece_loss, piece_top1 = hyper.objective.losses(*both, one | own)
        loss = loss + piece_loss * (piece.stop - piece.start) / rows
        top1 = top1 + piece_top1 * (piece.stop - piece.start) / (directions * rows)
    return loss, top1


def _accumulate(
    model: FlatModule,
    server: ServerState,
    smashed_rchw: Tensor,
    parts: Sequence[slice],
    graded: int,
    block_loss: _BlockLoss,
    hyper: Hyperparameters,
) -> Gradients:
    """Sum loss, accuracy and gradients over blocks of rows, each of which goes forward and back by itself.

    Args:
        smashed_rchw: activations of all rows.
        parts: rows of each block.
        graded: number of rows, from the first, whose activations need a gradient.
        block_loss: the loss of a block.
        hyper: the precision of the network's passes.
    """
    leaves, statistics = model.leaves(server.online), model.named_statistics(server.online_statistics)
    gradient_Nchw = torch.empty_like(smashed_rchw[:graded])
    loss = top1 = server.online.new_zeros(())
    for part in parts:
        smashed_nchw = smashed_rchw[part].detach().requires_grad_(part.start < graded)
        with hyper.autocast(server.online.device):
            outputs_nD = embed(model, leaves.tensors, statistics, smashed_nchw)
        part_loss, part_top1 = block_loss(part, outputs_nD.to(server.online))
        part_loss.backward()
        if smashed_nchw.requires_grad:
            gradient_Nchw[part] = smashed_nchw.grad[:graded]
        loss = loss + part_loss.detach()
        top1 = top1 + part_top1
    return Gradients(loss, top1, leaves.gradient(), gradient_Nchw, targets=[])


def embed(
    model: FlatModule, parameters: Mapping[str, Tensor], statistics: Mapping[str, Tensor], smashed_nchw: Tensor
) -> Tensor:
    """Return the network's output ``[n, D]`` for smashed data, with the given parameters and running statistics."""
    if not len(smashed_nchw):  # most networks do not compute nothing
        return embed(model, parameters, statistics, smashed_nchw.new_zeros(1, *smashed_nchw.shape[1:]))[:0]
    on_cpu = smashed_nchw.device.type == "cpu"
    with accelerated(None) if on_cpu else nullcontext():  # on a CPU, PyTorch's operators are the best for one model
        return model.run({**parameters, **statistics}, smashed_nchw)


def remember_(memory: Memory, targets: Sequence[Tensor], hyper: Hyperparameters) -> None:
    """Let the objective remember the targets ``[N, ...]`` of each direction, in one group or each client in its own."""
    for targets_ND in targets:
        for rows, one in _groups(memory, hyper.batches, 0, len(targets_ND)):
            let_remember_(hyper.objective, one, _grouped(targets_ND[rows], one))


def _groups(memory: Memory, batches: Sequence[int], start: int, count: int) -> Iterator[tuple[slice, Memory]]:
    """Yield rows of a block, counted within it, and what their groups remember.

    Args:
        memory: what the objective remembers, in one group for all clients or one for each client of the cohort.
        batches: rows of each client, in cohort order.
        start: first row of the block.
        count: rows of the block.
    """
    if _is_shared(memory):
        yield slice(0, count), memory
        return
    for rows, clients in owners(batches, start, count):
        yield rows, {name: one[clients] for name, one in memory.items()}


def _grouped(rows_nD: Tensor, memory: Memory) -> Tensor:
    """Return rows ``[n, D]`` as ``[G, n / G, D]``, with as many groups as there are in the memory."""
    groups = next((len(one) for one in memory.values()), 1)
    return rows_nD.unflatten(0, (groups, -1))


def _is_shared(memory: Memory) -> bool:
    """Return whether all clients are one group: they share a memory, or have none."""
    return all(len(one) == 1 for one in memory.values())


def _batch_norm_ties_rows(server: ServerState) -> bool:
    """Return whether the server has BatchNorm, for which all rows of a direction, and no others, must stay together."""
    return server.online_statistics.numel() > 0
