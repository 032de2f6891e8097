"""Convolution with weights of each client's own.

    y[c, b] = conv2d(x[c, b], w[c])

x ``[C, B, I, H, W]`` and w ``[C, O, I / groups, h, w]`` give y ``[C, B, O, H', W']``: C clients with B images each,
zero padding, no bias. The weights can be standardised on the way (Qiao et al. 2019, eq. 2): those of an output channel
are centred and divided by their unbiased standard deviation plus 1e-5.

A custom operator, so that it can be called for one client and mapped over all.
"""

from collections.abc import Callable
from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import vmap

from simsfl.kernels import gpu
from simsfl.kernels.choice import accelerating, as_in, fastest, setting
from simsfl.kernels.gpu import jit, tl
from simsfl.kernels.stacking import custom_op

EPSILON = 1e-5


def conv2d(
    x: Tensor, weight: Tensor, stride: int = 1, padding: int = 0, groups: int = 1, *, standardise: bool = False
) -> Tensor:
    """Convolve each client's images with its own weights.

    Args:
        x: ``[C, B, I, H, W]``, or ``[B, I, H, W]`` of one client.
        weight: ``[C, O, I / groups, h, w]``, or that of one client; where it has another dtype, that of `x` is used.
        groups: of channels, each convolved by itself; as many as channels in a depthwise convolution.
        standardise: the weights first, in their own dtype.

    Returns:
        ``[C, B, O, H', W']``, or ``[B, O, H', W']``, of the dtype of `x`, or of autocast.
    """
    if not accelerating():
        one = reference if x.ndim == 4 else vmap(reference, in_dims=(0, 0, None, None, None, None))
        return one(x, weight, stride, padding, groups, standardise)
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    if x.ndim == 4:
        return operator(x[None], weight[None], stride, padding, groups, standardise)[0]
    return operator(x, weight, stride, padding, groups, standardise)


def reference(x: Tensor, weight: Tensor, stride: int, padding: int, groups: int, standardise: bool) -> Tensor:
    """One client's: x ``[B, I, H, W]``, weight ``[O, I / groups, h, w]``."""
    if standardise:
        rows = weight.flatten(1)
        centred = rows - rows.mean(dim=1, keepdim=True)
        std = centred.norm(dim=1, keepdim=True) / sqrt(rows.shape[1] - 1)  # torch.std is far slower on a CPU
        weight = (centred / (std + EPSILON)).view_as(weight)
    return F.conv2d(x, weight, None, stride, padding, groups=groups)


def forward(x: Tensor, weight: Tensor, stride: int, padding: int, groups: int, standardise: bool) -> Tensor:
    """Forward: the fastest version, with weights standardised if asked for."""
    if standardise:
        weight, _ = standardised(weight)
    tensors = (x.contiguous(), weight.to(x.dtype).contiguous())
    return fastest("conv2d", able(FORWARD, groups), tensors, stride, padding, groups).contiguous()


def backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: int,
    padding: int,
    groups: int,
    standardise: bool,
    images_too: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of x (empty unless `images_too`) and weight."""
    used, scale = standardised(weight) if standardise else (weight, None)
    tensors = (grad.contiguous(), x.contiguous(), used.to(x.dtype).contiguous())
    grad_x, grad_weight = fastest(
        "conv2d_backward", able(BACKWARD, groups), tensors, stride, padding, groups, images_too
    )
    grad_weight = grad_weight.to(weight.dtype)
    if standardise:
        grad_weight = standardised_backward(grad_weight, used, scale)
    return grad_x if images_too else x.new_empty(0), grad_weight.contiguous()


def standardised(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Standardised weights, and the standard deviation plus epsilon ``[C, O, 1, 1, 1]`` they were divided by."""
    count = weight[0, 0].numel()
    centred = weight - weight.mean(dim=(2, 3, 4), keepdim=True)
    std = torch.linalg.vector_norm(centred, dim=(2, 3, 4), keepdim=True) / sqrt(count - 1)
    scale = std + EPSILON
    return centred / scale, scale


