"""VGG (Simonyan and Zisserman, ICLR 2015) without its hidden classifier layers: only convolutions and max-pools.

As published with MocoSFL, the cut layer counts max-pools as layers, too, and convolutions have biases.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from simsfl.models.layers import Backbone, ConvNormReLU, Style


class _VGG:
    """A VGG given by the number of convolutions in each of five stages, which all end in a max-pool.

    Calling it with a width, an image size in pixels and a style builds the network.
    """

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


vgg11 = _VGG((1, 1, 2, 2, 2))
vgg13 = _VGG((2, 2, 2, 2, 2))
vgg16 = _VGG((2, 2, 3, 3, 3))
vgg19 = _VGG((2, 2, 4, 4, 4))
