"""Networks by the name of their architecture, whole or split at a cut layer.

An architecture is a function ``(width, image_size, style) -> Backbone``, or a frozen dataclass whose objects are called
so and whose fields are options. They are listed in `simsfl.config.catalogue`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from simsfl.config.catalogue import ARCHITECTURES, HEADS
from simsfl.config.notation import Bottleneck
from simsfl.models.cut import narrowing, widening
from simsfl.models.flat import FlatModule
from simsfl.models.layers import Backbone, Style, initialise_, made_stackable_
from simsfl.models.resnet import Residual

__all__ = [
    "FlatModule",
    "SplitModel",
    "Style",
    "client_model",
    "layer_count",
    "split_model",
    "whole_model",
]


class _Encoder(nn.Module):
    """The layers of a backbone from the cut to its end, then average pooling, then the projection head."""

    def __init__(self, backbone: list[nn.Module], head: nn.Module):
        super().__init__()
        self.backbone = nn.Sequential(*backbone)
        self.head = head

    def features(self, x: Tensor) -> Tensor:
        """Return the average-pooled backbone features ``[N, F]`` of smashed data or images ``[N, c, h, w]``."""
        return self.backbone(x).mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class Projection(nn.Module):
    """A projection head followed by BYOL's predictor, which returns both their outputs side by side, ``[N, 2D]``.

    One module holds both, so that online and momentum models have the same parameters.
    """

    def __init__(self, head: nn.Module, predictor: nn.Module):
        super().__init__()
        self.head, self.predictor = head, predictor

    def forward(self, features: Tensor) -> Tensor:
        projection = self.head(features)
        return torch.cat([projection, self.predictor(projection)], dim=1)


@dataclass(frozen=True)
class SplitModel:
    """One network cut in two, at the cut layer."""

    client: FlatModule
    """Layers up to the cut layer, or the whole network with its head in plain federated learning."""
    server: FlatModule
    """Layers behind the cut layer, and the projection head; the identity if the whole network is on the client."""
    smashed_shape: tuple[int, int, int]
    """Channels, height and width of one image's smashed data; zeros if the whole network is on the client."""
    feature_dim: int
    """F, the number of average-pooled backbone features."""


def _backbone(
    arch: str,
    width: int,
    image_size: int,
    style: Style,
    options: Mapping[str, Any] | None,
    generator: torch.Generator | None = None,
) -> Backbone:
    """Build the backbone of an architecture, on the meta device unless it comes with weights of its own.

    Args:
        options: options of the architecture by name; None for its defaults.
        generator: random numbers for such weights; None for none.
    """
    kind, own = ARCHITECTURES[arch], torch.device("meta")
    build = kind.code.load()
    if isinstance(build, type) and is_dataclass(build):
        build = build(**(options or {}))
    if kind.own_weights and generator:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
            built, own = build(width, image_size, style), torch.device("cpu")
    else:
        with own:
            built = build(width, image_size, style)
    layers = built if isinstance(built, list) else built.layers
    made_stackable_(nn.ModuleList(layers), own)
    if not isinstance(built, list):
        return built
    too_small = ValueError(f"image_size: {image_size} is too small for {arch}; allowed: larger images")
    return Backbone(layers, _run(layers, torch.zeros(1, 3, image_size, image_size), too_small).shape[1])


def layer_count(arch: str, options: Mapping[str, Any] | None = None) -> int:
    """Return the number of layers of an architecture with these options, which is the deepest cut layer allowed."""
    return len(_backbone(arch, ARCHITECTURES[arch].width, 32, Style(), options).layers)


def client_model(
    arch: str,
    *,
    width: int,
    cut_layer: int,
    image_size: int,
    style: Style,
    bottleneck: Bottleneck | None,
    client_residual: bool,
    options: Mapping[str, Any] | None = None,
) -> FlatModule:
    """Return only the client's half of `split_model`, without weights, for a device that receives them.

    The arguments are those of `split_model`. The layers are on the meta device.
    """
    layers = _backbone(arch, width, image_size, style, options).layers[:cut_layer]
    with torch.device("meta"):
        _drop_shortcuts(layers, client_residual)
    if bottleneck:
        channels = _run(layers, torch.zeros(1, 3, image_size, image_size), _too_small(arch, image_size)).shape[1]
        with torch.device("meta"):
            layers += narrowing(bottleneck, channels)
    return FlatModule(nn.Sequential(*layers))


