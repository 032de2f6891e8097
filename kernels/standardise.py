"""Weight standardisation of all of a network's convolutions in one pass over its flat parameters.

    u = (w - mean) / (std + 1e-5)

over the weights w of each output channel, with the unbiased std (Qiao et al. 2019, eq. 2). The same pass rounds all
other weight matrices to the same dtype, so that all weights of a forward pass are prepared at once, rather than by a
dozen small operations per layer. The weights of convolutions come out in channels-last order, which cuDNN's fastest
convolutions read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from simsfl.kernels import gpu
from simsfl.kernels.gpu import jit, tl

_EPSILON = 1e-5
"""Number added to the standard deviation that standardised weights are divided by."""
_BLOCK = 1024
"""Weights that a Triton program handles at a time."""


@dataclass(frozen=True)
class Matrix:
    """The place of a weight tensor in the flat parameters, and how `prepare` treats it."""

    start: int
    """Index of the tensor's first weight in the flat parameters."""
    shape: tuple[int, ...]
    """Shape of the tensor: ``[O, I, h, w]`` of a convolution, or any other, such as ``[O, I]``."""
    standardised: bool
    """Whether the weights of each output channel are standardised."""

    @property
    def size(self) -> int:
        """Number of weights in the tensor."""
        return prod(self.shape)

    @property
    def taps(self) -> int:
        """``h * w`` of a convolution, which comes out channels-last; 1 of another tensor, which keeps its order."""
        return prod(self.shape[2:]) if len(self.shape) == 4 else 1


