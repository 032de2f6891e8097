"""Architectures by name, and the split of one at its cut layer.

A new architecture is one function ``(width, image_size, style) -> Backbone`` in a file of its own, one line in
`ARCHITECTURES` and one in `simsfl.config`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from simsfl.config.notation import Bottleneck
from simsfl.models.cut import narrowing, widening
from simsfl.models.flat import FlatModule
from simsfl.models.layers import Backbone, BatchNorm, Style, initialise_
from simsfl.models.mobilenetv2 import mobilenetv2
from simsfl.models.resnet import BasicBlock, BottleneckBlock, Residual, ResNet, resnet8
from simsfl.models.vgg import VGG

__all__ = [
    "ARCHITECTURES",
    "HEADS",
    "FlatModule",
    "SplitModel",
    "Style",
    "client_model",
    "layer_count",
    "split_model",
    "whole_model",
]

ARCHITECTURES: dict[str, Callable[[int, int, Style], Backbone]] = {
    "resnet8": resnet8,
    "resnet18": ResNet(BasicBlock, (2, 2, 2, 2)),
    "resnet34": ResNet(BasicBlock, (3, 4, 6, 3)),
    "resnet50": ResNet(BottleneckBlock, (3, 4, 6, 3)),
    "resnet101": ResNet(BottleneckBlock, (3, 4, 23, 3)),
    "resnet152": ResNet(BottleneckBlock, (3, 8, 36, 3)),
    "vgg11": VGG((1, 1, 2, 2, 2)),
    "vgg13": VGG((2, 2, 2, 2, 2)),
    "vgg16": VGG((2, 2, 3, 3, 3)),
    "vgg19": VGG((2, 2, 4, 4, 4)),
    "mobilenetv2": mobilenetv2,
}


def linear_head(backbone: Backbone, key_dim: int) -> nn.Module:
    """MoCo v1: one linear layer."""
    return nn.Linear(backbone.features, key_dim)


def mlp_head(backbone: Backbone, key_dim: int) -> nn.Module:
    """MoCo v2: one hidden layer as wide as the key, times the backbone's expansion, as published."""
    hidden = key_dim * backbone.expansion
    return nn.Sequential(nn.Linear(backbone.features, hidden), nn.ReLU(), nn.Linear(hidden, key_dim))


def large_mlp_head(backbone: Backbone, key_dim: int) -> nn.Module:
    """largeV2: hidden layer of 4,096 with BatchNorm (the head of Zhuang et al., ICLR 2022)."""
    return nn.Sequential(nn.Linear(backbone.features, 4096), BatchNorm(4096), nn.ReLU(), nn.Linear(4096, key_dim))


HEADS: dict[str, Callable[[Backbone, int], nn.Module]] = {
    "linear": linear_head,
    "mlp": mlp_head,
    "large-mlp": large_mlp_head,
}


class Encoder(nn.Module):
    """Layers of a backbone up to its end, average pooling, the projection head."""

    def __init__(self, backbone: list[nn.Module], head: nn.Module):
        super().__init__()
        self.backbone = nn.Sequential(*backbone)
        self.head = head

    def features(self, x: Tensor) -> Tensor:
        """Average-pooled backbone features ``[N, F]`` of smashed data or images ``[N, c, h, w]``."""
        return self.backbone(x).mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class Projection(nn.Module):
    """A projection head, and BYOL's predictor behind it: outputs ``[N, 2D]``, what either makes, side by side.

    One module for both, so that online and momentum models have the same parameters.
    """

    def __init__(self, head: nn.Module, predictor: nn.Module):
        super().__init__()
        self.head, self.predictor = head, predictor

    def forward(self, features: Tensor) -> Tensor:
        projection = self.head(features)
        return torch.cat([projection, self.predictor(projection)], dim=1)


@dataclass(frozen=True)
class SplitModel:
    """One network cut in two: `client` up to the cut layer, `server` the rest and the head, if anything."""

    client: FlatModule
    server: FlatModule
    smashed_shape: tuple[int, int, int]
    """Channels, height and width of one image's smashed data; zeros where there are none."""
    feature_dim: int
    """F, of the average-pooled backbone features."""
    attacker: FlatModule | None = None
    """The decoder of a simulated attacker, where clients learn to resist one."""


def layer_count(arch: str) -> int:
    """How many layers an architecture has: the deepest cut layer allowed."""
    with torch.device("meta"):
        return len(ARCHITECTURES[arch](8, 32, Style()).layers)


def client_model(
    arch: str,
    *,
    width: int,
    cut_layer: int,
    image_size: int,
    style: Style,
    bottleneck: Bottleneck | None,
    client_residual: bool,
) -> FlatModule:
    """The client's half of `split_model` alone, without weights: what a device needs that is sent them."""
    with torch.device("meta"):
        layers = ARCHITECTURES[arch](width, image_size, style).layers[:cut_layer]
        drop_shortcuts(layers, client_residual)
        if bottleneck:
            convolutions = [module for module in nn.ModuleList(layers).modules() if isinstance(module, nn.Conv2d)]
            layers += narrowing(bottleneck, convolutions[-1].out_channels)
    return FlatModule(nn.Sequential(*layers))