def _drop_shortcuts(layers: Iterable[nn.Module], keep: bool) -> None:
    """Remove the shortcuts of all residual blocks in `layers`, unless `keep` is true."""
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
    predictor: bool = False,
    bottleneck: Bottleneck | None = None,
    client_residual: bool = True,
    options: Mapping[str, Any] | None = None,
) -> SplitModel:
    """Build an architecture, initialise it from `generator` and cut it after `cut_layer` layers.

    The network is initialised before it is cut, so its weights do not depend on the cut layer. A bottleneck is
    initialised after the network.

    Args:
        arch: A name in `ARCHITECTURES`.
        width: Channels of the first convolution; the other layers scale with it.
        cut_layer: Number of layers on the client.
        image_size: Height and width of the images in pixels.
        head: A name in `HEADS`.
        key_dim: Length of the projection head's output.
        generator: Random numbers for the initial weights. None returns a network without weights, on the meta device,
            for estimates that need only its shapes.
        style: Normalisation of the convolutions; by default GroupNorm and weight standardisation.
        predictor: Whether a predictor follows the head; it is built like another head, with inputs of `key_dim`.
        bottleneck: Layers added at the cut, on both sides.
        client_residual: Whether the client's residual blocks have shortcuts.
        options: Options of the architecture by name, such as "pool"; None for its defaults.

    Raises:
        ValueError: The images are too small for the network, or what it has at the cut does not suit the bottleneck.
    """
    backbone = _backbone(arch, width, image_size, style or Style(), options, generator)
    layers = backbone.layers
    with torch.device("meta"):
        network = nn.ModuleList([*layers, _projector(backbone, head, key_dim, predictor=predictor)])
    _drop_shortcuts(layers[:cut_layer], client_residual)
    _weighted(network, generator)
    client, server = layers[:cut_layer], layers[cut_layer:]
    too_small = _too_small(arch, image_size)
    image = torch.zeros(1, 3, image_size, image_size)
    smashed = _run(client, image, too_small)
    if bottleneck:
        channels, side, other = smashed.shape[1:]
        if side != other:
            raise ValueError(
                f"bottleneck: is for square maps, and those behind cut layer {cut_layer} of {arch} are {side}x{other}; "
                "allowed: without it, or another network"
            )
        if bottleneck.stride > side:
            sides = _maps(layers, image, too_small)
            cuts = [str(cut) for cut, behind in enumerate(sides, start=1) if bottleneck.stride <= behind]
            raise ValueError(
                f"bottleneck: stride {bottleneck.stride} is more than the maps of {side}x{side} behind cut layer "
                f"{cut_layer} of {arch}; allowed: stride 1 to {side}"
                + (f", or cut layer {', '.join(cuts)}" if cuts else "")
            )
        with torch.device("meta"):
            narrow = nn.Sequential(*narrowing(bottleneck, channels))
            wide = nn.Sequential(*widening(bottleneck, channels, side))
        _weighted(narrow, generator)
        _weighted(wide, generator)
        client, server = [*client, *narrow], [*wide, *server]
        smashed = _run(narrow, smashed, too_small)
    _run(server, smashed, too_small)
    shape = tuple(smashed.shape[1:])
    halves = FlatModule(nn.Sequential(*client)), FlatModule(_Encoder(server, network[-1]))
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
    options: Mapping[str, Any] | None = None,
) -> SplitModel:
    """Build an architecture with its head, all of it on the client, for plain federated learning.

    The arguments are those of `split_model`.

    Raises:
        ValueError: The images are too small for the network.
    """
    backbone = _backbone(arch, width, image_size, style or Style(), options, generator)
    with torch.device("meta"):
        network = _Encoder(backbone.layers, _projector(backbone, head, key_dim, predictor=predictor))
    _weighted(network, generator)
    _run(network.backbone, torch.zeros(1, 3, image_size, image_size), _too_small(arch, image_size))
    return SplitModel(FlatModule(network), FlatModule(nn.Identity()), (0, 0, 0), backbone.features)


def _too_small(arch: str, image_size: int) -> ValueError:
    """Return the error that images are too small for an architecture."""
    return ValueError(f"image_size: {image_size} is too small for {arch}; allowed: 32 or more")


def _projector(backbone: Backbone, head: str, key_dim: int, *, predictor: bool) -> nn.Module:
    """Return a projection head, with a predictor behind it if there is to be one."""
    build = HEADS[head].load()
    projection = build(backbone, key_dim)
    return Projection(projection, build(replace(backbone, features=key_dim), key_dim)) if predictor else projection


def _weighted(module: nn.Module, generator: torch.Generator | None) -> None:
    """Give modules on the meta device weights drawn from `generator`; leave them there if `generator` is None."""
    if not generator:
        return
    for part in module.children():
        if any(parameter.is_meta for parameter in part.parameters()):
            initialise_(part.to_empty(device="cpu"), generator)


@torch.no_grad()
def _computing(layer: nn.Module) -> nn.Module:
    """Return a layer that has weights unchanged, and of one on the meta device a copy whose weights are 0.

    Computing on the meta device itself would import further modules.
    """
    if not any(parameter.is_meta for parameter in layer.parameters()):
        return layer
    zeros = {id(own): nn.Parameter(torch.zeros(own.shape)) for own in layer.parameters()}
    return copy.deepcopy(layer, zeros | {id(own): torch.zeros(own.shape) for own in layer.buffers()})


def _maps(layers: Iterable[nn.Module], x: Tensor, too_small: ValueError) -> list[int]:
    """Return the side (height and width, in pixels) of each layer's output maps for images `x`.

    Raises:
        ValueError: `too_small`, if the maps become too small for a layer.
    """
    sides = []
    for layer in layers:
        x = _run([layer], x, too_small)
        sides.append(x.shape[2])
    return sides


@torch.no_grad()
def _run(layers: Iterable[nn.Module], x: Tensor, too_small: ValueError) -> Tensor:
    """Return a tensor with the shape of the layers' output for `x`; they run in evaluation mode.

    Raises:
        ValueError: `too_small`, if the maps become too small for a layer.
        RuntimeError: There is not enough memory.
    """
    for layer in layers:
        try:
            x = _computing(layer.eval())(x)
        except RuntimeError as error:
            if "allocate" in str(error):  # out of memory says nothing about the size of the maps
                raise
            raise too_small from error
        finally:
            layer.train()
    return x
