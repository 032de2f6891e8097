"""Decoders: networks that an attacker trains to turn smashed data back into images.

The three kinds of the published program (and of ResSFL, Li et al., CVPR 2022): plain convolutions, convolutions with
normalisation, residual blocks. Each doubles the maps with transposed convolutions until they are as large as the
images, and ends in a sigmoid: images in [0, 1].
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from simsfl.config.notation import Decoder
from simsfl.models.layers import BatchNorm, initialise_


def decoder(
    spec: Decoder, smashed_shape: tuple[int, int, int], image_size: int, norm: str, generator: torch.Generator
) -> nn.Module:
    """A freshly initialised decoder of smashed data ``[n, c, h, w]`` to images ``[n, 3, H, H]`` in [0, 1].

    Args:
        norm: "batch", as the published attack has it, or "group".
    """
    channels, side, _ = smashed_shape
    doublings = max(0, (image_size // side).bit_length() - 1)
    with torch.device("meta"):
        layers = LAYERS[spec.kind](spec, channels, doublings, norm)
        if side << doublings != image_size:  # sides that are no power of two apart
            layers.append(nn.Upsample((image_size, image_size), mode="bilinear"))
        network = nn.Sequential(*layers, nn.Sigmoid())
    network = network.to_empty(device="cpu")
    initialise_(network, generator)
    return network


def custom(spec: Decoder, channels: int, doublings: int, norm: str) -> list[nn.Module]:
    """Plain convolutions, with half as many channels behind each doubling but the last."""
    if doublings == 0:
        return [convolution(channels, channels), nn.ReLU(), convolution(channels, 3)]
    layers: list[nn.Module] = []
    for _ in range(doublings - 1):
        fewer = max(1, channels // 2)
        layers += [convolution(channels, fewer), nn.ReLU(), doubling(fewer, fewer), nn.ReLU()]
        channels = fewer
    return [*layers, convolution(channels, channels), nn.ReLU(), doubling(channels, 3)]


def conv_norm(spec: Decoder, channels: int, doublings: int, norm: str) -> list[nn.Module]:
    """Convolutions, each normalised."""

    def normed(layer: nn.Module, outputs: int) -> list[nn.Module]:
        return [layer, normalisation(outputs, norm)]

    inner, layers = spec.channels, []
    for inputs in [channels] + [inner] * spec.depth:
        layers += [*normed(convolution(inputs, inner), inner), nn.ReLU()]
    for doubles in places(doublings):
        layer = doubling(inner, inner) if doubles else convolution(inner, inner)
        layers += [*normed(layer, inner), nn.ReLU()]
    return [*layers, *normed(convolution(inner, 3), 3)]


def res_norm(spec: Decoder, channels: int, doublings: int, norm: str) -> list[nn.Module]:
    """Residual blocks; transposed convolutions are normalised."""
    inner, layers = spec.channels, []
    for inputs in [channels] + [inner] * spec.depth:
        layers += [PreActivation(inputs, inner, norm), nn.ReLU()]
    for doubles in places(doublings):
        if doubles:
            layers += [doubling(inner, inner), normalisation(inner, norm), nn.ReLU()]
        else:
            layers += [PreActivation(inner, inner, norm), nn.ReLU()]
    return [*layers, PreActivation(inner, 3, norm)]


LAYERS = {"custom": custom, "conv_norm": conv_norm, "res_norm": res_norm}


def places(doublings: int) -> list[bool]:
    """Of two layers, or of more where there is more to do: whether each doubles the maps."""
    return [position < doublings for position in range(max(2, doublings))]


class PreActivation(nn.Module):
    """A residual block of two 3x3 convolutions, normalised and rectified before each (He et al., ECCV 2016)."""

    def __init__(self, inputs: int, outputs: int, norm: str):
        super().__init__()
        self.norm1, self.conv1 = normalisation(inputs, norm), convolution(inputs, outputs)
        self.norm2, self.conv2 = normalisation(outputs, norm), convolution(outputs, outputs)
        self.shortcut = nn.Identity()
        if inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, 1, bias=False)
            self.shortcut = nn.Sequential(projection, normalisation(outputs, norm))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(self.norm1(x).relu())
        return self.conv2(self.norm2(y).relu()) + self.shortcut(x)


def convolution(inputs: int, outputs: int) -> nn.Conv2d:
    """3x3, the maps as large as before."""
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def doubling(inputs: int, outputs: int) -> nn.ConvTranspose2d:
    """Transposed 3x3, the maps twice as large."""
    return nn.ConvTranspose2d(inputs, outputs, 3, 2, padding=1, output_padding=1)


def normalisation(channels: int, norm: str) -> nn.Module:
    """Of so many channels; in groups of four, where that is even."""
    if norm == "batch":
        return BatchNorm(channels)
    return nn.GroupNorm(channels // 4 if channels % 4 == 0 else 1, channels)
