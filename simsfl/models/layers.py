"""Building blocks that all architectures share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simsfl.kernels import conv2d, group_norm, group_norm_nhwc

__all__ = ["Backbone", "Style"]


@dataclass(frozen=True)
class Style:
    """How a network's convolutions are normalised."""

    norm: str = "group"
    """Normalisation behind each convolution: "group", GroupNorm in groups of four channels, or "batch", BatchNorm."""
    standardise: bool = True
    """Whether the convolutions' weights are standardised (Qiao et al. 2019)."""


@dataclass(frozen=True)
class Backbone:
    """A network without its head, as a list of layers that can be cut behind any of them.

    The first layer takes images ``[n, 3, h, w]``, and every layer returns maps ``[n, c, h, w]``, which are smashed data
    where the network is cut behind it. Tokens ``[n, t, d]`` are kept as maps ``[n, d, h, w]`` with ``t = h * w``, or as
    ``[n, d, t, 1]``; `simsfl.models.vit` does so.
    """

    layers: list[nn.Module]
    """Layers in order, each with modules and weights of its own; cut layer c leaves the first c on the client."""
    features: int
    """F, the number of channels behind the last layer."""
    expansion: int = 1
    """Channels between the network's blocks divided by the channels inside them: 4 for bottleneck blocks, else 1."""


class BatchNorm(nn.Module):
    """Batch normalisation over all dimensions but the second, which can be mapped over clients.

    PyTorch's own BatchNorm silently fails to update the running statistics under `vmap`.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.momentum, self.eps = 0.1, 1e-5
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        if not self.training:
            mean, var = self.running_mean.to(x.dtype), self.running_var.to(x.dtype)
            return F.batch_norm(x, mean, var, weight, bias, eps=self.eps)
        with torch.no_grad():
            var, mean = torch.var_mean(x, dim=[d for d in range(x.ndim) if d != 1])
            for running, now in ((self.running_mean, mean), (self.running_var, var)):
                running.mul_(1.0 - self.momentum).add_(now.to(running.dtype), alpha=self.momentum)
        return F.batch_norm(x, None, None, weight, bias, training=True, eps=self.eps)


def made_stackable_(module: nn.Module, device: torch.device) -> None:
    """Change a module's layers, in place, so that they can be mapped over clients' weights.

    Those of BatchNorm are replaced by this module's, and no layer overwrites what it gets, which may be a leaf of a
    graph.

    Args:
        module: a module, whose parts are looked at.
        device: device of the new layers.

    Raises:
        ValueError: a layer is random, such as dropout, computes its weights from others, or is a kind of normalisation
            that is not known here.
    """
    for name, part in list(module.named_children()):
        if getattr(part, "inplace", False):
            setattr(part, "inplace", False)  # noqa: B010  (not every module has it)
        if hasattr(part, "parametrizations"):
            raise ValueError(
                f"arch: {type(part).__name__} has weights that are computed from others (torch.nn.utils.parametrize); "
                "allowed: layers whose parameters are their weights"
            )
        if isinstance(part, nn.modules.dropout._DropoutNd) and part.p:
            raise ValueError(
                f"arch: {type(part).__name__} draws random numbers, which a resumed run would not draw again; "
                "allowed: without it, or with p=0"
            )
        if (
            isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d))
            and part.affine
            and part.track_running_stats
            and part.momentum is not None  # None would average over all batches so far
        ):
            own = BatchNorm(part.num_features).to(device)
            own.eps, own.momentum = part.eps, part.momentum
            own.load_state_dict({key: value for key, value in part.state_dict().items() if key in own.state_dict()})
            setattr(module, name, own)
        elif isinstance(part, nn.modules.batchnorm._NormBase):
            raise ValueError(
                f"arch: {type(part).__name__} cannot be stacked over clients; allowed: without it, or with BatchNorm"
            )
        else:
            made_stackable_(part, device)


class ConvNorm(nn.Module):
    """Convolution with same-size padding, then normalisation, then optionally a residual added, then ReLU.

    As in MocoSFL, GroupNorm replaces the usual BatchNorm, and weights are standardised, unless `style` says otherwise.
    The residual and the ReLU are part of this layer, so that they can be computed together with the normalisation.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int, style: Style, *, groups: int = 1, bias: bool = False
    ):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=bias)
        self.norm = nn.GroupNorm(max(outputs // 4, 1), outputs) if style.norm == "group" else BatchNorm(outputs)
        self.standardise = style.standardise
        self.channels_last = False

    def forward(self, x: Tensor, *, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        norm, y = self.norm, _convolve(self.conv, x, standardise=self.standardise)
        if isinstance(norm, nn.GroupNorm):
            normalise = group_norm_nhwc if self.channels_last else group_norm
            return normalise(y, norm.num_groups, norm.weight, norm.bias, residual=residual, relu=relu, eps=norm.eps)
        y = norm(y)
        if residual is not None:
            y = y + residual
        return y.relu() if relu else y


class ConvNormReLU(ConvNorm):
    """Convolution, normalisation and ReLU, as a layer that takes only its input."""

    def forward(self, x: Tensor, *, residual: Tensor | None = None, relu: bool = True) -> Tensor:
        return super().forward(x, residual=residual, relu=relu)


class Convolution(nn.Conv2d):
    """A plain convolution, without normalisation, which can be mapped over clients' weights."""

    def forward(self, x: Tensor) -> Tensor:
        return _convolve(self, x)


def _convolve(conv: nn.Conv2d, x: Tensor, *, standardise: bool = False) -> Tensor:
    """Return the output of `conv` for `x`, computed by `kernels.conv2d`."""
    assert not isinstance(conv.padding, str)  # such as "same", which no network here has
    y = conv2d(x, conv.weight, conv.stride[0], conv.padding[0], conv.groups, standardise=standardise)
    return y if conv.bias is None else y + conv.bias.to(y.dtype)[:, None, None]


@torch.no_grad()
def initialise_(module: nn.Module, generator: torch.Generator) -> None:
    """Initialise a module in place: Xavier-uniform weights, zero biases, unit norms.

    Layers of other kinds have a method ``initialise_(generator)`` for the parameters that are their own.
    All random numbers are drawn from `generator`.

    The published program intends to do the same, but its type check skips the weight-standardised convolutions and
    leaves them at PyTorch's default. Standardisation removes the scale of the weights from the output, so the two
    differ only in the effective step size.

    Raises:
        TypeError: A layer with parameters is of a type for which no initialisation is defined.
    """
    for layer in module.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.xavier_uniform_(layer.weight, generator=generator)
            if layer.bias is not None:
                layer.bias.zero_()
        elif isinstance(layer, (nn.GroupNorm, nn.LayerNorm, BatchNorm)):
            layer.weight.fill_(1.0)
            layer.bias.zero_()
            for name, statistic in layer.named_buffers():
                statistic.fill_(1.0 if name == "running_var" else 0.0)
        elif callable(own := getattr(layer, "initialise_", None)):
            own(generator)
        elif any(True for _ in layer.parameters(recurse=False)):
            raise TypeError(f"no initialisation is defined for {type(layer).__name__}")
