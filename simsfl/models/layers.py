"""Building blocks shared by every architecture."""

from __future__ import annotations

from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class WSConv2d(nn.Conv2d):
    """Convolution with weight standardisation (Qiao et al. 2019, eq. 2).

    Each output channel's weights are centred and divided by their unbiased standard deviation
    plus 1e-5 before use.
    """

    def forward(self, x: Tensor) -> Tensor:
        rows = self.weight.flatten(1)
        centred = rows - rows.mean(dim=1, keepdim=True)
        std = centred.norm(dim=1, keepdim=True) / sqrt(rows.shape[1] - 1)  # torch.std is far slower on a CPU
        weight = (centred / (std + 1e-5)).view_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm in groups of four channels, as MocoSFL uses in place of BatchNorm."""
    return nn.GroupNorm(max(channels // 4, 1), channels)


@torch.no_grad()
def initialise_(module: nn.Module, generator: torch.Generator) -> None:
    """Xavier-uniform weights, zero biases, unit norms; drawn from `generator` alone.

    The published program means to do the same, but its type check passes over the
    weight-standardised convolutions and leaves them at PyTorch's default. Standardisation removes
    the scale of the weights from the output, so the two differ only in the effective step size.
    """
    for layer in module.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            nn.init.xavier_uniform_(layer.weight, generator=generator)
            if layer.bias is not None:
                layer.bias.zero_()
        elif isinstance(layer, (nn.GroupNorm, nn.BatchNorm1d)):
            layer.reset_parameters()
        elif any(True for _ in layer.parameters(recurse=False)):
            raise TypeError(f"no initialisation is defined for {type(layer).__name__}")
