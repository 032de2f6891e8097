"""Architectures by name, and the split of one at its cut layer.

A new architecture is one function ``(width, image_size) -> (layers, feature dimension)`` in a file
of its own and one line in `ARCHITECTURES`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from simsfl.models.flat import FlatModule
from simsfl.models.layers import initialise_
from simsfl.models.resnet import resnet8, resnet18

__all__ = ["ARCHITECTURES", "HEADS", "FlatModule", "SplitModel", "layer_count", "split_model"]

ARCHITECTURES: dict[str, Callable[[int, int], tuple[list[nn.Module], int]]] = {
    "resnet18": resnet18,
    "resnet8": resnet8,
}


def linear_head(features: int, key_dim: int) -> nn.Module:
    """MoCo v1: one linear layer."""
    return nn.Linear(features, key_dim)


def mlp_head(features: int, key_dim: int) -> nn.Module:
    """MoCo v2: one hidden layer as wide as the key."""
    return nn.Sequential(nn.Linear(features, key_dim), nn.ReLU(), nn.Linear(key_dim, key_dim))


def large_mlp_head(features: int, key_dim: int) -> nn.Module:
    """largeV2: hidden layer of 4,096 with BatchNorm (the head of Zhuang et al., ICLR 2022)."""
    return nn.Sequential(nn.Linear(features, 4096), nn.BatchNorm1d(4096), nn.ReLU(), nn.Linear(4096, key_dim))


HEADS: dict[str, Callable[[int, int], nn.Module]] = {
    "linear": linear_head,
    "mlp": mlp_head,
    "large-mlp": large_mlp_head,
}


class Server(nn.Module):
    """What runs behind the cut: the rest of the backbone, average pooling, the projection head."""

    def __init__(self, backbone: list[nn.Module], head: nn.Module):
        super().__init__()
        self.backbone = nn.Sequential(*backbone)
        self.head = head

    def features(self, smashed: Tensor) -> Tensor:
        """Average-pooled backbone features ``[N, F]`` of smashed data ``[N, c, h, w]``."""
        return self.backbone(smashed).mean(dim=(2, 3))

    def forward(self, smashed: Tensor) -> Tensor:
        return self.head(self.features(smashed))


@dataclass(frozen=True)
class SplitModel:
    """One network cut in two: `client` up to the cut layer, `server` the rest and the head."""

    client: FlatModule
    server: FlatModule
    smashed_shape: tuple[int, int, int]
    """Channels, height and width of one image's smashed data."""


def layer_count(arch: str) -> int:
    """How many layers an architecture has: the deepest cut layer allowed."""
    with torch.device("meta"):
        return len(ARCHITECTURES[arch](8, 32)[0])


def split_model(
    arch: str,
    *,
    width: int,
    cut_layer: int,
    image_size: int,
    head: str,
    key_dim: int,
    generator: torch.Generator,
) -> SplitModel:
    """Build an architecture, initialise it from `generator` and cut it after `cut_layer` layers.

    The network is initialised before it is cut, so the weights do not depend on where.
    """
    with torch.device("meta"):
        layers, features = ARCHITECTURES[arch](width, image_size)
        network = nn.ModuleList([*layers, HEADS[head](features, key_dim)])
    initialise_(network.to_empty(device="cpu"), generator)
    client, server = nn.Sequential(*layers[:cut_layer]), Server(layers[cut_layer:], network[-1])
    with torch.no_grad():
        smashed = client(torch.zeros(1, 3, image_size, image_size))
    return SplitModel(FlatModule(client), FlatModule(server), tuple(smashed.shape[1:]))
