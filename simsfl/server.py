"""The server phase: the contrastive step over the smashed data of all clients, and the key queue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from simsfl.kernels import accelerated, info_nce
from simsfl.models import FlatModule
from simsfl.state import KeyQueue, ServerState


def project(
    model: FlatModule, server: ServerState, smashed_2Nchw: Tensor, *, symmetric: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """Queries and keys ``[N, D]`` of each direction.

    Args:
        smashed_2Nchw: of the online client models, then of the client momentum models.
        symmetric: a second direction with the two roles swapped (V2). No gradient reaches the key side.
    """

    def online(smashed: Tensor) -> Tensor:
        return embed(model, server.online, server.online_buffers, smashed)

    @torch.no_grad()
    def momentum(smashed: Tensor) -> Tensor:
        return embed(model, server.momentum, server.momentum_buffers, smashed)

    query_Nchw, key_Nchw = smashed_2Nchw.chunk(2)
    if not symmetric:
        return [online(query_Nchw)], [momentum(key_Nchw)]
    if server.online_buffers:  # BatchNorm would mix the directions
        return [online(query_Nchw), online(key_Nchw)], [momentum(key_Nchw), momentum(query_Nchw)]
    queries_ND, keys_ND = online(smashed_2Nchw).chunk(2), momentum(smashed_2Nchw).chunk(2)
    return list(queries_ND), list(reversed(keys_ND))


def embed(model: FlatModule, parameters: Tensor, buffers: Mapping[str, Tensor], smashed_nchw: Tensor) -> Tensor:
    """Unit keys or queries ``[n, D]``."""
    with accelerated(None):  # for one model PyTorch's own operators are the best there are
        rows_nD = functional_call(model.template, {**model.named(parameters), **buffers}, (smashed_nchw,))
    return F.normalize(rows_nD.to(parameters.dtype), dim=1)


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