def drop_shortcuts(layers: Iterable[nn.Module], keep: bool) -> None:
    """Leave out the shortcuts of the client's residual blocks, unless it is to `keep` them."""
    for module in nn.ModuleList(layers).modules():
        if isinstance(module, Residual) and not keep:
            module.drop_shortcut()


def split_model(
    arch: str,
    *,
    width: int,
    cut_layer: int,
    image_size: int,
    head: str,
    key_dim: int,
    generator: torch.Generator | None,
    style: Style | None = None,
    bottleneck: Bottleneck | None = None,
    client_residual: bool = True,
) -> SplitModel:
    """Build an architecture, initialise it from `generator` and cut it after `cut_layer` layers.

    The network is initialised before it is cut, so the weights do not depend on where; a bottleneck comes after.

    Args:
        generator: None for a network without weights, on the meta device, of whose shapes things are reckoned.
        style: GroupNorm and weight standardisation by default.
        bottleneck: layers added at the cut, on both sides.
        client_residual: whether the client's residual blocks have shortcuts.

    Raises:
        ValueError: the images are too small for the network, or its maps at the cut for the bottleneck.
    """
    with torch.device("meta"):
        backbone = ARCHITECTURES[arch](width, image_size, style or Style())
        layers = backbone.layers
        network = nn.ModuleList([*layers, HEADS[head](backbone, key_dim)])
    drop_shortcuts(layers[:cut_layer], client_residual)
    weighted(network, generator)
    client, server = layers[:cut_layer], layers[cut_layer:]
    too_small = ValueError(f"image_size: {image_size} is too small for {arch}; allowed: 32 or more")
    image = torch.zeros(1, 3, image_size, image_size)
    smashed = run(client, image, too_small)
    if bottleneck:
        channels, side = smashed.shape[1:3]
        if bottleneck.stride > side:
            sides = maps(layers, image, too_small)
            cuts = [str(cut) for cut, behind in enumerate(sides, start=1) if bottleneck.stride <= behind]
            raise ValueError(
                f"bottleneck: stride {bottleneck.stride} is more than the maps of {side}x{side} behind cut layer "
                f"{cut_layer} of {arch}; allowed: stride 1 to {side}"
                + (f", or cut layer {', '.join(cuts)}" if cuts else "")
            )
        with torch.device("meta"):
            narrow = nn.Sequential(*narrowing(bottleneck, channels))
            wide = nn.Sequential(*widening(bottleneck, channels, side))
        weighted(narrow, generator)
        weighted(wide, generator)
        client, server = [*client, *narrow], [*wide, *server]
        smashed = run(narrow, smashed, too_small)
    run(server, smashed, too_small)
    shape = tuple(smashed.shape[1:])
    halves = FlatModule(nn.Sequential(*client)), FlatModule(Encoder(server, network[-1]))
    return SplitModel(*halves, shape, backbone.features)


def whole_model(
    arch: str,
    *,
    width: int,
    image_size: int,
    head: str,
    key_dim: int,
    generator: torch.Generator | None,
    style: Style | None = None,
    predictor: bool = False,
) -> SplitModel:
    """Build an architecture with its head, all of it on the client: plain federated learning.

    Args:
        predictor: BYOL's comes behind the head, and is one like it.

    Raises:
        ValueError: the images are too small for the network.
    """
    with torch.device("meta"):
        backbone = ARCHITECTURES[arch](width, image_size, style or Style())
        last = HEADS[head](backbone, key_dim)
        if predictor:
            last = Projection(last, HEADS[head](replace(backbone, features=key_dim), key_dim))
        network = Encoder(backbone.layers, last)
    weighted(network, generator)
    too_small = ValueError(f"image_size: {image_size} is too small for {arch}; allowed: 32 or more")
    run(network.backbone, torch.zeros(1, 3, image_size, image_size), too_small)
    return SplitModel(FlatModule(network), FlatModule(nn.Identity()), (0, 0, 0), backbone.features)


def weighted(module: nn.Module, generator: torch.Generator | None) -> None:
    """Give a module on the meta device weights drawn from `generator`, if there is one."""
    if generator:
        initialise_(module.to_empty(device="cpu"), generator)


@torch.no_grad()
def computing(layer: nn.Module) -> nn.Module:
    """A layer as it is, or a twin with weights of 0 of one without: to compute on the meta device takes imports."""
    if not any(parameter.is_meta for parameter in layer.parameters()):
        return layer
    zeros = {id(own): nn.Parameter(torch.zeros(own.shape)) for own in layer.parameters()}
    return copy.deepcopy(layer, zeros | {id(own): torch.zeros(own.shape) for own in layer.buffers()})


def maps(layers: Iterable[nn.Module], x: Tensor, too_small: ValueError) -> list[int]:
    """The height and width of what comes out of each layer."""
    sides = []
    for layer in layers:
        x = run([layer], x, too_small)
        sides.append(x.shape[2])
    return sides


@torch.no_grad()
def run(layers: Iterable[nn.Module], x: Tensor, too_small: ValueError) -> Tensor:
    """What layers make of `x`, in evaluation mode, for its shape; raises `too_small` where maps are for one of them."""
    for layer in layers:
        try:
            x = computing(layer.eval())(x)
        except RuntimeError as error:
            if "allocate" in str(error):  # there is no memory
                raise
            raise too_small from error
        finally:
            layer.train()
    return x
