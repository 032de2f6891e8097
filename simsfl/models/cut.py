"""The bottleneck at the cut: convolutions that narrow the smashed data, and transposed ones that widen them again.

As in ResSFL and MocoSFL, the convolutions have biases, and are neither normalised nor weight-standardised.
"""

from __future__ import annotations

from torch import nn

from simsfl.config.notation import Bottleneck
from simsfl.models.layers import Convolution


def narrowing(bottleneck: Bottleneck, channels: int) -> list[nn.Module]:
    """Return the bottleneck's layers on the client, which follow a layer with `channels` output channels."""
    kernel, narrow = bottleneck.kernel, bottleneck.channels
    layers: list[nn.Module] = []
    for stride in _strides(bottleneck):
        layers.append(Convolution(channels, narrow, kernel, stride, kernel // 2))
        layers += [nn.ReLU()] * bottleneck.relu
        channels = narrow
    return layers


def widening(bottleneck: Bottleneck, channels: int, side: int) -> list[nn.Module]:
    """Return the bottleneck's layers on the server, which restore `channels` channels and maps of ``side x side``."""
    kernel, narrow = bottleneck.kernel, bottleneck.channels
    layers: list[nn.Module] = []
    for position, stride in reversed(list(enumerate(_strides(bottleneck)))):
        outputs = narrow if position else channels
        if stride == 1:
            layers.append(nn.Conv2d(narrow, outputs, kernel, 1, kernel // 2))
        else:
            # output padding restores a map that was even before it was halved; the published program always adds it
            was_even = -(-side // 2**position) % 2 == 0
            layers.append(nn.ConvTranspose2d(narrow, outputs, kernel, 2, kernel // 2, output_padding=int(was_even)))
        layers += [nn.ReLU()] * bottleneck.relu
    return layers


def _strides(bottleneck: Bottleneck) -> list[int]:
    """Return the stride of each convolution on one side of the cut: ``[2, 2]`` for stride 4, ``[1]`` for stride 1."""
    return [2] * (bottleneck.stride.bit_length() - 1) or [1]
