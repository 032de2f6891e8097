"""Group normalisation with an affine map of each client's own, then optionally a residual added, then ReLU.

    y = relu(weight[c] * (x - mean) / sqrt(var + eps) + bias[c] + residual)

for x ``[C, B, ch, H, W]``, weight and bias ``[C, ch]``, mean and (biased) variance over the pixels of each group of
channels of each image (Wu and He, ECCV 2018).

A custom operator, so that it can be called for one client and mapped over all.
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
    """Normalise each client's images, with its own weight and bias.

    Args:
        x: ``[C, B, ch, H, W]``, or ``[B, ch, H, W]`` of one client.
        groups: of channels, which they divide into.
        weight: ``[C, ch]``, or ``[ch]``; as `bias`, which has the same dtype, float32 or that of `x`.
        residual: as `x`; added before the ReLU.

    Returns:
        Of the shape and dtype of `x`.
    """
    if not accelerating():
        one = (
            reference
            if x.ndim == 4
            else vmap(reference, in_dims=(0, 0, 0, None if residual is None else 0, None, None, None))
        )
        return one(x, weight, bias, residual, groups, relu, eps)
    if x.ndim == 4:
        alone = None if residual is None else residual[None]
        return operator(x[None], weight[None], bias[None], alone, groups, relu, eps)[0][0]
    return operator(x, weight, bias, residual, groups, relu, eps)[0]


def reference(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, groups: int, relu: bool, eps: float
) -> Tensor:
    """One client's: x ``[B, ch, H, W]``, weight and bias ``[ch]``. What follows the norm is done in place."""
    y = F.group_norm(x, groups, weight, bias, eps)
    if residual is not None:
        y.add_(residual)
    return y.relu_() if relu else y


def forward(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, groups: int, relu: bool, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Forward: y, and the mean and inverse deviation ``[C, B * groups]`` of each group."""
    residual = None if residual is None else residual.contiguous()
    tensors = (x.contiguous(), weight.contiguous(), bias.contiguous(), residual)
    return fastest("group_norm", FORWARD, tensors, groups, relu, eps)


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias."""
    tensors = (grad.contiguous(), x.contiguous(), weight.contiguous(), mean, rstd)
    return fastest("group_norm_backward", BACKWARD, tensors, groups)


def remember(ctx, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    """Keep what the backward pass needs."""
    x, weight, _, residual, ctx.groups, relu, _ = inputs
    y, mean, rstd = output
    ctx.setting = setting()
    ctx.has_residual = residual is not None
    ctx.save_for_backward(y if relu else None, x, weight, mean, rstd)
    ctx.mark_non_differentiable(mean, rstd)
    ctx.set_materialize_grads(False)


def differentiate(ctx, grad: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    """Go back through the ReLU, where there is one, then call the backward operator."""
    if grad is None:
        return (None,) * 7
    y, *saved = ctx.saved_tensors
    if y is not None:
        grad = torch.ops.aten.threshold_backward(grad, y, 0)
    with as_in(ctx.setting):
        gradients = backward_operator(grad, *saved, ctx.groups)
    return *gradients, grad if ctx.has_residual else None, None, None, None


def forward_shapes(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, groups: int, relu: bool, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """What `forward` would return, uncomputed."""
    statistics = x.new_empty(len(x), x.shape[1] * groups, dtype=weight.dtype)
    return x.new_empty(x.shape), statistics, torch.empty_like(statistics)


def backward_shapes(
    grad: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    """What `backward` would return, uncomputed."""
    return x.new_empty(x.shape), weight.new_empty(weight.shape), weight.new_empty(weight.shape)


operator = custom_op("group_norm", forward, shapes=forward_shapes, setup_context=remember, backward=differentiate)
backward_operator = custom_op("group_norm_backward", backward, shapes=backward_shapes)


def native_forward(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, groups: int, relu: bool, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """PyTorch's own, all images of all clients as the channels of one: its affine map is per channel."""
    c, b, ch, h, w = x.shape
    flat = (c * b * ch,)
    own = weight.dtype
    weight, bias = (p[:, None].expand(c, b, ch).reshape(flat) for p in (weight, bias))
    if x.is_cuda:  # only on a CPU may the two have different dtypes
        weight, bias = weight.to(x.dtype), bias.to(x.dtype)
    y, mean, rstd = torch.ops.aten.native_group_norm(
        x.view(1, *flat, h, w), weight, bias, 1, *flat, h * w, c * b * groups, eps
    )
    y = y.view_as(x)
    if residual is not None:
        y.add_(residual)
    statistics = (s.to(own).view(c, -1) for s in (mean, rstd))
    return y.relu_() if relu else y, *statistics


def native_backward(
    grad: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The same backwards."""
    c, b, ch, h, w = x.shape
    flat = (c * b * ch,)
    used = x.dtype if x.is_cuda else weight.dtype  # only on a CPU may the two be different
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


def triton_forward(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, groups: int, relu: bool, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """One program a group: two passes over its pixels, everything fused into the second."""
    c, b, ch, h, w = x.shape
    y = torch.empty_like(x)
    mean = weight.new_empty(c, b * groups)
    rstd = torch.empty_like(mean)
    group_norm_forward_kernel[(c * b * groups,)](
        x, weight, bias, x if residual is None else residual, y, mean, rstd, b, ch, groups, h * w, eps,
        RESIDUAL=residual is not None, RELU=relu, **blocks(h * w, ch // groups),
    )  # fmt: skip
    return y, mean, rstd


def triton_backward(
    grad: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    """One program a group; the affine map's gradients are summed over images after."""
    c, b, ch, h, w = x.shape
    grad_x = torch.empty_like(x)
    grad_weight = weight.new_empty(c, b, ch)
    grad_bias = torch.empty_like(grad_weight)
    group_norm_backward_kernel[(c * b * groups,)](
        grad, x, weight, mean, rstd, grad_x, grad_weight, grad_bias, b, ch, groups, h * w,
        **blocks(h * w, ch // groups),
    )  # fmt: skip
    return grad_x, grad_weight.sum(dim=1), grad_bias.sum(dim=1)


def blocks(pixels: int, channels: int) -> dict[str, int]:
    """Return how many pixels (BLOCK) and channels (WIDTH) of a group of this size a program handles at once.

    Together at most 4,096 values, 32 a thread: those of more would not stay in registers.
    """
    width = gpu.next_power_of_2(channels)
    return {"BLOCK": min(gpu.next_power_of_2(pixels), 1024, max(1, 4096 // width)), "WIDTH": width}


FORWARD = {"native": native_forward, "triton": triton_forward}
BACKWARD = {"native": native_backward, "triton": triton_backward}


@jit
def group_norm_forward_kernel(
    x, weight, bias, residual, y, mean, rstd, B, CH, G, PIXELS, eps,
    RESIDUAL: tl.constexpr, RELU: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Group ``g`` of one image: sums, then the normalised, mapped, added and clipped values."""
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
def group_norm_backward_kernel(
    grad, x, weight, mean, rstd, grad_x, grad_weight, grad_bias, B, CH, G, PIXELS,
    BLOCK: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Group ``g`` of one image: sums of the gradient and of its product with the normalised values, then grad_x."""
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
