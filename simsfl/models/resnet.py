"""Residual networks for small images, as a list of layers that can be cut anywhere.

Cut layer c leaves the first c entries on the client: the stem is layer 1, each residual block one
more. ResNet-18 has 9 layers (He et al., CVPR 2016, with the small-image stem and without the
max-pool).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from simsfl.models.layers import ConvNorm


class Stem(nn.Module):
    """First layer: convolution, normalisation, ReLU."""

    def __init__(self, width: int, kernel: int, stride: int):
        super().__init__()
        self.conv = ConvNorm(3, width, kernel, stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x, relu=True)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut; the shortcut projects where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = ConvNorm(inputs, outputs, 3, stride)
        self.conv2 = ConvNorm(outputs, outputs, 3, 1)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else ConvNorm(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x, relu=True), residual=self.shortcut(x), relu=True)


def stages(inputs: int, widths: Sequence[int], blocks: Sequence[int], strides: Sequence[int]) -> list[nn.Module]:
    """Residual stages: `blocks[i]` blocks of `widths[i]` channels, the first with `strides[i]`."""
    layers: list[nn.Module] = []
    for width, count, stride in zip(widths, blocks, strides, strict=True):
        for position in range(count):
            layers.append(BasicBlock(inputs, width, stride if position == 0 else 1))
            inputs = width
    return layers


def resnet18(width: int, image_size: int) -> tuple[list[nn.Module], int]:
    """ResNet-18; `width` 64 is the paper's. Returns its 9 layers and the feature dimension."""
    kernel, stride = {64: (3, 2), 224: (7, 2)}.get(image_size, (3, 1))
    widths = [width, 2 * width, 4 * width, 8 * width]
    return [Stem(width, kernel, stride), *stages(width, widths, (2, 2, 2, 2), (1, 2, 2, 2))], widths[-1]


def resnet8(width: int, image_size: int) -> tuple[list[nn.Module], int]:
    """Three residual blocks behind a stride-2 stem, for machines without an accelerator."""
    widths = [2 * width, 4 * width, 8 * width]
    return [Stem(width, 3, 2), *stages(width, widths, (1, 1, 1), (2, 2, 2))], widths[-1]
