"""The server phase: the contrastive step over the smashed data of all clients, and the key queue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from simsfl.kernels import info_nce
from simsfl.models import FlatModule
from simsfl.state import KeyQueue, ServerState


def embed(
    model: FlatModule, parameters: Tensor, buffers: Mapping[str, Tensor], inputs: Sequence[Tensor]
) -> list[Tensor]:
    """Unit keys or queries ``[N, D]`` of each input ``[N, c, h, w]``.

    One pass over all inputs together, unless the model has running statistics: BatchNorm would mix the
    inputs, so each then has a pass of its own.
    """
    if not buffers and len(inputs) > 1:
        return list(embed(model, parameters, buffers, [torch.cat(list(inputs))])[0].chunk(len(inputs)))
    tensors = {**model.named(parameters), **buffers}
    projected = [functional_call(model.template, tensors, (input_Nchw,)) for input_Nchw in inputs]
    return [F.normalize(rows_ND.to(parameters.dtype), dim=1) for rows_ND in projected]


def project(
    model: FlatModule, server: ServerState, query_Nchw: Tensor, key_Nchw: Tensor, *, symmetric: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """Queries and keys ``[N, D]`` of each direction.

    Args:
        query_Nchw: smashed data of the online client models.
        key_Nchw: smashed data of the client momentum models.
        symmetric: a second direction with the two roles swapped (V2). No gradient reaches the key side.
    """
    query_side, key_side = [query_Nchw], [key_Nchw]
    if symmetric:
        query_side, key_side = [query_Nchw, key_Nchw], [key_Nchw, query_Nchw]
    queries_ND = embed(model, server.online, server.online_buffers, query_side)
    with torch.no_grad():
        keys_ND = embed(model, server.momentum, server.momentum_buffers, key_side)
    return queries_ND, keys_ND


def contrast(
    queries_ND: Sequence[Tensor], keys_ND: Sequence[Tensor], queue: KeyQueue, temperature: float
) -> tuple[Tensor, Tensor]:
    """InfoNCE summed over directions, and the contrastive accuracy in percent, their mean."""
    pairs = zip(queries_ND, keys_ND, strict=True)
    losses, top1s = zip(*(info_nce(q_ND, k_ND, queue.keys, temperature) for q_ND, k_ND in pairs), strict=True)
    return torch.stack(losses).sum(), torch.stack(top1s).mean()


@torch.no_grad()
def enqueue_(queue: KeyQueue, keys_ND: Tensor) -> None:
    """Write keys ``[N, D]`` into the ring, N/G of them into each group's, with wrap-around.

    More keys than the ring is long leave its last K.
    """
    groups, length, dim = queue.keys.shape
    keys_GnD = keys_ND.view(groups, -1, dim)
    count = keys_GnD.shape[1]
    kept = min(count, length)
    offset = torch.arange(count - kept, count, device=keys_ND.device)
    slot_Gn = (queue.pointer[:, None] + offset) % length
    queue.keys.scatter_(1, slot_Gn[:, :, None].expand(-1, -1, dim), keys_GnD[:, count - kept :])
    queue.pointer.add_(count).remainder_(length)
