"""Building blocks shared by every architecture."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from simsfl.kernels import conv2d, group_norm


class ConvNorm(nn.Module):
    """Weight-standardised convolution with same-size padding, then GroupNorm in groups of four channels.

    GroupNorm stands where ResNets have BatchNorm, as in MocoSFL; weight standardisation goes with it (Qiao et al.
    2019). A residual and a ReLU that follow are part of it, since they can then be done in one go.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
        self.norm = nn.GroupNorm(max(outputs // 4, 1), outputs)

    def forward(self, x: Tensor, *, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        conv, norm = self.conv, self.norm
        y = conv2d(x, conv.weight, conv.stride[0], conv.padding[0], standardise=True)
        return group_norm(y, norm.num_groups, norm.weight, norm.bias, residual=residual, relu=relu, eps=norm.eps)


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
