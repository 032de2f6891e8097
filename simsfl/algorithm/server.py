"""The server phase: the loss of the smashed data of all clients, its gradients, and the key queue.

Names of tensors end in their shape: N rows of the cohort's batch, n rows of a block, D key dimension, Q parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from simsfl.algorithm.blocks import blocks, owners
from simsfl.algorithm.state import KeyQueue, ServerState
from simsfl.kernels import accelerated, info_nce
from simsfl.models import FlatModule

BlockLoss = Callable[[slice, Tensor], tuple[Tensor, Tensor]]
"""Rows of a block and the network's output ``[n, D]`` for them, to the block's share of loss and accuracy (scalars)."""


@dataclass(frozen=True)
class Gradients:
    """The loss of a batch on the server, and its gradients."""

    loss: Tensor
    """Scalar, summed over directions."""
    top1: Tensor
    """Scalar, percent of queries whose own key scores highest, or of images whose label does."""
    parameters: Tensor
    """``[Q]`` gradient with respect to the server's parameters."""
    smashed: Tensor
    """``[N, c, h, w]`` gradient with respect to the query activations."""


@dataclass(frozen=True)
class ServerOutcome:
    """What a step of the server returns."""

    gradients: Gradients
    keys: list[Tensor]
    """``[N, D]`` unit keys of each direction, those of the query activations first; empty in supervised training."""


def contrast(
    model: FlatModule,
    server: ServerState,
    smashed_2Nchw: Tensor,
    queue: KeyQueue,
    temperature: float,
    *,
    symmetric: bool,
    batches: Sequence[int],
    block: int | None = None,
    autocast: AbstractContextManager[object] | None = None,
) -> ServerOutcome:
    """Compute the contrastive loss of all clients' smashed data, and its gradients (Li et al., algorithm 1).

    Args:
        smashed_2Nchw: activations of the online client models, then of the client momentum models.
        queue: keys of earlier steps, one ring for all clients or one for each client of the cohort.
        symmetric: whether a second direction with the roles of the two views swapped is added (V2). No gradient
            reaches the key side.
        batches: rows of each client, in cohort order.
        block: most rows that go through the network together, forward and back, so that no more activations are
            held at a time; None for no limit. It changes nothing but rounding.
        autocast: context in which the network is called; None for none.
    """
    rows, smashed_2Nchw = len(smashed_2Nchw) // 2, model.received(smashed_2Nchw)
    online_side = smashed_2Nchw if symmetric else smashed_2Nchw[:rows]
    momentum_side = smashed_2Nchw if symmetric else smashed_2Nchw[rows:]
    tied, shared = _batch_norm_ties_rows(server), len(queue.keys) == 1
    units = [1] * rows if shared else batches
    parts = blocks(units, len(online_side), rows if tied else block, apart=tied or not shared)

    autocast = autocast or nullcontext()
    with torch.no_grad(), autocast:
        momentum, statistics = model.weights(server.momentum), model.named_statistics(server.momentum_statistics)
        keys = [  # in the published order, which counts for running statistics
            embed(model, momentum, statistics, momentum_side[part]) for part in reversed(parts)
        ]
    keys_rD = F.normalize(torch.cat(keys[::-1]).to(server.momentum), dim=1)
    own_key_rD = keys_rD.roll(rows, 0) if symmetric else keys_rD

    def block_loss(part: slice, outputs_nD: Tensor) -> tuple[Tensor, Tensor]:
        query_nD, key_nD = F.normalize(outputs_nD, dim=1), own_key_rD[part]
        everything = [(slice(0, len(query_nD)), slice(0, 1))]
        loss = top1 = 0.0
        for piece, clients in everything if shared else owners(batches, part.start % rows, len(query_nD)):
            piece_loss, piece_top1 = info_nce(query_nD[piece], key_nD[piece], queue.keys[clients], temperature)
            loss = loss + piece_loss * (piece.stop - piece.start) / rows
            top1 = top1 + piece_top1 * (piece.stop - piece.start) / len(online_side)
        return loss, top1

    gradients = accumulate(model, server, online_side, parts, rows, block_loss, autocast)
    return ServerOutcome(gradients, list(keys_rD.split(rows)))


