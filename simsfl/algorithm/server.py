"""The server's part of a step: the loss of all clients' smashed data, its gradients, and the key queue.

Names of tensors end in their shape: N rows (images) of the cohort's batch, r rows of all directions of the loss (2N if
it is symmetric, otherwise N), n rows of a block, chw the smashed data of an image, D key dimension, Q parameters of the
server, G rings of K keys.
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

_BlockLoss = Callable[[slice, Tensor], tuple[Tensor, Tensor]]
"""Function of the rows of a block and the network's output ``[n, D]`` for them. It returns the block's share of the
loss, and of the accuracy in percent (scalars)."""


@dataclass(frozen=True)
class Gradients:
    """The loss of a batch on the server, and its gradients."""

    loss: Tensor
    """Scalar loss, summed over directions."""
    top1: Tensor
    """Scalar percentage of queries whose own key scores higher than all others, or if supervised of images whose label
    scores highest."""
    parameters: Tensor
    """``[Q]`` gradient with respect to the server's parameters."""
    smashed: Tensor
    """``[N, c, h, w]`` gradient with respect to the query activations."""


@dataclass(frozen=True)
class ServerOutcome:
    """The results of a batch on the server."""

    gradients: Gradients
    """Loss, accuracy and gradients."""
    keys: list[Tensor]
    """Unit keys ``[N, D]`` of each direction, those of the query activations first; empty in supervised training."""


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
    """Compute the contrastive loss of all clients' smashed data, and its gradients (Li et al., ICLR 2023, algorithm 1).

    Args:
        model: the server's network.
        server: its weights, which stay as they are, and its running statistics, which are updated in place.
        smashed_2Nchw: activations of the clients' online models, then those of their momentum models.
        queue: keys of earlier steps, in one ring for all clients or one for each client of the cohort.
        temperature: T of the InfoNCE loss.
        symmetric: whether a second direction is added, in which the two views swap their roles (V2). No gradient
            reaches the key side.
        batches: rows of each client, in cohort order.
        block: most rows that go through the network together, forward and back, which limits the memory of their
            activations; None for no limit. It changes nothing but rounding.
        autocast: context in which the network is called; None for no special one.
    """
    rows, smashed_2Nchw = len(smashed_2Nchw) // 2, model.received(smashed_2Nchw)
    online_rchw = smashed_2Nchw if symmetric else smashed_2Nchw[:rows]
    momentum_rchw = smashed_2Nchw if symmetric else smashed_2Nchw[rows:]
    tied, shared = _batch_norm_ties_rows(server), len(queue.keys) == 1
    units = [1] * rows if shared else batches
    parts = blocks(units, len(online_rchw), rows if tied else block, apart=tied or not shared)

    autocast = autocast or nullcontext()
    with torch.no_grad(), autocast:
        momentum, statistics = model.weights(server.momentum), model.named_statistics(server.momentum_statistics)
        keys_nD = [  # in the published order of directions, which running statistics depend on
            embed(model, momentum, statistics, momentum_rchw[part]) for part in reversed(parts)
        ]
    keys_rD = F.normalize(torch.cat(keys_nD[::-1]).to(server.momentum), dim=1)
    own_key_rD = keys_rD.roll(rows, 0) if symmetric else keys_rD

    def block_loss(part: slice, outputs_nD: Tensor) -> tuple[Tensor, Tensor]:
        query_nD, key_nD = F.normalize(outputs_nD, dim=1), own_key_rD[part]
        everything = [(slice(0, len(query_nD)), slice(0, 1))]
        loss = top1 = 0.0
        for piece, clients in everything if shared else owners(batches, part.start % rows, len(query_nD)):
            piece_loss, piece_top1 = info_nce(query_nD[piece], key_nD[piece], queue.keys[clients], temperature)
            loss = loss + piece_loss * (piece.stop - piece.start) / rows
            top1 = top1 + piece_top1 * (piece.stop - piece.start) / len(online_rchw)
        return loss, top1

    gradients = _accumulate(model, server, online_rchw, parts, rows, block_loss, autocast)
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
    """Compute the cross-entropy of the images' labels, and its gradients, for supervised split learning.

    Args:
        model: the server's network.
        server: its weights, which stay as they are, and its running statistics, which are updated in place.
        smashed_Nchw: activations of the clients' online models.
        labels_N: class of each image, int64.
        block: most rows that go through the network together, see `contrast`.
        autocast: context in which the network is called; None for no special one.
    """
    rows, smashed_Nchw = len(smashed_Nchw), model.received(smashed_Nchw)
    tied = _batch_norm_ties_rows(server)
    parts = blocks([1] * rows, rows, rows if tied else block, apart=tied)

    def block_loss(part: slice, outputs_nD: Tensor) -> tuple[Tensor, Tensor]:
        labels_n = labels_N[part]
        hits = (outputs_nD.detach().argmax(dim=1) == labels_n).to(outputs_nD.dtype)
        return F.cross_entropy(outputs_nD, labels_n, reduction="sum") / rows, 100.0 * hits.sum() / rows

    gradients = _accumulate(model, server, smashed_Nchw, parts, rows, block_loss, autocast or nullcontext())
    return ServerOutcome(gradients, keys=[])


def _accumulate(
    model: FlatModule,
    server: ServerState,
    smashed_rchw: Tensor,
    parts: Sequence[slice],
    graded: int,
    block_loss: _BlockLoss,
    autocast: AbstractContextManager[object],
) -> Gradients:
    """Sum loss, accuracy and gradients over blocks of rows, each of which goes forward and back by itself.

    Args:
        smashed_rchw: activations of all rows.
        parts: rows of each block.
        graded: number of rows, from the first, whose activations need a gradient.
        block_loss: the loss of a block.
        autocast: context in which the network is called.
    """
    leaves, statistics = model.leaves(server.online), model.named_statistics(server.online_statistics)
    gradient_Nchw = torch.empty_like(smashed_rchw[:graded])
    loss = top1 = server.online.new_zeros(())
    for part in parts:
        smashed_nchw = smashed_rchw[part].detach().requires_grad_(part.start < graded)
        with autocast:
            outputs_nD = embed(model, leaves.tensors, statistics, smashed_nchw)
        part_loss, part_top1 = block_loss(part, outputs_nD.to(server.online))
        part_loss.backward()
        if smashed_nchw.requires_grad:
            gradient_Nchw[part] = smashed_nchw.grad[:graded]
        loss = loss + part_loss.detach()
        top1 = top1 + part_top1
    return Gradients(loss, top1, leaves.gradient(), gradient_Nchw)


def embed(
    model: FlatModule, parameters: Mapping[str, Tensor], statistics: Mapping[str, Tensor], smashed_nchw: Tensor
) -> Tensor:
    """Return the network's output ``[n, D]`` for smashed data, with the given parameters and running statistics.

    In supervised training, D is the number of classes.
    """
    on_cpu = smashed_nchw.device.type == "cpu"
    with accelerated(None) if on_cpu else nullcontext():  # on a CPU, PyTorch's operators are the best for one model
        return model.run({**parameters, **statistics}, smashed_nchw)


@torch.no_grad()
def enqueue_(queue: KeyQueue, keys_ND: Tensor, batches: Sequence[int]) -> None:
    """Write keys into the shared ring, or those of each client into its own ring, with wrap-around.

    Args:
        queue: the rings; their pointers move on.
        keys_ND: keys of all clients, in cohort order. If there are more than a ring is long (K), the last K remain.
        batches: rows of each client, in cohort order.
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
    """Return whether the server has BatchNorm, for which all rows of a direction, and no others, must stay together."""
    return server.online_statistics.numel() > 0
