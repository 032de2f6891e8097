"""Convolution in which each client has its own weights.

    y[c, b] = conv2d(x[c, b], w[c])

x ``[C, B, I, H, W]`` and w ``[C, O, I / groups, h, w]`` give y ``[C, B, O, H', W']``: C clients with B images each,
zero padding, no bias. The weights can be standardised first (Qiao et al. 2019, eq. 2): the weights of an output channel
are centred and divided by their unbiased standard deviation plus 1e-5.

The convolution is a custom operator, so that code for one client can call it, and be mapped over all clients.
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

_EPSILON = 1e-5
"""Number added to the standard deviation that standardised weights are divided by."""


def conv2d(
    x: Tensor, weight: Tensor, stride: int = 1, padding: int = 0, groups: int = 1, *, standardise: bool = False
) -> Tensor:
    """Convolve each client's images with its own weights.

    Args:
        x: Images, ``[C, B, I, H, W]``, or ``[B, I, H, W]`` for one client.
        weight: ``[C, O, I / groups, h, w]``, or ``[O, I / groups, h, w]`` for one client. The accelerated versions
            convert it to the dtype of `x`.
        stride: Step between output pixels, in input pixels, on both axes.
        padding: Zeros added on each side of both axes, in pixels.
        groups: Number of groups of channels, each convolved separately; the number of channels in a depthwise
            convolution.
        standardise: Whether to standardise the weights first, in their own dtype.

    Returns:
        Outputs ``[C, B, O, H', W']``, or ``[B, O, H', W']`` for one client, in the dtype of `x`, or that of autocast.
    """
    if not accelerating():
        if stride > 1 and weight.shape[-2:] == (1, 1) and not padding and x.device.type == "cpu":
            x, stride = x[..., ::stride, ::stride], 1  # oneDNN would read every pixel
        one = _reference if x.ndim == 4 else vmap(_reference, in_dims=(0, 0, None, None, None, None))
        return one(x, weight, stride, padding, groups, standardise)
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    if x.ndim == 4:
        return _operator(x[None], weight[None], stride, padding, groups, standardise)[0]
    return _operator(x, weight, stride, padding, groups, standardise)


def _reference(x: Tensor, weight: Tensor, stride: int, padding: int, groups: int, standardise: bool) -> Tensor:
    """Return one client's convolution ``[B, O, H', W']`` of x ``[B, I, H, W]``, by weight ``[O, I / groups, h, w]``."""
    weight = standardised(weight) if standardise else weight
    return F.conv2d(x, weight, None, stride, padding, groups=groups)


def standardised(weight: Tensor) -> Tensor:
    """Return the standardised form of one client's weights ``[O, I / groups, h, w]``, in their shape and dtype."""
    rows = weight.flatten(1)
    centred = rows - rows.mean(dim=1, keepdim=True)
    std = centred.norm(dim=1, keepdim=True) / sqrt(rows.shape[1] - 1)  # torch.std is far slower on a CPU
    return (centred / (std + _EPSILON)).view_as(weight)


def _forward(x: Tensor, weight: Tensor, stride: int, padding: int, groups: int, standardise: bool) -> Tensor:
    """Return y ``[C, B, O, H', W']`` from the fastest version, after standardising the weights if asked to."""
    if standardise:
        weight, _ = _standardised(weight)
    tensors = (x.contiguous(), weight.to(x.dtype).contiguous())
    return fastest("conv2d", _able(_FORWARD, groups), tensors, stride, padding, groups).contiguous()


def _backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: int,
    padding: int,
    groups: int,
    standardise: bool,
    images_too: bool,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of x (empty unless `images_too`) and weight from grad ``[C, B, O, H', W']``, that of y."""
    used, scale = _standardised(weight) if standardise else (weight, None)
    tensors = (grad.contiguous(), x.contiguous(), used.to(x.dtype).contiguous())
    grad_x, grad_weight = fastest(
        "conv2d_backward", _able(_BACKWARD, groups), tensors, stride, padding, groups, images_too
    )
    grad_weight = grad_weight.to(weight.dtype)
    if standardise:
        grad_weight = _standardised_backward(grad_weight, used, scale)
    return grad_x if images_too else x.new_empty(0), grad_weight.contiguous()


def _standardised(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return standardised weights, and what they were divided by ``[C, O, 1, 1, 1]``: their deviation plus epsilon."""
    count = weight[0, 0].numel()
    centred = weight - weight.mean(dim=(2, 3, 4), keepdim=True)
    std = torch.linalg.vector_norm(centred, dim=(2, 3, 4), keepdim=True) / sqrt(count - 1)
    scale = std + _EPSILON
    return centred / scale, scale


