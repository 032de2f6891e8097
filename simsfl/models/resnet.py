"""Residual networks for small images, as lists of layers that can be cut behind any of them.

Cut layer c leaves the first c entries on the client: the stem is layer 1, and each residual block is one more (He et
al., CVPR 2016, without the max-pool behind the stem).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from simsfl.models.layers import Backbone, ConvNorm, ConvNormReLU, Style


class Residual(nn.Module):
    """Base class of blocks with a shortcut, which projects where the shape changes, and which can be removed."""

    def __init__(self, inputs: int, outputs: int, stride: int, style: Style):
        super().__init__()
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else ConvNorm(inputs, outputs, 1, stride, style)

    def drop_shortcut(self) -> None:
        """Remove the block's shortcut."""
        self.shortcut = None

    def residual(self, x: Tensor) -> Tensor | None:
        """Return what the shortcut adds to the block's own output, or None if it has been removed."""
        return None if self.shortcut is None else self.shortcut(x)


class _BasicBlock(Residual):
    """A residual block of two 3x3 convolutions with `width` channels."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, style: Style):
        super().__init__(inputs, width, stride, style)
        self.conv1 = ConvNorm(inputs, width, 3, stride, style)
        self.conv2 = ConvNorm(width, width, 3, 1, style)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x, relu=True), residual=self.residual(x), relu=True)


class _BottleneckBlock(Residual):
    """A residual block of a 1x1 convolution to `width` channels, a 3x3, and a 1x1 to four times as many."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, style: Style):
        super().__init__(inputs, 4 * width, stride, style)
        self.conv1 = ConvNorm(inputs, width, 1, 1, style)
        self.conv2 = ConvNorm(width, width, 3, stride, style)
        self.conv3 = ConvNorm(width, 4 * width, 1, 1, style)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.conv1(x, relu=True), relu=True)
        return self.conv3(y, residual=self.residual(x), relu=True)


def _stages(
    block: type[_BasicBlock | _BottleneckBlock],
    inputs: int,
    widths: Sequence[int],
    blocks: Sequence[int],
    strides: Sequence[int],
    style: Style,
) -> list[nn.Module]:
    """Return the blocks of residual stages: stage i has `blocks[i]` of width `widths[i]`, the first at `strides[i]`."""
    layers: list[nn.Module] = []
    for width, count, stride in zip(widths, blocks, strides, strict=True):
        for position in range(count):
            layers.append(block(inputs, width, stride if position == 0 else 1, style))
            inputs = width * block.expansion
    return layers


class ResNet:
    """A ResNet given by its kind of block and the number of blocks in each of four stages.

    Calling it with a width, an image size in pixels and a style builds the network.
    """

    def __init__(self, block: type[_BasicBlock | _BottleneckBlock], blocks: Sequence[int]):
        self.block, self.blocks = block, blocks

    def __call__(self, width: int, image_size: int, style: Style) -> Backbone:
        """Build the network; the stem's stride is 2 for images of 64 and 224 pixels, as published, else 1."""
        kernel, stride = {64: (3, 2), 224: (7, 2)}.get(image_size, (3, 1))
        widths = [width, 2 * width, 4 * width, 8 * width]
        blocks = _stages(self.block, width, widths, self.blocks, (1, 2, 2, 2), style)
        expansion = self.block.expansion
        return Backbone([ConvNormReLU(3, width, kernel, stride, style), *blocks], widths[-1] * expansion, expansion)


class _ResNet8:
    """Three residual blocks of stride 2 behind a stem, a small network for machines without an accelerator.

    Calling it with a width, an image size in pixels and a style builds the network.
    """

    def __init__(self, stem_stride: int):
        self.stem_stride = stem_stride

    def __call__(self, width: int, image_size: int, style: Style) -> Backbone:
        """Build the network."""
        widths = [2 * width, 4 * width, 8 * width]
        blocks = _stages(_BasicBlock, width, widths, (1, 1, 1), (2, 2, 2), style)
        return Backbone([ConvNormReLU(3, width, 3, self.stem_stride, style), *blocks], widths[-1])


resnet8, resnet8_s1 = _ResNet8(stem_stride=2), _ResNet8(stem_stride=1)
resnet18 = ResNet(_BasicBlock, (2, 2, 2, 2))
resnet34 = ResNet(_BasicBlock, (3, 4, 6, 3))
resnet50 = ResNet(_BottleneckBlock, (3, 4, 6, 3))
resnet101 = ResNet(_BottleneckBlock, (3, 4, 23, 3))
resnet152 = ResNet(_BottleneckBlock, (3, 8, 36, 3))
