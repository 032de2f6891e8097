"""Group normalisation of one model's images that lie channels-last, then optionally a residual added, then ReLU.

    y = relu(weight[c] * (x - mean) / sqrt(var + eps) + bias[c] + residual)

for x ``[N, ch, H, W]`` in PyTorch's channels-last memory format, weight and bias ``[ch]``, mean and (biased) variance
over the pixels of each group of channels of each image (Wu and He, ECCV 2018). `group_norm` does the same for stacked
clients. The server has its own version because cuDNN's fastest bfloat16 convolutions on CUDA devices read and write
channels-last tensors, which PyTorch's GroupNorm would copy to the contiguous format and back.

One kernel forward and one backward, residual and ReLU included. A program does all pixels of a block of channels of an
image, in several passes; a block is small enough for the later passes to find it in the caches.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from simsfl.kernels import gpu
from simsfl.kernels.gpu import jit, tl
from simsfl.kernels.stacking import custom_op

TILE = 16384
"""Values that one program normalises, where the image has so many pixels, or fewer."""
HELD = 4096
"""Values that it holds in registers at a time."""
WARPS = 8
NARROWEST = 16
"""Channels that a program reads of a pixel, at least: 32 bytes in bfloat16 are what memory is read by."""


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

    Args:
        x: ``[N, ch, H, W]``; one that is not channels-last is copied.
        groups: number of groups, which divides ch.
        weight: ``[ch]`` float32, or of the dtype of `x`; as `bias`.
        residual: ``[N, ch, H, W]``, added before the ReLU.
    """
    if gpu.usable(x) and is_power_of_2(x.shape[1] // groups):
        return operator(x, weight, bias, residual, groups, relu, eps)[0]
    y = F.group_norm(x, groups, weight.to(x.dtype), bias.to(x.dtype), eps)
    y = y if residual is None else y + residual
    return y.relu() if relu else y


def is_power_of_2(number: int) -> bool:
    """Return whether a positive number is a power of two; Triton's blocks hold such numbers of values."""
    return number & (number - 1) == 0


def channels_last(x: Tensor) -> Tensor:
    """Return `x` ``[N, ch, H, W]`` in the channels-last memory format, copied only where it is in another."""
    return x.contiguous(memory_format=torch.channels_last)


def forward(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, groups: int, relu: bool, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, and the mean and inverse deviation ``[N, groups]`` in float32."""
    x, residual = channels_last(x), None if residual is None else channels_last(residual)
    n, ch, h, w = x.shape
    y = torch.empty_like(x)
    mean = torch.empty(n, groups, device=x.device)
    rstd = torch.empty_like(mean)
    block, channels = tile_of(h * w, ch, ch // groups)
    forward_kernel[(n, gpu.cdiv(ch, channels))](
        x, weight, bias, x if residual is None else residual, y, mean, rstd, ch, groups, h * w, eps,
        RESIDUAL=residual is not None, RELU=relu, BLOCK=block, CHANNELS=channels, WIDTH=ch // groups, num_warps=WARPS,
    )  # fmt: skip
    return y, mean, rstd


def backward(
    grad: Tensor, y: Tensor | None, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, groups: int, residual: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, of weight and bias together ``[2, ch]``, and of the residual (empty if none).

    Args:
        y: the output where it went through a ReLU, else None.
    """
    grad, x = channels_last(grad), channels_last(x)
    n, ch, h, w = x.shape
    grad_x = torch.empty_like(x)
    grad_residual = torch.empty_like(x if residual else x[:0])
    affine = torch.empty(n, 2, ch, device=x.device)
    block, channels = tile_of(h * w, ch, ch // groups)
    backward_kernel[(n, gpu.cdiv(ch, channels))](
        grad, x if y is None else y, x, weight, mean, rstd, grad_x, grad_residual, affine, ch, groups, h * w,
        RESIDUAL=residual, RELU=y is not None, BLOCK=block, CHANNELS=channels, WIDTH=ch // groups, num_warps=WARPS,
    )  # fmt: skip
    return grad_x, affine.sum(dim=0), grad_residual


def tile_of(pixels: int, ch: int, width: int) -> tuple[int, int]:
    """Return how many pixels and channels a program handles at once: powers of two, the channels in whole groups."""
    fitting = max(NARROWEST, TILE // gpu.next_power_of_2(pixels), width)
    channels = min(gpu.next_power_of_2(ch), fitting)
    return min(gpu.next_power_of_2(pixels), max(1, HELD // channels)), channels


def remember(ctx, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    """Keep what the backward pass needs; a ReLU's output is kept by the next convolution anyway."""
    x, weight, bias, residual, ctx.groups, relu, _ = inputs
    y, mean, rstd = output
    ctx.residual, ctx.dtypes = residual is not None, (weight.dtype, bias.dtype)
    ctx.save_for_backward(y if relu else None, x, weight, mean, rstd)
    ctx.mark_non_differentiable(mean, rstd)


def differentiate(ctx, grad: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    """Call the backward operator."""
    grad_x, affine, grad_residual = backward_operator(grad, *ctx.saved_tensors, ctx.groups, ctx.residual)
    weight, bias = (own.to(dtype) for own, dtype in zip(affine, ctx.dtypes, strict=True))
    return grad_x, weight, bias, grad_residual if ctx.residual else None, None, None, None


def forward_shapes(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, groups: int, relu: bool, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return tensors like those of `forward`, uncomputed."""
    statistics = x.new_empty(len(x), groups, dtype=torch.float32)
    return torch.empty_like(x, memory_format=torch.channels_last), statistics, torch.empty_like(statistics)


def backward_shapes(
    grad: Tensor, y: Tensor | None, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, groups: int, residual: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return tensors like those of `backward`, uncomputed."""
    grad_x = torch.empty_like(x, memory_format=torch.channels_last)
    return grad_x, x.new_empty(2, x.shape[1], dtype=torch.float32), torch.empty_like(grad_x if residual else grad_x[:0])


operator = custom_op(
    "group_norm_nhwc",
    forward,
    shapes=forward_shapes,
    stacked=False,
    setup_context=remember,
    backward=differentiate,
)
backward_operator = custom_op("group_norm_nhwc_backward", backward, shapes=backward_shapes, stacked=False)


@jit
def across_group(sums, CHANNELS: tl.constexpr, WIDTH: tl.constexpr):
    """Return the sum over each channel's group ``[CHANNELS]`` of ``sums [CHANNELS]``."""
    groups = tl.sum(tl.reshape(sums, (CHANNELS // WIDTH, WIDTH)), axis=1)
    return tl.reshape(tl.broadcast_to(groups[:, None], (CHANNELS // WIDTH, WIDTH)), (CHANNELS,))


@jit
def forward_kernel(
    x, weight, bias, residual, y, mean, rstd, CH, GROUPS, PIXELS, eps,
    RESIDUAL: tl.constexpr, RELU: tl.constexpr, BLOCK: tl.constexpr, CHANNELS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Normalise a block of channels of one image: mean, then variance, then the values, `BLOCK` pixels at a time."""
    image = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    present = channel < CH
    first = image * PIXELS * CH + channel
    count = 1.0 * WIDTH * PIXELS
    total = tl.zeros((CHANNELS,), dtype=tl.float32)
    for start in range(0, PIXELS, BLOCK):
        pixel = start + tl.arange(0, BLOCK)
        mask = (pixel < PIXELS)[:, None] & present[None, :]
        total += tl.sum(tl.load(x + first[None, :] + pixel[:, None] * CH, mask=mask, other=0.0).to(tl.float32), axis=0)
    centre = across_group(total, CHANNELS, WIDTH) / count
    total = tl.zeros((CHANNELS,), dtype=tl.float32)
    for start in range(0, PIXELS, BLOCK):
        pixel = start + tl.arange(0, BLOCK)
        mask = (pixel < PIXELS)[:, None] & present[None, :]
        value = tl.load(x + first[None, :] + pixel[:, None] * CH, mask=mask, other=0.0).to(tl.float32)
        value = tl.where(mask, value - centre[None, :], 0.0)
        total += tl.sum(value * value, axis=0)
    inverse = 1.0 / tl.sqrt(across_group(total, CHANNELS, WIDTH) / count + eps)
    scale = tl.load(weight + channel, mask=present, other=0.0).to(tl.float32) * inverse
    shift = tl.load(bias + channel, mask=present, other=0.0).to(tl.float32) - centre * scale
    for start in range(0, PIXELS, BLOCK):
        pixel = start + tl.arange(0, BLOCK)
        mask = (pixel < PIXELS)[:, None] & present[None, :]
        place = first[None, :] + pixel[:, None] * CH
        value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32) * scale[None, :] + shift[None, :]
        if RESIDUAL:
            value += tl.load(residual + place, mask=mask, other=0.0).to(tl.float32)
        if RELU:
            value = tl.maximum(value, 0.0)
        tl.store(y + place, value.to(y.dtype.element_ty), mask=mask)
    group = image * GROUPS + channel // WIDTH
    leading = present & (channel % WIDTH == 0)
    tl.store(mean + group, centre, mask=leading)
    tl.store(rstd + group, inverse, mask=leading)


@jit
def backward_kernel(
    grad, y, x, weight, mean, rstd, grad_x, grad_residual, affine, CH, GROUPS, PIXELS,
    RESIDUAL: tl.constexpr, RELU: tl.constexpr, BLOCK: tl.constexpr, CHANNELS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Sum the gradient and its product with the normalised values over pixels, then write the images' gradient."""
    image = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    present = channel < CH
    first = image * PIXELS * CH + channel
    group = image * GROUPS + channel // WIDTH
    centre = tl.load(mean + group, mask=present, other=0.0)
    inverse = tl.load(rstd + group, mask=present, other=0.0)
    plain = tl.zeros((CHANNELS,), dtype=tl.float32)
    scaled = tl.zeros((CHANNELS,), dtype=tl.float32)
    for start in range(0, PIXELS, BLOCK):
        pixel = start + tl.arange(0, BLOCK)
        mask = (pixel < PIXELS)[:, None] & present[None, :]
        place = first[None, :] + pixel[:, None] * CH
        g = tl.load(grad + place, mask=mask, other=0.0).to(tl.float32)
        if RELU:
            g = tl.where(tl.load(y + place, mask=mask, other=0.0).to(tl.float32) > 0.0, g, 0.0)
        normal = (tl.load(x + place, mask=mask, other=0.0).to(tl.float32) - centre[None, :]) * inverse[None, :]
        plain += tl.sum(g, axis=0)
        scaled += tl.sum(g * normal, axis=0)
    tl.store(affine + image * 2 * CH + channel, scaled, mask=present)
    tl.store(affine + image * 2 * CH + CH + channel, plain, mask=present)
    factor = tl.load(weight + channel, mask=present, other=0.0).to(tl.float32)
    count = 1.0 * WIDTH * PIXELS
    mean_plain = across_group(plain * factor, CHANNELS, WIDTH) / count
    mean_scaled = across_group(scaled * factor, CHANNELS, WIDTH) / count
    for start in range(0, PIXELS, BLOCK):
        pixel = start + tl.arange(0, BLOCK)
        mask = (pixel < PIXELS)[:, None] & present[None, :]
        place = first[None, :] + pixel[:, None] * CH
        g = tl.load(grad + place, mask=mask, other=0.0).to(tl.float32)
        if RELU:
            g = tl.where(tl.load(y + place, mask=mask, other=0.0).to(tl.float32) > 0.0, g, 0.0)
        if RESIDUAL:
            tl.store(grad_residual + place, g.to(grad_residual.dtype.element_ty), mask=mask)
        normal = (tl.load(x + place, mask=mask, other=0.0).to(tl.float32) - centre[None, :]) * inverse[None, :]
        value = (g * factor[None, :] - mean_plain[None, :] - normal * mean_scaled[None, :]) * inverse[None, :]
        tl.store(grad_x + place, value.to(grad_x.dtype.element_ty), mask=mask)
