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
from simsfl.system.memory import is_out_of_memory
from simsfl.system.messages import kind_of, shortened

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

    Raises:
        ValueError: what the architecture returns is no backbone, or uses something in two layers.
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
    layers = _layers_of(arch, Backbone(built, 0) if isinstance(built, list) else built)
    made_stackable_(nn.ModuleList(layers), own)
    if not isinstance(built, list):
        return built
    return Backbone(layers, _run(layers, _Tried(arch, image_size)).shape[1])


def _layers_of(arch: str, built: Any) -> list[nn.Module]:
    """Return the layers of what an architecture has returned; raise a ValueError if it is no backbone."""
    if not isinstance(built, Backbone):
        raise ValueError(f"arch: {arch} returns {kind_of(built)}; allowed: a Backbone(layers, features)")
    layers = built.layers
    if not isinstance(built.features, int):
        raise ValueError(f"arch: {arch} says that it has {built.features!r} features; allowed: a whole number")
    if not isinstance(layers, list) or not layers or not all(isinstance(layer, nn.Module) for layer in layers):
        raise ValueError(
            f"arch: {arch} returns a Backbone whose layers are {kind_of(layers)}; allowed: a list of modules, "
            "at least one"
        )
    owner: dict[int, int] = {}
    for number, layer in enumerate(layers, start=1):
        if not all(parameter.requires_grad for parameter in layer.parameters()):
            raise ValueError(
                f"arch: {arch} has weights in layer {number}, {type(layer).__name__}, that need no gradient; allowed: "
                "weights that are trained, or buffers"
            )
        for part in (layer, *layer.parameters()):
            if owner.setdefault(id(part), number) != number:
                raise ValueError(
                    f"arch: {arch} uses {type(layer).__name__}, or weights of it, as layers {owner[id(part)]} and "
                    f"{number}; allowed: modules of its own for each layer"
                )
    return layers


def layer_count(arch: str, options: Mapping[str, Any] | None = None, image_size: int | None = None) -> int:
    """Return the number of layers of an architecture with these options, which is the deepest cut layer allowed.

    Args:
        arch: a name in `ARCHITECTURES`.
        options: its options by name; None for its defaults.
        image_size: height and width of images in pixels; None for 32.

    Raises:
        ValueError: what a plugin's function returns is no backbone.
    """
    return len(_backbone(arch, ARCHITECTURES[arch].width, image_size or 32, Style(), options).layers)


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
        channels = _run(layers, _Tried(arch, image_size)).shape[1]
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
        ValueError: The images are too small for the network, or what it has at the cut does not suit the bottleneck,
            or its layers do not return what they should.
    """
    backbone = _backbone(arch, width, image_size, style or Style(), options, generator)
    layers = backbone.layers
    with torch.device("meta"):
        network = nn.ModuleList([*layers, _projector(backbone, head, key_dim, predictor=predictor)])
    _drop_shortcuts(layers[:cut_layer], client_residual)
    _weighted(network, generator)
    client, server = layers[:cut_layer], layers[cut_layer:]
    tried = _Tried(arch, image_size)
    smashed = _run(client, tried)
    if not any(True for layer in client for _ in layer.parameters()):
        raise ValueError(f"cut_layer: {cut_layer} of {arch} leaves clients without weights; allowed: deeper ones")
    if bottleneck:
        channels, side, other = smashed.shape[1:]
        if side != other:
            raise ValueError(
                f"bottleneck: is for square maps, and those behind cut layer {cut_layer} of {arch} are {side}x{other}; "
                "allowed: without it, or another network"
            )
        if bottleneck.stride > side:
            sides = _maps(layers, tried)
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
        smashed = _run(narrow, tried, smashed)
    tried.check_features(backbone, _run(server, tried, smashed))
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
        ValueError: The images are too small for the network, or its layers do not return what they should.
    """
    backbone = _backbone(arch, width, image_size, style or Style(), options, generator)
    with torch.device("meta"):
        network = _Encoder(backbone.layers, _projector(backbone, head, key_dim, predictor=predictor))
    _weighted(network, generator)
    tried = _Tried(arch, image_size)
    tried.check_features(backbone, _run(network.backbone, tried))
    return SplitModel(FlatModule(network), FlatModule(nn.Identity()), (0, 0, 0), backbone.features)


@dataclass(frozen=True)
class _Tried:
    """A network that is run once on an image of zeros."""

    arch: str
    image_size: int

    @property
    def from_plugin(self) -> bool:
        """Return whether the network is somebody else's."""
        return ARCHITECTURES[self.arch].code.registered is not None

    def failure(self, layer: nn.Module, error: Exception) -> ValueError:
        """Return the error that a layer has failed: maps are too small for it, or it is wrong in a plugin."""
        if not self.from_plugin:
            return ValueError(f"image_size: {self.image_size} is too small for {self.arch}; allowed: 32 or more")
        reason = shortened(" ".join(f"{type(error).__name__}: {error}".split()), 200)
        return ValueError(
            f"arch: {self.arch} cannot compute its layer {type(layer).__name__} for images of {self.image_size} pixels "
            f"({reason}); allowed: layers that take the maps [n, c, h, w] of the one before, or larger images"
        )

    def check_maps(self, layer: nn.Module, x: Any) -> None:
        """Raise a ValueError unless a layer's output is maps of one image."""
        if not (isinstance(x, Tensor) and x.ndim == 4 and len(x) == 1):
            found = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else f"type {type(x).__name__}"
            raise ValueError(
                f"arch: {self.arch} has a layer {type(layer).__name__} whose output for one image has {found}; "
                "allowed: maps [n, c, h, w] behind every layer, also of tokens"
            )

    def check_features(self, backbone: Backbone, x: Tensor) -> None:
        """Raise a ValueError unless the last layer's output has as many channels as a backbone says."""
        if x.shape[1] != backbone.features:
            raise ValueError(
                f"arch: {self.arch} says that it has {backbone.features} features; allowed: {x.shape[1]}, the channels "
                "behind its last layer"
            )


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


def _maps(layers: Iterable[nn.Module], tried: _Tried) -> list[int]:
    """Return the side (height and width, in pixels) of each layer's output maps; see `_run` for what is raised."""
    sides, x = [], None
    for layer in layers:
        x = _run([layer], tried, x)
        sides.append(x.shape[2])
    return sides


@torch.no_grad()
def _run(layers: Iterable[nn.Module], tried: _Tried, x: Tensor | None = None) -> Tensor:
    """Return a tensor with the shape of the layers' output for `x`; they run in evaluation mode.

    Args:
        layers: some layers of a network.
        tried: the network.
        x: what they get; None for an image.

    Raises:
        ValueError: the maps become too small for a layer, or it does not return maps.
        RuntimeError: There is not enough memory.
    """
    x = torch.zeros(1, 3, tried.image_size, tried.image_size) if x is None else x
    for layer in layers:
        try:
            x = _computing(layer.eval())(x)
        except Exception as error:  # whatever somebody's layer raises
            known = tried.from_plugin or isinstance(error, RuntimeError)
            if not known or is_out_of_memory(error):  # out of memory says nothing about the size of the maps
                raise
            raise tried.failure(layer, error) from error
        finally:
            layer.train()
        tried.check_maps(layer, x)
    return x
