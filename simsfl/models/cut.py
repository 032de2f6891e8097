"""The bottleneck at the cut: convolutions that narrow the smashed data, transposed ones that widen it again.

As in ResSFL and MocoSFL: plain convolutions with biases, neither normalised nor weight-standardised.
"""

from __future__ import annotations

from torch import nn

from simsfl.config.notation import Bottleneck
from simsfl.models.layers import Convolution


def narrowing(bottleneck: Bottleneck, channels: int) -> list[nn.Module]:
    """The client's side, behind a layer of so many channels."""
    kernel, narrow = bottleneck.kernel, bottleneck.channels
    layers: list[nn.Module] = []
    for stride in strides(bottleneck):
        layers.append(Convolution(channels, narrow, kernel, stride, kernel // 2))
        layers += [nn.ReLU()] * bottleneck.relu
        channels = narrow
    return layers


def widening(bottleneck: Bottleneck, channels: int, side: int) -> list[nn.Module]:
    """The server's side: back to so many channels, and to maps of ``side x side``."""
    kernel, narrow = bottleneck.kernel, bottleneck.channels
    layers: list[nn.Module] = []
    for position, stride in reversed(list(enumerate(strides(bottleneck)))):
        outputs = narrow if position else channels
        if stride == 1:
            layers.append(nn.Conv2d(narrow, outputs, kernel, 1, kernel // 2))
        else:
            was_even = -(-side // 2**position) % 2 == 0  # the map that was halved; the published program adds always
            layers.append(nn.ConvTranspose2d(narrow, outputs, kernel, 2, kernel // 2, output_padding=int(was_even)))
        layers += [nn.ReLU()] * bottleneck.relu
    return layers


def strides(bottleneck: Bottleneck) -> list[int]:
    """Of the convolutions on one side."""
    return [2] * (bottleneck.stride.bit_length() - 1) or [1]