def classify(
    model: FlatModule,
    server: ServerState,
    smashed_Nchw: Tensor,
    labels_N: Tensor,
    *,
    block: int | None = None,
    autocast: AbstractContextManager[object] | None = None,
) -> ServerOutcome:
    """Compute the cross-entropy of the images' labels, and its gradients: supervised split learning.

    Args:
        smashed_Nchw: activations of the online client models.
        labels_N: class of each image, int64.
        block: as in `contrast`, like `autocast`.
    """
    rows, smashed_Nchw = len(smashed_Nchw), model.received(smashed_Nchw)
    tied = _batch_norm_ties_rows(server)
    parts = blocks([1] * rows, rows, rows if tied else block, apart=tied)

    def block_loss(part: slice, outputs_nD: Tensor) -> tuple[Tensor, Tensor]:
        labels_n = labels_N[part]
        hits = (outputs_nD.detach().argmax(dim=1) == labels_n).to(outputs_nD.dtype)
        return F.cross_entropy(outputs_nD, labels_n, reduction="sum") / rows, 100.0 * hits.sum() / rows

    gradients = accumulate(model, server, smashed_Nchw, parts, rows, block_loss, autocast or nullcontext())
    return ServerOutcome(gradients, keys=[])


def accumulate(
    model: FlatModule,
    server: ServerState,
    smashed: Tensor,
    parts: Sequence[slice],
    graded: int,
    block_loss: BlockLoss,
    autocast: AbstractContextManager[object],
) -> Gradients:
    """Sum loss, accuracy and gradients over blocks of rows, each of which goes forward and back by itself.

    Args:
        smashed: ``[r, c, h, w]`` activations of all rows.
        parts: the blocks.
        graded: number of rows, the first ones, whose gradient is wanted.
        block_loss: the loss of a block.
        autocast: context in which the network is called.
    """
    leaves, statistics = model.leaves(server.online), model.named_statistics(server.online_statistics)
    smashed_gradient = torch.empty_like(smashed[:graded])
    loss = top1 = server.online.new_zeros(())
    for part in parts:
        smashed_nchw = smashed[part].detach().requires_grad_(part.start < graded)
        with autocast:
            outputs_nD = embed(model, leaves.tensors, statistics, smashed_nchw)
        part_loss, part_top1 = block_loss(part, outputs_nD.to(server.online))
        part_loss.backward()
        if smashed_nchw.requires_grad:
            smashed_gradient[part] = smashed_nchw.grad[:graded]
        loss = loss + part_loss.detach()
        top1 = top1 + part_top1
    return Gradients(loss, top1, leaves.gradient(), smashed_gradient)


def embed(
    model: FlatModule, parameters: Mapping[str, Tensor], statistics: Mapping[str, Tensor], smashed_nchw: Tensor
) -> Tensor:
    """Return the network's output ``[n, D]`` for smashed data, with the given parameters and running statistics."""
    on_cpu = smashed_nchw.device.type == "cpu"
    with accelerated(None) if on_cpu else nullcontext():  # there PyTorch's own operators are the best for one model
        return model.run({**parameters, **statistics}, smashed_nchw)


@torch.no_grad()
def enqueue_(queue: KeyQueue, keys_ND: Tensor, batches: Sequence[int]) -> None:
    """Write keys into the ring, or those of each client into its own, with wrap-around.

    Args:
        keys_ND: keys of all clients, in cohort order. More of them than a ring is long leave its last K.
        batches: rows of each client.
    """
    shared, length, dim = len(queue.keys) == 1, *queue.keys.shape[1:]
    for rows, clients in owners([len(keys_ND)] if shared else batches, 0, len(keys_ND)):
        rings, pointers = queue.keys[clients], queue.pointer[clients]
        keys_GnD = keys_ND[rows].view(len(rings), -1, dim)
        count = keys_GnD.shape[1]
        kept = min(count, length)
        offset = torch.arange(count - kept, count, device=keys_ND.device)
        slot_Gn = (pointers[:, None] + offset) % length
        rings.scatter_(1, slot_Gn[:, :, None].expand(-1, -1, dim), keys_GnD[:, count - kept :])
        pointers.add_(count).remainder_(length)


def _batch_norm_ties_rows(server: ServerState) -> bool:
    """Return whether the server has BatchNorm, which mixes the rows of a direction, and may mix no others."""
    return server.online_statistics.numel() > 0
