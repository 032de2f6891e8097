"""The server phase: the contrastive step over the smashed data of all clients, and the key queue."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from simsfl.algorithm.state import KeyQueue, ServerState
from simsfl.kernels import accelerated, info_nce
from simsfl.models import FlatModule


@dataclass(frozen=True)
class Lesson:
    """What a step teaches the server, and what it sends back."""

    loss: Tensor
    """Scalar, summed over directions."""
    top1: Tensor
    """Scalar, percent of queries whose own key scores highest."""
    gradient: Tensor
    """``[Q]`` of the loss by the server's parameters."""
    smashed_gradient: Tensor
    """``[N, c, h, w]`` by the query activations."""
    keys: list[Tensor]
    """``[N, D]`` of each direction, those of the query activations first."""


def contrast(
    model: FlatModule,
    server: ServerState,
    smashed_2Nchw: Tensor,
    queue: KeyQueue,
    temperature: float,
    *,
    symmetric: bool,
    batches: Sequence[int] = (),
    block: int | None = None,
    autocast: AbstractContextManager[object] | None = None,
) -> Lesson:
    """The contrastive loss of all clients' smashed data, and its gradients.

    Args:
        smashed_2Nchw: of the online client models, then of the client momentum models.
        symmetric: a second direction with the two roles swapped (V2). No gradient reaches the key side.
        batches: rows of each client, in order, where each has a queue of its own; () for equally many.
        block: rows that go through the network together, both forward and back, so that no more activations are held
            at a time; None for all. It changes nothing but rounding.
        autocast: what the network is called in; None for nothing.
    """
    rows, smashed_2Nchw = len(smashed_2Nchw) // 2, model.received(smashed_2Nchw)
    online_side = smashed_2Nchw if symmetric else smashed_2Nchw[:rows]
    momentum_side = smashed_2Nchw if symmetric else smashed_2Nchw[rows:]
    whole = server.online_statistics.numel() > 0  # BatchNorm mixes the rows of a direction, and may mix no others
    shared = len(queue.keys) == 1
    together = [1] * rows if shared else batches or equal_batches(rows, len(queue.keys))
    parts = blocks(together, len(online_side), rows if whole else block, apart=whole or not shared)

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
        for piece, owners in everything if shared else owned(together, part.start % rows, len(query_nD)):
            piece_loss, piece_top1 = info_nce(query_nD[piece], key_nD[piece], queue.keys[owners], temperature)
            loss = loss + piece_loss * (piece.stop - piece.start) / rows
            top1 = top1 + piece_top1 * (piece.stop - piece.start) / len(online_side)
        return loss, top1

    graded = study(model, server, online_side, parts, rows, block_loss, autocast)
    return Lesson(*graded, list(keys_rD.split(rows)))


def classify(
    model: FlatModule,
    server: ServerState,
    smashed_Nchw: Tensor,
    labels_N: Tensor,
    *,
    block: int | None = None,
    autocast: AbstractContextManager[object] | None = None,
) -> Lesson:
    """The cross-entropy of the images' labels, and its gradients: supervised split learning. See `contrast`."""
    rows, smashed_Nchw = len(smashed_Nchw), model.received(smashed_Nchw)
    whole = server.online_statistics.numel() > 0
    parts = blocks([1] * rows, rows, rows if whole else block, apart=whole)

    def block_loss(part: slice, outputs_nD: Tensor) -> tuple[Tensor, Tensor]:
        labels_n = labels_N[part]
        hits = (outputs_nD.detach().argmax(dim=1) == labels_n).to(outputs_nD.dtype)
        return F.cross_entropy(outputs_nD, labels_n, reduction="sum") / rows, 100.0 * hits.sum() / rows

    return Lesson(*study(model, server, smashed_Nchw, parts, rows, block_loss, autocast or nullcontext()), keys=[])


def study(
    model: FlatModule,
    server: ServerState,
    smashed: Tensor,
    parts: list[slice],
    graded: int,
    block_loss: Callable[[slice, Tensor], tuple[Tensor, Tensor]],
    autocast: AbstractContextManager[object],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss, accuracy, and gradients by the parameters and by the first `graded` rows, summed block by block.

    Args:
        block_loss: of a block of rows and the network's output for it: its share of the loss and of the accuracy.
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
    return loss, top1, leaves.gradient(), smashed_gradient


def blocks(together: Sequence[int], total: int, size: int | None, *, apart: bool) -> list[slice]:
    """Cut `total` rows, in one direction or two, into blocks of about equal size.

    Args:
        together: of a direction, rows that stay in one block, in order.
        size: of a block, at most, if they allow it; None for no limit.
        apart: no block has rows of two directions.
    """
    rows, size = sum(together), size or total
    if size >= total and not apart:
        return [slice(0, total)]
    target = -(-rows // -(-rows // size))
    edges, before = [0], 0
    for end in accumulate(together):
        if end - edges[-1] > target and before > edges[-1]:
            edges.append(before)
        before = end
    edges.append(rows)
    return [slice(first + start, first + end) for first in range(0, total, rows) for start, end in pairwise(edges)]


def owned(batches: Sequence[int], start: int, count: int) -> Iterator[tuple[slice, slice]]:
    """Whose a block of `count` rows is: runs of clients with equally many rows, as rows of the block and as clients.

    Args:
        batches: rows of each client of a direction, in order.
        start: of the block, at the first row of a client.
    """
    row = client = 0
    for batch, same in groupby(batches):
        clients = len(list(same))
        first, last = max(row, start), min(row + clients * batch, start + count)
        if first < last:
            yield (
                slice(first - start, last - start),
                slice(client + (first - row) // batch, client + (last - row) // batch),
            )
        row, client = row + clients * batch, client + clients


def equal_batches(rows: int, clients: int) -> list[int]:
    """Rows of each client, where all have as many."""
    return [rows // clients] * clients


def embed(
    model: FlatModule, parameters: Mapping[str, Tensor], statistics: Mapping[str, Tensor], smashed_nchw: Tensor
) -> Tensor:
    """The network's output ``[n, D]``."""
    on_cpu = smashed_nchw.device.type == "cpu"
    with accelerated(None) if on_cpu else nullcontext():  # there PyTorch's own operators are the best for one model
        return model.run({**parameters, **statistics}, smashed_nchw)


@torch.no_grad()
def enqueue_(queue: KeyQueue, keys_ND: Tensor, batches: Sequence[int] = ()) -> None:
    """Write keys ``[N, D]`` into the ring, or each client's of `batches` (by default equally many) into its own.

    There is wrap-around. More keys than a ring is long leave its last K.
    """
    groups, length, dim = queue.keys.shape
    batches = [len(keys_ND)] if groups == 1 else batches or equal_batches(len(keys_ND), groups)
    for rows, owners in owned(batches, 0, len(keys_ND)):
        rings, pointers = queue.keys[owners], queue.pointer[owners]
        keys_GnD = keys_ND[rows].view(len(rings), -1, dim)
        count = keys_GnD.shape[1]
        kept = min(count, length)
        offset = torch.arange(count - kept, count, device=keys_ND.device)
        slot_Gn = (pointers[:, None] + offset) % length
        rings.scatter_(1, slot_Gn[:, :, None].expand(-1, -1, dim), keys_GnD[:, count - kept :])
        pointers.add_(count).remainder_(length)
