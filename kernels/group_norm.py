"""Group normalisation in which each client has its own affine map, then optionally a residual, then ReLU.

    y = relu(weight[c] * (x - mean) / sqrt(var + eps) + bias[c] + residual)

for x ``[C, B, ch, H, W]``, weight and bias ``[C, ch]``, mean and (biased) variance over the pixels of each group of
channels of each image (Wu and He, ECCV 2018).

The normalisation is a custom operator, so that code for one client can call it, and be mapped over all clients.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import vmap

from simsfl.kernels import gpu
from simsfl.kernels.choice import accelerating, as_in, fastest, setting
from simsfl.kernels.gpu import add_both, jit, tl
from simsfl.kernels.stacking import custom_op


def group_norm(
    x: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    *,
    residual: Tensor | None = None,
    relu: bool = False,
    eps: float = 1e-5,
) -> Tensor:
    """Return each client's images normalised with its own weight and bias, in the shape and dtype of `x`.

    Args:
        x: Images, ``[C, B, ch, H, W]``, or ``[B, ch, H, W]`` for one client.
        groups: Number of groups of channels, which divides ch.
        weight: Scale of each channel, ``[C, ch]``, or ``[ch]`` for one client; float32 or the dtype of `x`.
        bias: Shift of each channel, in the shape and dtype of `weight`.
        residual: Added before the ReLU; in the shape of `x`.
        relu: Whether to apply a ReLU at the end.
        eps: Added to the variance.
    """
    if not accelerating():
        one = (
            _reference
            if x.ndim == 4
            else vmap(_reference, in_dims=(0, 0, 0, None if residual is None else 0, None, None, None))
        )
        return one(x, weight, bias, residual, groups, relu, eps)
    if x.ndim == 4:
        alone = None if residual is None else residual[None]
        return _operator(x[None], weight[None], bias[None], alone, groups, relu, eps)[0][0]
    return _operator(x, weight, bias, residual, groups, relu, eps)[0]


def _reference(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, groups: int, relu: bool, eps: float
) -> Tensor:
    """Return one client's result for x ``[B, ch, H, W]``, weight and bias ``[ch]``.

    The residual and the ReLU are applied in place.
    """
    y = F.group_norm(x, groups, weight, bias, eps)
    if residual is not None:
        y.add_(residual)
    return y.relu_() if relu else y


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, groups: int, relu: bool, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, and the mean and inverse deviation ``[C, B * groups]`` of each group, from the fastest version."""
    residual = None if residual is None else residual.contiguous()
    tensors = (x.contiguous(), weight.contiguous(), bias.contiguous(), residual)
    return fastest("group_norm", _FORWARD, tensors, groups, relu, eps)


