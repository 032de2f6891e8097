"""Group normalisation of one model's channels-last images, then optionally a residual, then ReLU.

    y = relu(weight[c] * (x - mean) / sqrt(var + eps) + bias[c] + residual)

for x ``[N, ch, H, W]`` in PyTorch's channels-last memory format, weight and bias ``[ch]``, mean and (biased) variance
over the pixels of each group of channels of each image (Wu and He, ECCV 2018). `group_norm` does the same for stacked
clients. The server has its own version because cuDNN's fastest bfloat16 convolutions on CUDA devices read and write
channels-last tensors, which PyTorch's GroupNorm would copy to the contiguous format and back.

There is one kernel for the forward pass and one for the backward pass, residual and ReLU included. A program handles
all pixels of a block of channels of one image, in two passes. What the second pass reads is still in the caches, or in
registers if it fits there.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from simsfl.kernels import gpu
from simsfl.kernels.gpu import add_both, jit, tl
from simsfl.kernels.memory_format import channels_last
from simsfl.kernels.stacking import custom_op

TILE = 2048
"""Values that a program holds at a time."""
WARPS = 4
"""Warps per program."""
NARROWEST = 32
"""Minimum number of channels that a program reads of each pixel, if there are as many: 64 bytes in bfloat16."""


def group_norm_nhwc(
    x: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    *,
    residual: Tensor | None = None,
    relu: bool = False,
    eps: float = 1e-5,
) -> Tensor:
    """Return the normalised images, channels-last, in the shape and dtype of `x`.

    Triton is used where it supports `x` and the number of channels per group is a power of two, PyTorch elsewhere.

    Args:
        x: Images, ``[N, ch, H, W]``; Triton works on a copy if they are not channels-last.
        groups: Number of groups of channels, which divides ch.
        weight: Scale of each channel, ``[ch]``, or ``[N, ch]`` with one row per image, such as an expanded vector; its
            gradient has the same shape. In float32 or the dtype of `x`.
        bias: Shift of each channel, ``[ch]`` or ``[N, ch]`` like `weight`.
        residual: Added before the ReLU, ``[N, ch, H, W]``.
        relu: Whether to apply a ReLU at the end.
        eps: Added to the variance.
    """
    if gpu.usable(x) and _is_power_of_2(x.shape[1] // groups):
        weight, bias = ((p if p.stride(-1) == 1 else p.contiguous()).expand(len(x), -1) for p in (weight, bias))
        return _operator(x, weight, bias, residual, groups, relu, eps)[0]
    weight, bias = (p.to(x.dtype)[..., None, None] for p in (weight, bias))
    y = F.group_norm(x, groups, eps=eps).to(x.dtype) * weight + bias  # under autocast, group_norm returns float32
    y = y if residual is None else y + residual
    return y.relu() if relu else y


def _is_power_of_2(number: int) -> bool:
    """Return whether a positive number is a power of two, as the sizes of Triton's blocks have to be."""
    return number & (number - 1) == 0