def standardised_backward(grad: Tensor, used: Tensor, scale: Tensor) -> Tensor:
    """Gradient of the weights from that of the standardised ones.

    With u = (w - mean) / s, s = std + eps: du/dw is a centring, a division by s, and what goes through s.
    """
    count = used[0, 0].numel()
    std = scale - EPSILON  # 0 where all weights of a channel are equal: nothing goes through it there
    through_std = (grad * used).sum(dim=(2, 3, 4), keepdim=True) * scale / (std.clamp(min=1e-12) * (count - 1))
    inner = grad - used * through_std
    return (inner - inner.mean(dim=(2, 3, 4), keepdim=True)) / scale


def remember(ctx, inputs: tuple, output: Tensor) -> None:
    """Keep what the backward pass needs."""
    x, weight, *ctx.settings = inputs
    ctx.setting = setting()
    ctx.save_for_backward(x, weight)


def differentiate(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Call `backward_operator`; images that need no gradient cost nothing."""
    images_too = ctx.needs_input_grad[0]
    with as_in(ctx.setting):
        grad_x, grad_weight = backward_operator(grad, *ctx.saved_tensors, *ctx.settings, images_too)
    return grad_x if images_too else None, grad_weight, None, None, None, None


def forward_shapes(x: Tensor, weight: Tensor, stride: int, padding: int, groups: int, standardise: bool) -> Tensor:
    """What `forward` would return, uncomputed."""
    return x.new_empty(*x.shape[:2], weight.shape[1], *sides(x, weight, stride, padding))


def backward_shapes(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: int,
    padding: int,
    groups: int,
    standardise: bool,
    images_too: bool,
) -> tuple[Tensor, Tensor]:
    """What `backward` would return, uncomputed."""
    return x.new_empty(x.shape if images_too else 0), weight.new_empty(weight.shape)


operator = custom_op("conv2d", forward, shapes=forward_shapes, setup_context=remember, backward=differentiate)
backward_operator = custom_op("conv2d_backward", backward, shapes=backward_shapes)


def sides(x: Tensor, weight: Tensor, stride: int, padding: int) -> tuple[int, int]:
    """H', W'."""
    return tuple((x.shape[d] + 2 * padding - weight.shape[d]) // stride + 1 for d in (3, 4))


def able(versions: dict[str, Callable], groups: int) -> dict[str, Callable]:
    """Those that can do with so many groups of channels."""
    return versions if groups == 1 else {"grouped": versions["grouped"]}


def grouped_forward(x: Tensor, weight: Tensor, stride: int, padding: int, groups: int) -> Tensor:
    """One convolution with the groups of all clients."""
    y = F.conv2d(beside(x), weight.flatten(0, 1), None, stride, padding, groups=len(x) * groups)
    return y.unflatten(1, (len(x), -1)).transpose(0, 1)


def grouped_backward(
    grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int, groups: int, images_too: bool
) -> tuple[Tensor | None, Tensor]:
    """The same backwards."""
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        beside(grad),
        beside(x),
        weight.flatten(0, 1),
        None,
        [stride] * 2,
        [padding] * 2,
        [1, 1],
        False,
        [0, 0],
        len(x) * groups,
        [images_too, True, False],
    )
    if images_too:
        grad_x = grad_x.unflatten(1, (len(x), -1)).transpose(0, 1).contiguous()
    return grad_x, grad_weight.view_as(weight)


def beside(stack: Tensor) -> Tensor:
    """``[C, B, I, H, W]`` -> ``[B, C * I, H, W]``: the clients' channels side by side."""
    return stack.transpose(0, 1).flatten(1, 2)


def unfold_forward(x: Tensor, weight: Tensor, stride: int, padding: int, groups: int) -> Tensor:
    """A matrix product per image, of the weights with the patches laid out as columns."""
    y = weight.flatten(2)[:, None] @ columns(x, weight, stride, padding)
    return y.unflatten(3, sides(x, weight, stride, padding))


def unfold_backward(
    grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int, groups: int, images_too: bool
) -> tuple[Tensor | None, Tensor]:
    """The same backwards; the patches are laid out again rather than kept."""
    grad = grad.flatten(3)
    grad_weight = (grad @ columns(x, weight, stride, padding).transpose(2, 3)).sum(dim=1).view_as(weight)
    if not images_too:
        return None, grad_weight
    patches = weight.flatten(2).transpose(1, 2)[:, None] @ grad
    grad_x = F.fold(patches.flatten(0, 1), x.shape[3:], weight.shape[3:], padding=padding, stride=stride)
    return grad_x.view_as(x), grad_weight


def columns(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """Patches ``[C, B, I * h * w, H' * W']``: shifted views of the images, copied; faster than `F.unfold`."""
    shifted = F.pad(x, [padding] * 4).unfold(3, weight.shape[3], stride).unfold(4, weight.shape[4], stride)
    return shifted.permute(0, 1, 2, 5, 6, 3, 4).flatten(5).flatten(2, 4)


TILE = 32
"""Rows, columns and depth of the blocks that Triton's programs multiply."""
TILES = {"TILE": TILE, "num_stages": 2}
"""How the kernels are launched. With more blocks on their way from memory, their addresses leave too few registers."""


def triton_forward(x: Tensor, weight: Tensor, stride: int, padding: int, groups: int) -> Tensor:
    """Implicit matrix product: the patches are never laid out in memory."""
    (c, b, i), o, (h, w) = x.shape[:3], weight.shape[1], sides(x, weight, stride, padding)
    y = x.new_empty(c, b, o, h, w)
    grid = (c * b, gpu.cdiv(h * w, TILE), gpu.cdiv(o, TILE))
    conv2d_forward_kernel[grid](x, weight, y, b, i, o, *x.shape[3:], h, w, *weight.shape[3:], stride, padding, **TILES)
    return y


def triton_backward(
    grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int, groups: int, images_too: bool
) -> tuple[Tensor | None, Tensor]:
    """The same backwards: the weights' gradient sums over images in the program, the images' is gathered."""
    (c, b, i), o = x.shape[:3], weight.shape[1]
    sizes = (b, i, o, *x.shape[3:], *grad.shape[3:], *weight.shape[3:], stride, padding)
    grad_weight = torch.empty_like(weight)
    grid = (c, gpu.cdiv(o, TILE), gpu.cdiv(weight[0, 0].numel(), TILE))
    conv2d_weight_kernel[grid](grad, x, grad_weight, *sizes, **TILES)
    if not images_too:
        return None, grad_weight
    grad_x = torch.empty_like(x)
    grid = (c * b, gpu.cdiv(x[0, 0, 0].numel(), TILE), gpu.cdiv(i, TILE))
    conv2d_image_kernel[grid](grad, weight, grad_x, *sizes, **TILES)
    return grad_x, grad_weight


FORWARD = {"grouped": grouped_forward, "unfold": unfold_forward, "triton": triton_forward}
BACKWARD = {"grouped": grouped_backward, "unfold": unfold_backward, "triton": triton_backward}


@jit
def conv2d_forward_kernel(
    x, weight, y, B, IN, OUT, H, W, OH, OW,
    KH: tl.constexpr, KW: tl.constexpr, stride: tl.constexpr, padding: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A tile of one image's output: ``[outputs, pixels]`` = weights @ patches."""
    image = tl.program_id(0).to(tl.int64)
    pixel = tl.program_id(1) * TILE + tl.arange(0, TILE)
    output = tl.program_id(2) * TILE + tl.arange(0, TILE)
    row, column = pixel // OW * stride - padding, pixel % OW * stride - padding
    depth = IN * KH * KW
    weights, images = weight + image // B * OUT * depth, x + image * IN * H * W
    total = tl.zeros((TILE, TILE), dtype=tl.float32)
    for start in range(0, depth, TILE):
        k = start + tl.arange(0, TILE)
        r, q = row[None, :] + (k // KW % KH)[:, None], column[None, :] + (k % KW)[:, None]
        inside = (k < depth)[:, None] & (pixel < OH * OW)[None, :] & (r >= 0) & (r < H) & (q >= 0) & (q < W)
        patches = tl.load(images + ((k // (KH * KW))[:, None] * H + r) * W + q, mask=inside, other=0.0)
        held = (output < OUT)[:, None] & (k < depth)[None, :]
        block = tl.load(weights + output[:, None] * depth + k[None, :], mask=held, other=0.0)
        total += tl.dot(block, patches, input_precision="ieee")
    place = y + image * OUT * OH * OW + output[:, None] * OH * OW + pixel[None, :]
    tl.store(place, total.to(y.dtype.element_ty), mask=(output < OUT)[:, None] & (pixel < OH * OW)[None, :])


@jit
def conv2d_weight_kernel(
    grad, x, grad_weight, B, IN, OUT, H, W, OH, OW,
    KH: tl.constexpr, KW: tl.constexpr, stride: tl.constexpr, padding: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A tile of one client's weight gradient: ``[outputs, IN*KH*KW]`` = sum over its pixels of gradient @ patches^T."""
    client = tl.program_id(0).to(tl.int64)
    output = tl.program_id(1) * TILE + tl.arange(0, TILE)
    k = tl.program_id(2) * TILE + tl.arange(0, TILE)
    depth = IN * KH * KW
    total = tl.zeros((TILE, TILE), dtype=tl.float32)
    for start in range(0, B * OH * OW, TILE):
        pixel = start + tl.arange(0, TILE)
        image, place = client * B + pixel // (OH * OW), pixel % (OH * OW)
        r = (place // OW * stride - padding)[:, None] + (k // KW % KH)[None, :]
        q = (place % OW * stride - padding)[:, None] + (k % KW)[None, :]
        held = pixel < B * OH * OW
        inside = held[:, None] & (k < depth)[None, :] & (r >= 0) & (r < H) & (q >= 0) & (q < W)
        images, gradients = x + image * IN * H * W, grad + image * OUT * OH * OW + place
        patches = tl.load(images[:, None] + ((k // (KH * KW))[None, :] * H + r) * W + q, mask=inside, other=0.0)
        block = tl.load(
            gradients[None, :] + output[:, None] * OH * OW,
            mask=(output < OUT)[:, None] & held[None, :],
            other=0.0,
        )
        total += tl.dot(block, patches, input_precision="ieee")
    place = grad_weight + client * OUT * depth + output[:, None] * depth + k[None, :]
    tl.store(place, total.to(grad_weight.dtype.element_ty), mask=(output < OUT)[:, None] & (k < depth)[None, :])


@jit
def conv2d_image_kernel(
    grad, weight, grad_x, B, IN, OUT, H, W, OH, OW,
    KH: tl.constexpr, KW: tl.constexpr, stride: tl.constexpr, padding: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A tile of one image's gradient: ``[inputs, pixels]``; each pixel gathers from the outputs it went into."""
    image = tl.program_id(0).to(tl.int64)
    pixel = tl.program_id(1) * TILE + tl.arange(0, TILE)
    channel = tl.program_id(2) * TILE + tl.arange(0, TILE)
    depth = OUT * KH * KW
    weights, gradients = weight + image // B * depth * IN, grad + image * OUT * OH * OW
    total = tl.zeros((TILE, TILE), dtype=tl.float32)
    for start in range(0, depth, TILE):
        k = start + tl.arange(0, TILE)
        r = (pixel // W + padding)[None, :] - (k // KW % KH)[:, None]
        q = (pixel % W + padding)[None, :] - (k % KW)[:, None]
        output = k // (KH * KW)
        fits = (r >= 0) & (q >= 0) & (r % stride == 0) & (q % stride == 0)
        fits = fits & (r // stride < OH) & (q // stride < OW) & (k < depth)[:, None] & (pixel < H * W)[None, :]
        patches = tl.load(gradients + (output[:, None] * OH + r // stride) * OW + q // stride, mask=fits, other=0.0)
        block = tl.load(
            weights + (output[None, :] * IN + channel[:, None]) * KH * KW + (k % (KH * KW))[None, :],
            mask=(channel < IN)[:, None] & (k < depth)[None, :],
            other=0.0,
        )
        total += tl.dot(block, patches, input_precision="ieee")
    place = grad_x + image * IN * H * W + channel[:, None] * H * W + pixel[None, :]
    tl.store(place, total.to(grad_x.dtype.element_ty), mask=(channel < IN)[:, None] & (pixel < H * W)[None, :])