def _backward(
    grad: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight and bias from `grad`, that of y before the ReLU."""
    tensors = (grad.contiguous(), x.contiguous(), weight.contiguous(), mean, rstd)
    return fastest("group_norm_backward", _BACKWARD, tensors, groups)


def _remember(ctx, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    """Save what the backward pass needs on `ctx`: tensors, settings, and which versions operators use."""
    x, weight, _, residual, ctx.groups, relu, _ = inputs
    y, mean, rstd = output
    ctx.setting = setting()
    ctx.has_residual = residual is not None
    ctx.save_for_backward(y if relu else None, x, weight, mean, rstd)
    ctx.mark_non_differentiable(mean, rstd)
    ctx.set_materialize_grads(False)


def _differentiate(ctx, grad: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return the gradients of the operator's inputs: through the ReLU, if it was applied, then through the norm."""
    if grad is None:
        return (None,) * 7
    y, *saved = ctx.saved_tensors
    if y is not None:
        grad = torch.ops.aten.threshold_backward(grad, y, 0)
    with as_in(ctx.setting):
        gradients = _backward_operator(grad, *saved, ctx.groups)
    return *gradients, grad if ctx.has_residual else None, None, None, None


def _forward_shapes(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, groups: int, relu: bool, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return uninitialised tensors of the shapes and dtypes that `_forward` returns."""
    statistics = x.new_empty(len(x), x.shape[1] * groups, dtype=weight.dtype)
    return x.new_empty(x.shape), statistics, torch.empty_like(statistics)


def _backward_shapes(
    grad: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return uninitialised tensors of the shapes and dtypes that `_backward` returns."""
    return x.new_empty(x.shape), weight.new_empty(weight.shape), weight.new_empty(weight.shape)


_operator = custom_op("group_norm", _forward, shapes=_forward_shapes, setup_context=_remember, backward=_differentiate)
_backward_operator = custom_op("group_norm_backward", _backward, shapes=_backward_shapes)


def _native_forward(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, groups: int, relu: bool, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `_forward` does, from PyTorch's operator.

    It gets the channels of all images of all clients as the channels of one image, since its affine map is per channel.
    """
    c, b, ch, h, w = x.shape
    flat = (c * b * ch,)
    own = weight.dtype
    weight, bias = (p[:, None].expand(c, b, ch).reshape(flat) for p in (weight, bias))
    if x.is_cuda:  # PyTorch allows parameters in another dtype than `x` only on a CPU
        weight, bias = weight.to(x.dtype), bias.to(x.dtype)
    y, mean, rstd = torch.ops.aten.native_group_norm(
        x.view(1, *flat, h, w), weight, bias, 1, *flat, h * w, c * b * groups, eps
    )
    y = y.view_as(x)
    if residual is not None:
        y.add_(residual)
    statistics = (s.to(own).view(c, -1) for s in (mean, rstd))
    return y.relu_() if relu else y, *statistics


def _native_backward(
    grad: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `_backward` does, from PyTorch's operator with all images as the channels of one."""
    c, b, ch, h, w = x.shape
    flat = (c * b * ch,)
    used = x.dtype if x.is_cuda else weight.dtype  # PyTorch allows two different dtypes only on a CPU
    grad_x, grad_weight, grad_bias = torch.ops.aten.native_group_norm_backward(
        grad.view(1, *flat, h, w),
        x.view(1, *flat, h, w),
        mean.view(1, -1).to(used),
        rstd.view(1, -1).to(used),
        weight[:, None].expand(c, b, ch).reshape(flat).to(used),
        1,
        *flat,
        h * w,
        c * b * groups,
        [True, True, True],
    )
    return grad_x.view_as(x), *(p.view(c, b, ch).sum(dim=1).to(weight.dtype) for p in (grad_weight, grad_bias))


def _triton_forward(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, groups: int, relu: bool, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `_forward` does, from one Triton program per group of each image.

    A program takes the mean and the variance in passes over the group's pixels; the last pass does everything else.
    """
    c, b, ch, h, w = x.shape
    y = torch.empty_like(x)
    mean = weight.new_empty(c, b * groups)
    rstd = torch.empty_like(mean)
    _group_norm_forward_kernel[(c * b * groups,)](
        x, weight, bias, x if residual is None else residual, y, mean, rstd, b, ch, groups, h * w, eps,
        RESIDUAL=residual is not None, RELU=relu, **_blocks(h * w, ch // groups),
    )  # fmt: skip
    return y, mean, rstd


def _triton_backward(
    grad: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `_backward` does, from one Triton program per group of each image.

    The gradients of weight and bias are summed over images afterwards.
    """
    c, b, ch, h, w = x.shape
    grad_x = torch.empty_like(x)
    grad_weight = weight.new_empty(c, b, ch)
    grad_bias = torch.empty_like(grad_weight)
    _group_norm_backward_kernel[(c * b * groups,)](
        grad, x, weight, mean, rstd, grad_x, grad_weight, grad_bias, b, ch, groups, h * w,
        **_blocks(h * w, ch // groups),
    )  # fmt: skip
    return grad_x, grad_weight.sum(dim=1), grad_bias.sum(dim=1)


def _blocks(pixels: int, channels: int) -> dict[str, int]:
    """Return how many pixels (BLOCK) and channels (WIDTH) a program handles at once, for the size of a group.

    The two multiply to at most 4,096 values, 32 per thread, since more would not stay in registers.
    """
    width = gpu.next_power_of_2(channels)
    return {"BLOCK": min(gpu.next_power_of_2(pixels), 1024, max(1, 4096 // width)), "WIDTH": width}


_FORWARD = {"native": _native_forward, "triton": _triton_forward}
"""Versions of the forward pass by name; the first is the default."""
_BACKWARD = {"native": _native_backward, "triton": _triton_backward}
"""Versions of the backward pass by name; the first is the default."""


@jit
def _group_norm_forward_kernel(
    x, weight, bias, residual, y, mean, rstd, B, CH, G, PIXELS, eps,
    RESIDUAL: tl.constexpr, RELU: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Normalise one group of one image: take its mean and variance, then write y with residual and ReLU applied."""
    program = tl.program_id(0)
    image, width = program // G, CH // G
    inner = tl.arange(0, WIDTH)
    channel = program % G * width + inner
    first = program.to(tl.int64) * width * PIXELS
    rows = inner[:, None] * PIXELS
    present = inner < width
    count = 1.0 * width * PIXELS
    total = tl.zeros((WIDTH,), dtype=tl.float32)
    for start in range(0, PIXELS, BLOCK):
        pixel = start + tl.arange(0, BLOCK)
        mask = present[:, None] & (pixel < PIXELS)[None, :]
        total += tl.sum(tl.load(x + first + rows + pixel[None, :], mask=mask, other=0.0).to(tl.float32), axis=1)
    centre = tl.sum(total, axis=0) / count
    total = tl.zeros((WIDTH,), dtype=tl.float32)
    for start in range(0, PIXELS, BLOCK):
        pixel = start + tl.arange(0, BLOCK)
        mask = present[:, None] & (pixel < PIXELS)[None, :]
        value = tl.load(x + first + rows + pixel[None, :], mask=mask, other=0.0).to(tl.float32)
        total += tl.sum(tl.where(mask, (value - centre) * (value - centre), 0.0), axis=1)
    inverse = 1.0 / tl.sqrt(tl.sum(total, axis=0) / count + eps)
    tl.store(mean + program, centre)
    tl.store(rstd + program, inverse)
    affine = image // B * CH + channel
    scale = tl.load(weight + affine, mask=present, other=0.0).to(tl.float32) * inverse
    shift = tl.load(bias + affine, mask=present, other=0.0).to(tl.float32) - centre * scale
    for start in range(0, PIXELS, BLOCK):
        pixel = start + tl.arange(0, BLOCK)
        mask = present[:, None] & (pixel < PIXELS)[None, :]
        place = rows + pixel[None, :]
        value = tl.load(x + first + place, mask=mask, other=0.0).to(tl.float32) * scale[:, None] + shift[:, None]
        if RESIDUAL:
            value += tl.load(residual + first + place, mask=mask, other=0.0).to(tl.float32)
        if RELU:
            value = tl.maximum(value, 0.0)
        tl.store(y + first + place, value.to(y.dtype.element_ty), mask=mask)


@jit
def _group_norm_backward_kernel(
    grad, x, weight, mean, rstd, grad_x, grad_weight, grad_bias, B, CH, G, PIXELS,
    BLOCK: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Sum the gradient of one group of one image, and its product with the normalised values, then write grad_x."""
    program = tl.program_id(0)
    image, width = program // G, CH // G
    inner = tl.arange(0, WIDTH)
    channel = program % G * width + inner
    first = program.to(tl.int64) * width * PIXELS
    rows = inner[:, None] * PIXELS
    present = inner < width
    centre = tl.load(mean + program).to(tl.float32)
    inverse = tl.load(rstd + program).to(tl.float32)
    plain = tl.zeros((WIDTH,), dtype=tl.float32)
    scaled = tl.zeros((WIDTH,), dtype=tl.float32)
    for start in range(0, PIXELS, BLOCK):
        pixel = start + tl.arange(0, BLOCK)
        mask = present[:, None] & (pixel < PIXELS)[None, :]
        place = rows + pixel[None, :]
        g = tl.load(grad + first + place, mask=mask, other=0.0).to(tl.float32)
        normal = (tl.load(x + first + place, mask=mask, other=0.0).to(tl.float32) - centre) * inverse
        sum_plain, sum_scaled = tl.reduce((g, g * normal), 1, add_both)
        plain += sum_plain
        scaled += sum_scaled
    tl.store(grad_bias + image * CH + channel, plain.to(grad_bias.dtype.element_ty), mask=present)
    tl.store(grad_weight + image * CH + channel, scaled.to(grad_weight.dtype.element_ty), mask=present)
    factor = tl.load(weight + image // B * CH + channel, mask=present, other=0.0).to(tl.float32)
    count = 1.0 * width * PIXELS
    mean_plain = tl.sum(plain * factor, axis=0) / count
    mean_scaled = tl.sum(scaled * factor, axis=0) / count
    for start in range(0, PIXELS, BLOCK):
        pixel = start + tl.arange(0, BLOCK)
        mask = present[:, None] & (pixel < PIXELS)[None, :]
        place = rows + pixel[None, :]
        g = tl.load(grad + first + place, mask=mask, other=0.0).to(tl.float32) * factor[:, None]
        normal = (tl.load(x + first + place, mask=mask, other=0.0).to(tl.float32) - centre) * inverse
        value = (g - mean_plain - normal * mean_scaled) * inverse
        tl.store(grad_x + first + place, value.to(grad_x.dtype.element_ty), mask=mask)