def forward(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, groups: int, relu: bool, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y ``[N, ch, H, W]``, and the mean and inverse deviation ``[N, groups]`` of each group in float32."""
    x, residual = channels_last(x), None if residual is None else channels_last(residual)
    n, ch, h, w = x.shape
    y = torch.empty_like(x)
    mean = torch.empty(n, groups, device=x.device)
    rstd = torch.empty_like(mean)
    block, channels = _tile_of(h * w, ch, ch // groups)
    _group_norm_nhwc_forward_kernel[(n * gpu.cdiv(ch, channels),)](
        x, weight, bias, residual, y, mean, rstd, weight.stride(0), bias.stride(0), eps, ch, h * w,
        RELU=relu, BLOCK=block, CHANNELS=channels, WIDTH=ch // groups, num_warps=WARPS,
    )  # fmt: skip
    return y, mean, rstd


def backward(
    grad: Tensor, y: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor,
    groups: int, relu: bool, residual: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of x, weight and bias, each ``[N, ch]``, and of the residual (empty if there was none)."""
    grad, x = channels_last(grad), channels_last(x)
    n, ch, h, w = x.shape
    grad_x = torch.empty_like(x)
    grad_residual = torch.empty_like(x if residual else x[:0])
    grad_weight, grad_bias = torch.empty(2, n, ch, device=x.device).unbind()
    block, channels = _tile_of(h * w, ch, ch // groups)
    _group_norm_nhwc_backward_kernel[(n * gpu.cdiv(ch, channels),)](
        grad, y if relu and residual else None, x, weight, bias, mean, rstd, grad_x,
        grad_residual if residual else None, grad_weight, grad_bias, weight.stride(0), bias.stride(0), ch, h * w,
        RELU=relu, BLOCK=block, CHANNELS=channels, WIDTH=ch // groups, num_warps=WARPS,
    )  # fmt: skip
    return grad_x, grad_weight, grad_bias, grad_residual


def _tile_of(pixels: int, ch: int, width: int) -> tuple[int, int]:
    """Return how many pixels and channels a program handles at once: powers of two, and whole groups of channels."""
    pixels = gpu.next_power_of_2(pixels)
    channels = min(gpu.next_power_of_2(ch), max(NARROWEST, TILE // pixels, width))
    return min(pixels, max(1, TILE // channels)), channels


def _remember(ctx, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    """Save what the backward pass needs on `ctx`; the output costs nothing, since the next convolution keeps it too."""
    x, weight, bias, residual, ctx.groups, ctx.relu, _ = inputs
    y, mean, rstd = output
    ctx.residual = residual is not None
    ctx.save_for_backward(y, x, weight, bias, mean, rstd)
    ctx.mark_non_differentiable(mean, rstd)
    ctx.set_materialize_grads(False)


def _differentiate(ctx, grad: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return the gradients of the operator's inputs, those of weight and bias in their own dtypes."""
    if grad is None:
        return (None,) * 7
    _, _, weight, bias, _, _ = ctx.saved_tensors
    grad_x, grad_weight, grad_bias, grad_residual = _backward_operator(
        grad, *ctx.saved_tensors, ctx.groups, ctx.relu, ctx.residual
    )
    affine = grad_weight.to(weight.dtype), grad_bias.to(bias.dtype)
    return grad_x, *affine, grad_residual if ctx.residual else None, None, None, None


def _forward_shapes(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, groups: int, relu: bool, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return uninitialised tensors of the shapes and dtypes that `forward` returns."""
    statistics = x.new_empty(len(x), groups, dtype=torch.float32)
    return torch.empty_like(x, memory_format=torch.channels_last), statistics, torch.empty_like(statistics)


def _backward_shapes(
    grad: Tensor, y: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor,
    groups: int, relu: bool, residual: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return uninitialised tensors of the shapes and dtypes that `backward` returns."""
    grad_x = torch.empty_like(x, memory_format=torch.channels_last)
    grad_weight, grad_bias = (x.new_empty(x.shape[:2], dtype=torch.float32) for _ in range(2))
    return grad_x, grad_weight, grad_bias, torch.empty_like(grad_x if residual else grad_x[:0])


_operator = custom_op(
    "group_norm_nhwc",
    forward,
    shapes=_forward_shapes,
    stacked=False,
    setup_context=_remember,
    backward=_differentiate,
)
_backward_operator = custom_op("group_norm_nhwc_backward", backward, shapes=_backward_shapes, stacked=False)


@jit
def _of_channels(groups, CHANNELS: tl.constexpr, WIDTH: tl.constexpr):
    """Return for each channel ``[CHANNELS]`` the value of its group in ``groups [CHANNELS // WIDTH]``."""
    return tl.reshape(tl.broadcast_to(groups[:, None], (CHANNELS // WIDTH, WIDTH)), (CHANNELS,))


@jit
def _of_groups(channels, CHANNELS: tl.constexpr, WIDTH: tl.constexpr):
    """Return the sum over each group ``[CHANNELS // WIDTH]`` of ``channels [CHANNELS]``."""
    return tl.sum(tl.reshape(channels, (CHANNELS // WIDTH, WIDTH)), axis=1)


@jit
def _load(images, place, mask):
    """Return the values of images at the offsets `place` in float32, and 0 where `mask` is false."""
    return tl.load(images + place, mask=mask, other=0.0).to(tl.float32)


@jit
def _group_norm_nhwc_forward_kernel(
    x, weight, bias, residual, y, mean, rstd, weight_stride, bias_stride, eps,
    CH: tl.constexpr, PIXELS: tl.constexpr, RELU: tl.constexpr, BLOCK: tl.constexpr, CHANNELS: tl.constexpr,
    WIDTH: tl.constexpr,
):  # fmt: skip
    """Normalise a block of channels of one image, `BLOCK` pixels at a time: sum over groups, then write the values.

    Each group's first value is subtracted before values and squares are summed, so that the variance stays accurate
    where the mean is far from 0.
    """
    GROUPS: tl.constexpr = CHANNELS // WIDTH
    BLOCKS: tl.constexpr = (CH + CHANNELS - 1) // CHANNELS
    image = (tl.program_id(0) // BLOCKS).to(tl.int64)
    channel = tl.program_id(0) % BLOCKS * CHANNELS + tl.arange(0, CHANNELS)
    present = channel < CH
    x += image * PIXELS * CH  # offsets within an image can then be 32-bit, which takes fewer registers
    y += image * PIXELS * CH
    if residual is not None:
        residual += image * PIXELS * CH
    anchor = _load(x, channel // WIDTH * WIDTH, present)
    total = tl.zeros((BLOCK, GROUPS), dtype=tl.float32)
    squares = tl.zeros((BLOCK, GROUPS), dtype=tl.float32)
    for start in range(0, PIXELS, BLOCK):
        pixel = start + tl.arange(0, BLOCK)[:, None]
        mask = (pixel < PIXELS) & present[None, :]
        value = tl.where(mask, _load(x, pixel * CH + channel[None, :], mask) - anchor[None, :], 0.0)
        value = tl.reshape(value, (BLOCK, GROUPS, WIDTH))
        total += tl.sum(value, axis=2)
        squares += tl.sum(value * value, axis=2)
    total_G, squares_G = tl.reduce((total, squares), 0, add_both)
    count = 1.0 * WIDTH * PIXELS
    shifted = total_G / count
    variance = tl.maximum(squares_G / count - shifted * shifted, 0.0)
    centre = anchor + _of_channels(shifted, CHANNELS, WIDTH)
    inverse = _of_channels(1.0 / tl.sqrt(variance + eps), CHANNELS, WIDTH)
    factor = tl.load(weight + image * weight_stride + channel, mask=present, other=0.0).to(tl.float32)
    shift = tl.load(bias + image * bias_stride + channel, mask=present, other=0.0).to(tl.float32)
    scale = factor * inverse
    shift -= centre * scale
    for start in range(0, PIXELS, BLOCK):
        pixel = start + tl.arange(0, BLOCK)[:, None]
        mask = (pixel < PIXELS) & present[None, :]
        value = _load(x, pixel * CH + channel[None, :], mask) * scale[None, :] + shift[None, :]
        if residual is not None:
            value += _load(residual, pixel * CH + channel[None, :], mask)
        if RELU:
            value = tl.maximum(value, 0.0)
        tl.store(y + pixel * CH + channel[None, :], value.to(y.dtype.element_ty), mask=mask)
    group = image * (CH // WIDTH) + channel // WIDTH
    leading = present & (channel % WIDTH == 0)
    tl.store(mean + group, centre, mask=leading)
    tl.store(rstd + group, inverse, mask=leading)


@jit
def _through_relu(gradient, value, y, place, mask, scale, shift, RELU: tl.constexpr):
    """Return the gradient where the ReLU let the output through, else 0.

    The output's sign is read from `y`, or computed again from `value`, the input, where `y` is None.
    """
    if RELU:
        if y is None:
            gradient = tl.where(value * scale[None, :] + shift[None, :] > 0.0, gradient, 0.0)
        else:
            gradient = tl.where(_load(y, place, mask) > 0.0, gradient, 0.0)
    return gradient


@jit
def _group_norm_nhwc_backward_kernel(
    grad, y, x, weight, bias, mean, rstd, grad_x, grad_residual, grad_weight, grad_bias, weight_stride, bias_stride,
    CH: tl.constexpr, PIXELS: tl.constexpr, RELU: tl.constexpr, BLOCK: tl.constexpr, CHANNELS: tl.constexpr,
    WIDTH: tl.constexpr,
):  # fmt: skip
    """Sum the gradient, and its product with the normalised values, over pixels, then write the images' gradient."""
    BLOCKS: tl.constexpr = (CH + CHANNELS - 1) // CHANNELS
    image = (tl.program_id(0) // BLOCKS).to(tl.int64)
    channel = tl.program_id(0) % BLOCKS * CHANNELS + tl.arange(0, CHANNELS)
    present = channel < CH
    grad += image * PIXELS * CH
    x += image * PIXELS * CH
    grad_x += image * PIXELS * CH
    if y is not None:
        y += image * PIXELS * CH
    if grad_residual is not None:
        grad_residual += image * PIXELS * CH
    group = image * (CH // WIDTH) + channel // WIDTH
    centre = tl.load(mean + group, mask=present, other=0.0)
    inverse = tl.load(rstd + group, mask=present, other=0.0)
    factor = tl.load(weight + image * weight_stride + channel, mask=present, other=0.0).to(tl.float32)
    shift = tl.load(bias + image * bias_stride + channel, mask=present, other=0.0).to(tl.float32)
    scale = factor * inverse
    shift -= centre * scale
    plain = tl.zeros((BLOCK, CHANNELS), dtype=tl.float32)
    product = tl.zeros((BLOCK, CHANNELS), dtype=tl.float32)
    for start in range(0, PIXELS, BLOCK):
        pixel = start + tl.arange(0, BLOCK)[:, None]
        place, mask = pixel * CH + channel[None, :], (pixel < PIXELS) & present[None, :]
        value = _load(x, place, mask)
        g = _through_relu(_load(grad, place, mask), value, y, place, mask, scale, shift, RELU)
        plain += g
        product += g * (value - centre[None, :])
    sum_plain, sum_scaled = tl.reduce((plain, product), 0, add_both)
    sum_scaled *= inverse
    count = 1.0 * WIDTH * PIXELS
    mean_plain = _of_channels(_of_groups(sum_plain * factor, CHANNELS, WIDTH), CHANNELS, WIDTH) / count
    mean_scaled = _of_channels(_of_groups(sum_scaled * factor, CHANNELS, WIDTH), CHANNELS, WIDTH) / count
    for start in range(0, PIXELS, BLOCK):
        pixel = start + tl.arange(0, BLOCK)[:, None]
        place, mask = pixel * CH + channel[None, :], (pixel < PIXELS) & present[None, :]
        value = _load(x, place, mask)
        g = _through_relu(_load(grad, place, mask), value, y, place, mask, scale, shift, RELU)
        normal = (value - centre[None, :]) * inverse[None, :]
        change = (g * factor[None, :] - mean_plain[None, :] - normal * mean_scaled[None, :]) * inverse[None, :]
        tl.store(grad_x + place, change.to(grad_x.dtype.element_ty), mask=mask)
        if grad_residual is not None:
            tl.store(grad_residual + place, g.to(grad_residual.dtype.element_ty), mask=mask)
    tl.store(grad_weight + image * CH + channel, sum_scaled, mask=present)
    tl.store(grad_bias + image * CH + channel, sum_plain, mask=present)
