"""A network without its cut and its head: what is trained for, as one ordinary module from images to features."""

from __future__ import annotations

import copy
from collections import OrderedDict

import torch
from torch import nn

from simsfl.kernels import standardised
from simsfl.models import SplitModel
from simsfl.models.layers import ConvNorm


def joined(client: nn.Module, server: nn.Module, cut_layer: int) -> nn.Sequential:
    """Return the layers on both sides of the cut, then average pooling: from images ``[N, 3, H, H]`` to ``[N, F]``.

    Layers are counted from 0, the first on the client, to the last on the server, so that the names of weights, such as
    ``3.conv1.conv.weight``, do not depend on where the network is cut. Those of a bottleneck at the cut are called
    ``narrow0``, ``wide0`` and so on. The layers themselves are those of the two modules.

    Args:
        client: the client's half of a network, or the whole network with its head in federated learning.
        server: the server's half; the identity in federated learning.
        cut_layer: number of layers of the network on the client, without the bottleneck's.
    """
    if hasattr(client, "backbone"):
        named = {str(place): layer for place, layer in enumerate(client.backbone)}
    else:
        before, narrow = client[:cut_layer], client[cut_layer:]
        wide, behind = server.backbone[: len(narrow)], server.backbone[len(narrow) :]  # as many on either side
        named = {f"narrow{place}": layer for place, layer in enumerate(narrow)}
        named |= {f"wide{place}": layer for place, layer in enumerate(wide)}
        named = {str(place): layer for place, layer in enumerate(before)} | named
        named |= {str(place): layer for place, layer in enumerate(behind, start=cut_layer)}
    return nn.Sequential(OrderedDict(named, pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten()))


def joined_names(model: SplitModel, cut_layer: int) -> dict[str, dict[str, str]]:
    """Return the names in `joined` of the weights and running statistics of each half, by their names there.

    The weights of the head have none.
    """
    halves = {"client": model.client.template, "server": model.server.template}
    whole = joined(*halves.values(), cut_layer)
    found = {id(tensor): name for name, tensor in (*whole.named_parameters(), *whole.named_buffers())}
    own = {half: (*module.named_parameters(), *module.named_buffers()) for half, module in halves.items()}
    return {half: {n: found[id(t)] for n, t in tensors if id(t) in found} for half, tensors in own.items()}


@torch.no_grad()
def folded(network: nn.Module) -> nn.Module:
    """Return a copy of a network that has the standardised weights of its convolutions instead of standardising them.

    It computes the same outputs, with plain convolutions. Fine-tuning it goes another way than with standardisation.
    Each of its tensors has memory of its own, also where those of the network are parts of one.
    """
    own = {id(tensor): nn.Parameter(tensor.clone(), tensor.requires_grad) for tensor in network.parameters()}
    network = copy.deepcopy(network, own | {id(tensor): tensor.clone() for tensor in network.buffers()})
    for layer in network.modules():
        if isinstance(layer, ConvNorm) and layer.standardise:
            layer.conv.weight.copy_(standardised(layer.conv.weight))
            layer.standardise = False
    return network