def _standardised_backward(grad: Tensor, used: Tensor, scale: Tensor) -> Tensor:
    """Return the gradient of the weights from `grad`, that of the standardised weights `used`, and their `scale`.

    With u = (w - mean) / s and s = std + eps, du/dw consists of the centring, the division by s, and a term through s.
    """
    count = used[0, 0].numel()
    std = scale - _EPSILON  # 0 where all weights of a channel are equal; then `used` is 0, and so is the term through s
    through_std = (grad * used).sum(dim=(2, 3, 4), keepdim=True) * scale / (std.clamp(min=1e-12) * (count - 1))
    inner = grad - used * through_std
    return (inner - inner.mean(dim=(2, 3, 4), keepdim=True)) / scale


def _remember(ctx, inputs: tuple, output: Tensor) -> None:
    """Save what the backward pass needs on `ctx`: the inputs, and which versions operators use."""
    x, weight, *ctx.settings = inputs
    ctx.setting = setting()
    ctx.save_for_backward(x, weight)


def _differentiate(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Return the gradients of the operator's inputs; the gradient of images is computed only if it is needed."""
    images_too = ctx.needs_input_grad[0]
    with as_in(ctx.setting):
        grad_x, grad_weight = _backward_operator(grad, *ctx.saved_tensors, *ctx.settings, images_too)
    return grad_x if images_too else None, grad_weight, None, None, None, None


def _forward_shapes(x: Tensor, weight: Tensor, stride: int, padding: int, groups: int, standardise: bool) -> Tensor:
    """Return an uninitialised tensor of the shape that `_forward` returns."""
    return x.new_empty(*x.shape[:2], weight.shape[1], *sides(x, weight, stride, padding))


def _backward_shapes(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: int,
    padding: int,
    groups: int,
    standardise: bool,
    images_too: bool,
) -> tuple[Tensor, Tensor]:
    """Return uninitialised tensors of the shapes that `_backward` returns."""
    return x.new_empty(x.shape if images_too else 0), weight.new_empty(weight.shape)


_operator = custom_op("conv2d", _forward, shapes=_forward_shapes, setup_context=_remember, backward=_differentiate)
_backward_operator = custom_op("conv2d_backward", _backward, shapes=_backward_shapes)


def sides(x: Tensor, weight: Tensor, stride: int, padding: int) -> tuple[int, int]:
    """Return the height H' and width W' of the outputs of x ``[C, B, I, H, W]`` and weight ``[C, O, I, h, w]``."""
    return tuple((x.shape[d] + 2 * padding - weight.shape[d]) // stride + 1 for d in (3, 4))


def _able(versions: dict[str, Callable], groups: int) -> dict[str, Callable]:
    """Return the versions that support `groups` groups of channels: only "grouped" supports more than one."""
    return versions if groups == 1 else {"grouped": versions["grouped"]}


def _grouped_forward(x: Tensor, weight: Tensor, stride: int, padding: int, groups: int) -> Tensor:
    """Return y ``[C, B, O, H', W']`` from one convolution that has the groups of all clients."""
    y = F.conv2d(_beside(x), weight.flatten(0, 1), None, stride, padding, groups=len(x) * groups)
    return y.unflatten(1, (len(x), -1)).transpose(0, 1)


def _grouped_backward(
    grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int, groups: int, images_too: bool
) -> tuple[Tensor | None, Tensor]:
    """Return the gradients of x (None unless `images_too`) and weight from one convolution with all clients' groups."""
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        _beside(grad),
        _beside(x),
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


def _beside(stack: Tensor) -> Tensor:
    """Return a stack ``[C, B, I, H, W]`` as ``[B, C * I, H, W]``, with the clients' channels side by side."""
    return stack.transpose(0, 1).flatten(1, 2)


def _unfold_forward(x: Tensor, weight: Tensor, stride: int, padding: int, groups: int) -> Tensor:
    """Return y ``[C, B, O, H', W']`` from one matrix product per image: weights @ patches, laid out as columns."""
    y = weight.flatten(2)[:, None] @ _columns(x, weight, stride, padding)
    return y.unflatten(3, sides(x, weight, stride, padding))


def _unfold_backward(
    grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int, groups: int, images_too: bool
) -> tuple[Tensor | None, Tensor]:
    """Return the gradients of x (None unless `images_too`) and weight from one matrix product per image.

    The patches are laid out again rather than kept in memory since the forward pass.
    """
    grad = grad.flatten(3)
    grad_weight = (grad @ _columns(x, weight, stride, padding).transpose(2, 3)).sum(dim=1).view_as(weight)
    if not images_too:
        return None, grad_weight
    patches = weight.flatten(2).transpose(1, 2)[:, None] @ grad
    grad_x = F.fold(patches.flatten(0, 1), x.shape[3:], weight.shape[3:], padding=padding, stride=stride)
    return grad_x.view_as(x), grad_weight


def _columns(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """Return the patches ``[C, B, I * h * w, H' * W']`` that the weights multiply, copied from shifted views of `x`.

    This is faster than `F.unfold`.
    """
    shifted = F.pad(x, [padding] * 4).unfold(3, weight.shape[3], stride).unfold(4, weight.shape[4], stride)
    return shifted.permute(0, 1, 2, 5, 6, 3, 4).flatten(5).flatten(2, 4)


_TILE = 32
"""Rows, columns and depth of the matrix blocks that the Triton programs multiply."""
_TILES = {"TILE": _TILE, "num_stages": 2}
"""Launch options of the Triton kernels. With more stages, which means more blocks being loaded from memory at a time,
the blocks' addresses leave too few registers."""


def _triton_forward(x: Tensor, weight: Tensor, stride: int, padding: int, groups: int) -> Tensor:
    """Return y ``[C, B, O, H', W']`` from an implicit matrix product: the patches are never laid out in memory."""
    (c, b, i), o, (h, w) = x.shape[:3], weight.shape[1], sides(x, weight, stride, padding)
    y = x.new_empty(c, b, o, h, w)
    grid = (c * b, gpu.cdiv(h * w, _TILE), gpu.cdiv(o, _TILE))
    _conv2d_forward_kernel[grid](
        x, weight, y, b, i, o, *x.shape[3:], h, w, *weight.shape[3:], stride, padding, **_TILES
    )
    return y


def _triton_backward(
    grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int, groups: int, images_too: bool
) -> tuple[Tensor | None, Tensor]:
    """Return the gradients of x (None unless `images_too`) and weight from implicit matrix products.

    A program that computes a weight gradient sums over the client's images itself. A program that computes an image's
    gradient gathers, for each pixel, from the outputs that the pixel contributed to.
    """
    (c, b, i), o = x.shape[:3], weight.shape[1]
    sizes = (b, i, o, *x.shape[3:], *grad.shape[3:], *weight.shape[3:], stride, padding)
    grad_weight = torch.empty_like(weight)
    grid = (c, gpu.cdiv(o, _TILE), gpu.cdiv(weight[0, 0].numel(), _TILE))
    _conv2d_weight_kernel[grid](grad, x, grad_weight, *sizes, **_TILES)
    if not images_too:
        return None, grad_weight
    grad_x = torch.empty_like(x)
    grid = (c * b, gpu.cdiv(x[0, 0, 0].numel(), _TILE), gpu.cdiv(i, _TILE))
    _conv2d_image_kernel[grid](grad, weight, grad_x, *sizes, **_TILES)
    return grad_x, grad_weight


_FORWARD = {"grouped": _grouped_forward, "unfold": _unfold_forward, "triton": _triton_forward}
"""Versions of the forward pass by name; the first is the default."""
_BACKWARD = {"grouped": _grouped_backward, "unfold": _unfold_backward, "triton": _triton_backward}
"""Versions of the backward pass by name; the first is the default."""


@jit
def _conv2d_forward_kernel(
    x, weight, y, B, IN, OUT, H, W, OH, OW,
    KH: tl.constexpr, KW: tl.constexpr, stride: tl.constexpr, padding: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Write a tile of one image's output: ``[outputs, pixels]`` = weights @ patches."""
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
def _conv2d_weight_kernel(
    grad, x, grad_weight, B, IN, OUT, H, W, OH, OW,
    KH: tl.constexpr, KW: tl.constexpr, stride: tl.constexpr, padding: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Write a tile of one client's weight gradient ``[outputs, IN*KH*KW]``: gradient @ patches^T over its pixels."""
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
def _conv2d_image_kernel(
    grad, weight, grad_x, B, IN, OUT, H, W, OH, OW,
    KH: tl.constexpr, KW: tl.constexpr, stride: tl.constexpr, padding: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Write a tile of one image's gradient ``[inputs, pixels]``; each pixel gathers from the outputs it fed into."""
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
