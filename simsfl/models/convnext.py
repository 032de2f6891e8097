"""ConvNeXt (Liu et al., CVPR 2022), which can be cut behind the stem or any block.

The stem's convolution has a stride of 4 for images of 64 pixels and more, and of 2 for smaller ones.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from simsfl.models.layers import Backbone, Convolution, Style

DEPTHS = (3, 3, 9, 3)
"""Blocks of each stage."""
_SCALE = 1e-6
"""What a block's output is multiplied by at the start."""


class _ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of maps ``[N, c, h, w]``."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class _Block(nn.Module):
    """A 7x7 convolution of each channel, then two layers on each position by itself, added to the block's input."""

    def __init__(self, width: int):
        super().__init__()
        self.spread = Convolution(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.perceptron = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.scale = nn.Parameter(torch.full((width,), _SCALE))

    def initialise_(self, generator: torch.Generator) -> None:
        """Set the scale; the layers inside are initialised like others."""
        self.scale.fill_(_SCALE)

    def forward(self, x: Tensor) -> Tensor:
        places = self.perceptron(self.norm(self.spread(x).permute(0, 2, 3, 1)))
        return x + (self.scale.to(places.dtype) * places).permute(0, 3, 1, 2)


def convnext(width: int, image_size: int, style: Style) -> Backbone:
    """Build ConvNeXt with `width` channels in the first stage, 96 in the paper; `style` is not used."""
    stride = 4 if image_size >= 64 else 2
    layers: list[nn.Module] = [nn.Sequential(Convolution(3, width, stride, stride=stride), _ChannelNorm(width))]
    for stage, depth in enumerate(DEPTHS):
        for position in range(depth):
            block: list[nn.Module] = [_Block(width)]
            if stage and not position:
                narrow, width = width, 2 * width
                block = [_ChannelNorm(narrow), Convolution(narrow, width, 2, stride=2), _Block(width)]
            layers.append(nn.Sequential(*block))
    layers[-1].append(_ChannelNorm(width))
    return Backbone(layers, width)
