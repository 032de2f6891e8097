"""The server phase: the contrastive step over the smashed data of all clients, and the key queue."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from simsfl.kernels import info_nce
from simsfl.models import FlatModule, SplitModel
from simsfl.state import KeyQueue, ServerState


def embed(model: FlatModule, parameters: Tensor, buffers: Mapping[str, Tensor], smashed: Tensor) -> Tensor:
    """Unit keys or queries ``[N, D]`` of smashed data ``[N, c, h, w]``."""
    projected = functional_call(model.template, {**model.named(parameters), **buffers}, (smashed,))
    return F.normalize(projected.to(parameters.dtype), dim=1)


def contrast(
    model: SplitModel,
    server: ServerState,
    queue: KeyQueue,
    query: Tensor,
    key: Tensor,
    *,
    temperature: float,
    symmetric: bool,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """InfoNCE of smashed queries against smashed keys (MocoSFL section 3, V2 symmetric).

    Args:
        query: ``[N, c, h, w]`` of the online client models.
        key: ``[N, c, h, w]`` of the client momentum models.
        symmetric: add the loss with the two roles swapped; no gradient reaches the key side.

    Returns:
        The summed loss, the contrastive accuracy in percent (mean over directions), and the keys
        ``[N, D]`` to put into the queue, in that order: of the query activations first.
    """
    directions = [(query, key), (key, query)] if symmetric else [(query, key)]
    losses, top1s, keys = [], [], []
    for online_input, momentum_input in directions:
        q = embed(model.server, server.online, server.online_buffers, online_input)
        with torch.no_grad():
            k = embed(model.server, server.momentum, server.momentum_buffers, momentum_input)
        loss, top1 = info_nce(q, k, queue.keys, temperature)
        losses.append(loss)
        top1s.append(top1)
        keys.append(k)
    return torch.stack(losses).sum(), torch.stack(top1s).mean(), keys[::-1]


@torch.no_grad()
def enqueue_(queue: KeyQueue, keys: Tensor) -> None:
    """Write keys ``[N, D]`` into the ring, N/G of them into each group's, with wrap-around.

    More keys than the ring is long leave its last K.
    """
    groups, length, dim = queue.keys.shape
    keys = keys.view(groups, -1, dim)
    count = keys.shape[1]
    kept = min(count, length)
    offset = torch.arange(count - kept, count, device=keys.device)
    slot = (queue.pointer[:, None] + offset) % length
    queue.keys.scatter_(1, slot[:, :, None].expand(-1, -1, dim), keys[:, count - kept :])
    queue.pointer.add_(count).remainder_(length)