class Layout:
    """The weight tensors of a network as `prepare` takes them, with one row for each output channel.

    Args:
        matrices: The weight tensors, in the order in which `prepare` returns them, one after the other.
        device: Device of `rows`.

    Attributes:
        matrices: The weight tensors.
        size: W, the total number of weights.
        rows: ``[R, 5]`` int32, for each output channel: start in the flat parameters, start in the prepared weights,
            number of weights, taps, and whether they are standardised (1 or 0). A vector is one row.
    """

    def __init__(self, matrices: Sequence[Matrix], device: torch.device):
        self.matrices = list(matrices)
        self.size = sum(matrix.size for matrix in matrices)
        rows, begin = [], 0
        for matrix in matrices:
            length = matrix.size // matrix.shape[0] if len(matrix.shape) > 1 else matrix.size
            for offset in range(0, matrix.size, length):
                rows.append([matrix.start + offset, begin + offset, length, matrix.taps, int(matrix.standardised)])
            begin += matrix.size
        self.rows = torch.tensor(rows, dtype=torch.int32, device=device).view(-1, 5)

    def split(self, flat_W: Tensor) -> list[Tensor]:
        """Return views into ``flat_W [W]`` in the shape of each weight tensor, those of convolutions channels-last."""
        return [
            part.view(matrix.shape[0], *matrix.shape[2:], matrix.shape[1]).permute(0, 3, 1, 2)
            if len(matrix.shape) == 4
            else part.view(matrix.shape)
            for matrix, part in zip(self.matrices, flat_W.split([m.size for m in self.matrices]), strict=True)
        ]

    def join(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return the vector ``[W]`` of tensors in the weights' shapes, such as gradients; the inverse of `split`."""
        return torch.cat([(t.permute(0, 2, 3, 1) if t.ndim == 4 else t).reshape(-1) for t in tensors])


@torch.no_grad()
def prepare(flat_P: Tensor, layout: Layout, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the prepared weights ``[W]`` in `dtype`, and each row's mean and deviation plus epsilon, ``[R, 2]``.

    The mean is 0 and the divisor 1 for rows that are not standardised.

    Args:
        flat_P: Parameters of a network, ``[P]``.
        layout: The weight tensors among the parameters.
        dtype: Floating-point type of the prepared weights.
    """
    weights_W = torch.empty(layout.size, device=flat_P.device, dtype=dtype)
    moments_R2 = torch.empty(len(layout.rows), 2, device=flat_P.device, dtype=flat_P.dtype)
    (_triton_prepare_ if gpu.usable(flat_P) else _plain_prepare_)(flat_P, layout, weights_W, moments_R2)
    return weights_W, moments_R2


@torch.no_grad()
def prepare_backward_(gradient_P: Tensor, grad_W: Tensor, flat_P: Tensor, moments_R2: Tensor, layout: Layout) -> None:
    """Write the gradient of the flat parameters into `gradient_P`, computed from that of the prepared weights.

    With c = w - mean and s = std + eps, the gradient of w is
    ``(g - mean(g) - c sum(g c) / (s std (n - 1))) / s`` for the n weights of an output channel.

    Args:
        gradient_P: Gradient of the parameters, ``[P]``; written where the layout's weights lie, unchanged elsewhere.
        grad_W: g, the gradient of the prepared weights, ``[W]``.
        flat_P: The parameters ``[P]`` that `prepare` was given.
        moments_R2: The moments ``[R, 2]`` that `prepare` returned.
        layout: The weight tensors among the parameters.
    """
    version = _triton_prepare_backward_ if gpu.usable(flat_P) else _plain_prepare_backward_
    version(gradient_P, grad_W, flat_P, moments_R2, layout)


def _plain_prepare_(flat_P: Tensor, layout: Layout, weights_W: Tensor, moments_R2: Tensor) -> None:
    """Write the results of `prepare` into `weights_W` and `moments_R2`, tensor by tensor."""
    row = 0
    for matrix, out in zip(layout.matrices, layout.split(weights_W), strict=True):
        weight = _matrix_of(flat_P, matrix)
        moments = moments_R2[row : row + len(weight)]
        row += len(weight)
        if matrix.standardised:
            std, mean = torch.std_mean(weight, dim=1, keepdim=True)
            moments.copy_(torch.cat([mean, std + _EPSILON], dim=1))
        else:
            moments[:, 0].zero_()  # not copied from the host, which a recorded step must not do
            moments[:, 1].fill_(1.0)
        mean, scale = moments.split(1, dim=1)
        out.copy_(((weight - mean) / scale).view(matrix.shape))


def _plain_prepare_backward_(
    gradient_P: Tensor, grad_W: Tensor, flat_P: Tensor, moments_R2: Tensor, layout: Layout
) -> None:
    """Write the gradient of `prepare_backward_` into `gradient_P`, tensor by tensor."""
    row = 0
    for matrix, grad in zip(layout.matrices, layout.split(grad_W), strict=True):
        out, weight = _matrix_of(gradient_P, matrix), _matrix_of(flat_P, matrix)
        mean, scale = moments_R2[row : row + len(weight)].split(1, dim=1)
        row += len(weight)
        g = grad.reshape(weight.shape).to(flat_P.dtype)
        if matrix.standardised:
            c, std = weight - mean, scale - _EPSILON
            through = (g * c).sum(dim=1, keepdim=True) / (scale * std.clamp(min=1e-12) * (weight.shape[1] - 1))
            g = (g - g.mean(dim=1, keepdim=True) - c * through) / scale
        out.copy_(g)


def _triton_prepare_(flat_P: Tensor, layout: Layout, weights_W: Tensor, moments_R2: Tensor) -> None:
    """Write the results of `prepare` into `weights_W` and `moments_R2`, with one Triton program per row."""
    _standardise_forward_kernel[(len(layout.rows),)](flat_P, layout.rows, weights_W, moments_R2, _EPSILON, BLOCK=_BLOCK)


def _triton_prepare_backward_(
    gradient_P: Tensor, grad_W: Tensor, flat_P: Tensor, moments_R2: Tensor, layout: Layout
) -> None:
    """Write the gradient of `prepare_backward_` into `gradient_P`, with one Triton program per row."""
    _standardise_backward_kernel[(len(layout.rows),)](
        grad_W, flat_P, layout.rows, moments_R2, gradient_P, _EPSILON, BLOCK=_BLOCK
    )


def _matrix_of(flat_P: Tensor, matrix: Matrix) -> Tensor:
    """Return a view of a weight tensor in the flat parameters as ``[output channels, weights of each]``."""
    part = flat_P[matrix.start : matrix.start + matrix.size]
    return part.view(matrix.shape[0] if len(matrix.shape) > 1 else 1, -1)


@jit
def _standardise_forward_kernel(flat, rows, weights, moments, EPS, BLOCK: tl.constexpr):
    """Prepare one row: compute the mean, then the deviation, then write the weights in the order of the result."""
    row = tl.program_id(0)
    source, target = tl.load(rows + row * 5).to(tl.int64), tl.load(rows + row * 5 + 1).to(tl.int64)
    length, taps = tl.load(rows + row * 5 + 2), tl.load(rows + row * 5 + 3)
    standardised = tl.load(rows + row * 5 + 4)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, length, BLOCK):
        k = start + tl.arange(0, BLOCK)
        total += tl.load(flat + source + k, mask=k < length, other=0.0)
    mean = tl.sum(total, axis=0) / length
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, length, BLOCK):
        k = start + tl.arange(0, BLOCK)
        centred = tl.where(k < length, tl.load(flat + source + k, mask=k < length, other=0.0) - mean, 0.0)
        total += centred * centred
    scale = tl.sqrt(tl.sum(total, axis=0) / (length - 1)) + EPS
    mean, scale = tl.where(standardised == 1, mean, 0.0), tl.where(standardised == 1, scale, 1.0)
    tl.store(moments + row * 2, mean)
    tl.store(moments + row * 2 + 1, scale)
    inputs = length // taps
    for start in range(0, length, BLOCK):
        k = start + tl.arange(0, BLOCK)
        value = tl.load(flat + source + k % inputs * taps + k // inputs, mask=k < length, other=0.0)
        tl.store(weights + target + k, ((value - mean) / scale).to(weights.dtype.element_ty), mask=k < length)


@jit
def _standardise_backward_kernel(grad, flat, rows, moments, gradient, EPS, BLOCK: tl.constexpr):
    """Write the gradient of one row's weights: compute two sums over the row, then the values."""
    row = tl.program_id(0)
    source, target = tl.load(rows + row * 5).to(tl.int64), tl.load(rows + row * 5 + 1).to(tl.int64)
    length, taps = tl.load(rows + row * 5 + 2), tl.load(rows + row * 5 + 3)
    standardised = tl.load(rows + row * 5 + 4)
    mean, scale = tl.load(moments + row * 2), tl.load(moments + row * 2 + 1)
    inputs = length // taps
    plain = tl.zeros((BLOCK,), dtype=tl.float32)
    product = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, length, BLOCK):
        k = start + tl.arange(0, BLOCK)
        g = tl.load(grad + target + k % taps * inputs + k // taps, mask=k < length, other=0.0).to(tl.float32)
        plain += g
        product += g * (tl.load(flat + source + k, mask=k < length, other=0.0) - mean)
    std = tl.maximum(scale - EPS, 1e-12)
    mean_grad = tl.where(standardised == 1, tl.sum(plain, axis=0) / length, 0.0)
    through = tl.where(standardised == 1, tl.sum(product, axis=0) / (scale * std * (length - 1)), 0.0)
    for start in range(0, length, BLOCK):
        k = start + tl.arange(0, BLOCK)
        g = tl.load(grad + target + k % taps * inputs + k // taps, mask=k < length, other=0.0).to(tl.float32)
        centred = tl.load(flat + source + k, mask=k < length, other=0.0) - mean
        tl.store(gradient + source + k, (g - mean_grad - centred * through) / scale, mask=k < length)
