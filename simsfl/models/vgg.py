"""VGG (Simonyan and Zisserman, ICLR 2015) without its hidden classifier layers: convolutions and max-pools in a row.

As published with MocoSFL every pool counts as a layer, too, when it comes to the cut, and convolutions have biases.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from simsfl.models.layers import Backbone, ConvNormReLU, Style


class VGG:
    """VGG by the convolutions in each of five stages; called, it builds the network."""

    def __init__(self, convolutions: Sequence[int]):
        self.convolutions = convolutions

    def __call__(self, width: int, image_size: int, style: Style) -> Backbone:
        layers: list[nn.Module] = []
        inputs = 3
        for count, factor in zip(self.convolutions, (1, 2, 4, 8, 8), strict=True):
            for _ in range(count):
                layers.append(ConvNormReLU(inputs, factor * width, 3, 1, style, bias=True))
                inputs = factor * width
            layers.append(nn.MaxPool2d(2))
        return Backbone(layers, inputs)
