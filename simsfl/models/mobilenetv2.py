"""MobileNetV2 (Sandler et al., CVPR 2018) for small images, with the strides of the published program.

The layers that it can be cut behind are the stem, each of the seven stages, and the last convolution. As in the
published program, and unlike in torchvision, the shortcut projects where a stage changes the number of channels at
stride 1, and the first stage has a 1x1 convolution at expansion 1. ReLU replaces ReLU6, and, unlike in the published
program, it follows the stem and the last convolution, too.
"""

from __future__ import annotations

from torch import Tensor, nn

from simsfl.models.layers import Backbone, ConvNorm, ConvNormReLU, Style
from simsfl.models.resnet import Residual

_STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, channels at width 32, number of blocks, and stride of the first block, for each stage."""


class _InvertedResidual(Residual):
    """A block of a 1x1 convolution to more channels, a 3x3 on each channel, and a 1x1 to fewer.

    It has a shortcut only at stride 1.
    """

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int, style: Style):
        super().__init__(inputs, outputs, stride, style)
        if stride > 1:
            self.drop_shortcut()
        inner = expansion * inputs
        self.conv1 = ConvNorm(inputs, inner, 1, 1, style)
        self.conv2 = ConvNorm(inner, inner, 3, stride, style, groups=inner)
        self.conv3 = ConvNorm(inner, outputs, 1, 1, style)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.conv1(x, relu=True), relu=True)
        return self.conv3(y, residual=self.residual(x))


def mobilenetv2(width: int, image_size: int, style: Style) -> Backbone:
    """Build MobileNetV2 with `width` channels behind the stem, 32 in the paper; the other layers scale with it."""
    layers: list[nn.Module] = [ConvNormReLU(3, width, 3, 1, style)]
    inputs = width
    for expansion, channels, blocks, stride in _STAGES:
        outputs = _scaled(channels, width)
        stage: list[nn.Module] = []
        for position in range(blocks):
            stage.append(_InvertedResidual(inputs, outputs, expansion, stride if position == 0 else 1, style))
            inputs = outputs
        layers.append(nn.Sequential(*stage))
    features = _scaled(1280, width)
    return Backbone([*layers, ConvNormReLU(inputs, features, 1, 1, style)], features)


def _scaled(channels: int, width: int) -> int:
    """Return the channels, a multiple of four, at `width` of a layer that has `channels` at width 32."""
    return max(4, round(channels * width / 32 / 4) * 4)
