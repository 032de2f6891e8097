"""Decoders: networks that an attacker trains to turn smashed data back into images.

There are the three kinds of the published program (and of ResSFL, Li et al., CVPR 2022): plain convolutions,
convolutions with normalisation, and residual blocks. Each doubles the maps with transposed convolutions until they are
as large as the images, and ends in a sigmoid, so that images are in [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from simsfl.config.notation import Decoder
from simsfl.models.layers import BatchNorm, initialise_


@dataclass(frozen=True)
class Training:
    """The mean squared errors of a decoder, epoch by epoch, or round by round where the server trains clients."""

    train: list[float]
    """Error on the images that the decoder learns from, averaged over each epoch while it does."""
    held_out: list[float]
    """Error after each epoch on images that it does not learn from: those of the attacker that are held out, or where
    the server trains clients, those that it is after."""


def decoder(
    spec: Decoder, smashed_shape: tuple[int, int, int], image_size: int, norm: str, generator: torch.Generator
) -> nn.Module:
    """Return a freshly initialised decoder from smashed data ``[n, c, h, w]`` to images ``[n, 3, H, H]`` in [0, 1].

    Args:
        spec: kind, depth and channels of the decoder.
        smashed_shape: ``(c, h, w)``.
        image_size: H.
        norm: "batch", as in the published attack, or "group".
        generator: a CPU generator, for the initial weights.
    """
    channels, side, _ = smashed_shape
    doublings = max(0, (image_size // side).bit_length() - 1)
    with torch.device("meta"):
        layers = _LAYERS[spec.kind](spec, channels, doublings, norm)
        if side << doublings != image_size:  # the ratio of the sides is not a power of two
            layers.append(nn.Upsample((image_size, image_size), mode="bilinear"))
        network = nn.Sequential(*layers, nn.Sigmoid())
    network = network.to_empty(device="cpu")
    initialise_(network, generator)
    return network


def _custom(spec: Decoder, channels: int, doublings: int, norm: str) -> list[nn.Module]:
    """Return plain convolutions; the channels are halved before each doubling except the last."""
    if doublings == 0:
        return [_convolution(channels, channels), nn.ReLU(), _convolution(channels, 3)]
    layers: list[nn.Module] = []
    for _ in range(doublings - 1):
        fewer = max(1, channels // 2)
        layers += [_convolution(channels, fewer), nn.ReLU(), _doubling(fewer, fewer), nn.ReLU()]
        channels = fewer
    return [*layers, _convolution(channels, channels), nn.ReLU(), _doubling(channels, 3)]


def _conv_norm(spec: Decoder, channels: int, doublings: int, norm: str) -> list[nn.Module]:
    """Return convolutions and transposed convolutions, each with normalisation."""

    def normed(layer: nn.Module, outputs: int) -> list[nn.Module]:
        return [layer, _normalisation(outputs, norm)]

    inner, layers = spec.channels, []
    for inputs in [channels] + [inner] * spec.depth:
        layers += [*normed(_convolution(inputs, inner), inner), nn.ReLU()]
    for doubles in _places(doublings):
        layer = _doubling(inner, inner) if doubles else _convolution(inner, inner)
        layers += [*normed(layer, inner), nn.ReLU()]
    return [*layers, *normed(_convolution(inner, 3), 3)]


def _res_norm(spec: Decoder, channels: int, doublings: int, norm: str) -> list[nn.Module]:
    """Return residual blocks and transposed convolutions, the latter with normalisation."""
    inner, layers = spec.channels, []
    for inputs in [channels] + [inner] * spec.depth:
        layers += [_PreActivation(inputs, inner, norm), nn.ReLU()]
    for doubles in _places(doublings):
        if doubles:
            layers += [_doubling(inner, inner), _normalisation(inner, norm), nn.ReLU()]
        else:
            layers += [_PreActivation(inner, inner, norm), nn.ReLU()]
    return [*layers, _PreActivation(inner, 3, norm)]


_LAYERS = {"custom": _custom, "conv_norm": _conv_norm, "res_norm": _res_norm}


def _places(doublings: int) -> list[bool]:
    """Return for each layer of the second part whether it doubles the maps: two layers, or one per doubling if more."""
    return [position < doublings for position in range(max(2, doublings))]


class _PreActivation(nn.Module):
    """A residual block of two 3x3 convolutions, each after normalisation and ReLU (He et al., ECCV 2016)."""

    def __init__(self, inputs: int, outputs: int, norm: str):
        super().__init__()
        self.norm1, self.conv1 = _normalisation(inputs, norm), _convolution(inputs, outputs)
        self.norm2, self.conv2 = _normalisation(outputs, norm), _convolution(outputs, outputs)
        self.shortcut = nn.Identity()
        if inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, 1, bias=False)
            self.shortcut = nn.Sequential(projection, _normalisation(outputs, norm))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(self.norm1(x).relu())
        return self.conv2(self.norm2(y).relu()) + self.shortcut(x)


def _convolution(inputs: int, outputs: int) -> nn.Conv2d:
    """Return a 3x3 convolution that keeps the size of the maps."""
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def _doubling(inputs: int, outputs: int) -> nn.ConvTranspose2d:
    """Return a transposed 3x3 convolution that doubles height and width of the maps."""
    return nn.ConvTranspose2d(inputs, outputs, 3, 2, padding=1, output_padding=1)


def _normalisation(channels: int, norm: str) -> nn.Module:
    """Return BatchNorm, or GroupNorm in groups of four channels (in one group if `channels` is no multiple of four)."""
    if norm == "batch":
        return BatchNorm(channels)
    return nn.GroupNorm(channels // 4 if channels % 4 == 0 else 1, channels)
