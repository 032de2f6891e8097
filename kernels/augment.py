"""Random views of images: crop, colour jitter, grayscale, blur, flip, normalisation.

uint8 images ``[C, B, 3, H, H]`` and the parameters of ``[V, C, B]`` views give normalised floats
``[V, C, B, 3, H, H]``. Every operation has its own parameters for each image, so a draw can be replayed, and each
image can be compared with `torchvision.transforms.v2.functional` given the same numbers.

Between operations, images are float planes in [0, 1] that are never rounded to bytes (the published program converts
to 8-bit PIL images in between).
"""

from __future__ import annotations

import torch
from torch import Tensor

from simsfl.kernels import gpu
from simsfl.kernels.augment_triton import triton_augment
from simsfl.kernels.choice import accelerating
from simsfl.kernels.view_parameters import BLUR_RADIUS, CONTRAST, HUE, LUMA, SATURATION, ViewParameters

_BLOCK_BYTES = 1 << 22
"""Bytes of images that a CPU processes at a time, few enough to stay in its caches."""


def augment(
    pixels: Tensor,
    views: ViewParameters,
    mean: Tensor,
    std: Tensor,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return normalised views of images, ``[V, C, B, 3, H, H]`` in `dtype`.

    Args:
        pixels: The images, ``[C, B, 3, H, H]`` uint8.
        views: Parameters with leading dimensions ``[V, C, B]``: V views of each image.
        mean: Mean of each channel, ``[3, 1, 1]``, of pixels in [0, 1].
        std: Standard deviation of each channel, ``[3, 1, 1]``, of pixels in [0, 1].
        dtype: Floating-point type of the result. PyTorch computes in it, too; Triton always computes in float32.
    """
    shape = views.flip.shape
    result = torch.empty(*shape, *pixels.shape[2:], dtype=dtype, device=pixels.device)
    if accelerating() and gpu.usable(result):
        triton_augment(pixels, views, mean, std, result)
    else:
        _reference(pixels, views, mean, std, result)
    return result


def _reference(pixels: Tensor, views: ViewParameters, mean: Tensor, std: Tensor, out: Tensor) -> None:
    """Write the views into `out` ``[V, C, B, 3, H, H]``: all at once on a GPU, `_BLOCK_BYTES` at a time on a CPU."""
    dtype, result = out.dtype, out.flatten(0, 2)
    images = pixels.flatten(0, 1)
    rows = torch.arange(len(images), device=pixels.device).expand(len(out), -1).flatten()
    views = views.map(lambda t: t.flatten(0, 2).to(dtype) if t.is_floating_point() else t.flatten(0, 2))
    count = len(rows) if result.is_cuda else max(1, _BLOCK_BYTES // (result[0].numel() * dtype.itemsize))
    for start in range(0, len(rows), count):
        part = slice(start, start + count)
        block = views.map(lambda t, part=part: t[part])
        x = _resized_crop(images[rows[part]].to(dtype).div_(255.0), block.crop, block.flip)
        x = _color_jitter(x, block.jitter, block.blends, block.hue_slot)
        x = _gaussian_blur(x, block.sigma)
        finish(x, block.gray, mean.to(dtype), std.to(dtype), out=result[part])


def _mix(images: Tensor, matrix: Tensor, bias: Tensor, out: Tensor | None = None) -> Tensor:
    """Return images ``[n, 3, H, W]`` whose planes are mixed by `matrix` ``[n, 3, 3]``, plus `bias` ``[n, 3, 1]``.

    `bias` may have any shape that broadcasts to that one. The result is written into `out` if it is given.
    """
    flat = None if out is None else out.flatten(2)
    return torch.baddbmm(bias, matrix, images.flatten(2), out=flat).view_as(images)


def _separable(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Resample images ``[n, 3, H, W]`` by a matrix per image and axis: ``rows @ plane @ columns^T``.

    The three planes of an image lie side by side, so that one product per axis handles them all.
    """
    n, channels, height, width = images.shape
    y = rows @ images.transpose(1, 2).reshape(n, height, channels * width)
    y = y.view(n, height * channels, width) @ columns.transpose(1, 2)
    return y.view(n, height, channels, width).transpose(1, 2)


def _resized_crop(images: Tensor, crop: Tensor, flip: Tensor) -> Tensor:
    """Cut ``crop [n, 4]`` (top, left, height, width) out of each image, resize it to full size, and `flip` ``[n]`` it.

    Resizing is bilinear: each pixel is read at a point between two pixels per axis, and a point beyond the crop is
    moved to its edge. A crop is never larger than the result, so antialiasing, which only matters when shrinking,
    would change nothing. The flip commutes with all later operations, so it is done here, where it costs nothing.
    """
    size = images.shape[-1]
    position = torch.arange(size, device=images.device, dtype=images.dtype)

    def weights(start: Tensor, extent: Tensor, order: Tensor) -> Tensor:
        start, extent = start[:, None], extent[:, None]
        point = start + (order + 0.5) * extent / size - 0.5
        point = point.maximum(start).minimum(start + extent - 1)
        return (point[:, :, None] - position).abs_().neg_().add_(1.0).clamp_(min=0.0)

    top, left, height, width = crop.unbind(dim=1)
    columns = weights(left, width, torch.where(flip[:, None], position.flip(0), position))
    return _separable(images, weights(top, height, position), columns).clamp_(0.0, 1.0)


def _color_jitter(images: Tensor, jitter: Tensor, blends: Tensor, hue_slot: Tensor) -> Tensor:
    """Change brightness, contrast, saturation and hue of each image ``[n, 3, H, W]``, in the image's own order.

    `jitter` ``[n, 4]``, `blends` ``[n, 3]`` and `hue_slot` ``[n]`` are those of `ViewParameters`.

    Every image has three blends and one hue shift, so the hue shift is computed once for all images, with three blends
    before it and three after. A blend that an image does not have in that place gets factor 1, which changes nothing.
    """
    factors = jitter.gather(1, blends)
    for slot in range(3):
        images = _blend(images, blends[:, slot], torch.where(slot < hue_slot, factors[:, slot], 1.0))
    images = _shift_hue(images, jitter[:, HUE])
    for slot in range(3):
        images = _blend(images, blends[:, slot], torch.where(slot >= hue_slot, factors[:, slot], 1.0))
    return images


def _luma(images: Tensor) -> Tensor:
    """Return `LUMA` ``[3]`` in the images' dtype, filled on their device: a copy from the host cannot be captured."""
    return torch.cat([images.new_full((1,), weight) for weight in LUMA])


def _blend(images: Tensor, operation: Tensor, factor: Tensor) -> Tensor:
    """Change the brightness, contrast or saturation of each image ``[n, 3, H, W]``, as `operation` ``[n]`` says.

    The result is `factor` ``[n]`` times the image, plus ``1 - factor`` times black (brightness), the image's mean gray
    (contrast) or its grayscale (saturation), clamped to [0, 1]. Each is a linear mixture of an image's planes plus a
    constant, so one matrix product handles all three.
    """
    weights, rest = _luma(images), 1.0 - factor
    unit = torch.eye(3, dtype=images.dtype, device=images.device)
    matrix = factor[:, None, None] * unit + torch.where(operation == SATURATION, rest, 0.0)[:, None, None] * weights
    mean = images.mean(dim=(2, 3)) @ weights
    bias = torch.where(operation == CONTRAST, rest * mean, 0.0)
    return _mix(images, matrix, bias[:, None, None]).clamp_(0.0, 1.0)


def _shift_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Rotate the hue of each image by ``shift [n]`` turns, leaving value and chroma unchanged (Smith 1978)."""
    red, green, blue = images.unbind(dim=1)
    value, low = images.amax(dim=1), images.amin(dim=1)
    chroma = value - low
    safe = torch.where(chroma > 0, chroma, 1.0)
    sector = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2.0 + (blue - red) / safe, 4.0 + (red - green) / safe),
    )
    sector = sector + 6.0 * shift[:, None, None]
    channel = torch.arange(3, device=images.device)[:, None, None]
    from_dip = sector[:, None] + (3 - 2 * channel)  # 0 (modulo 6) where the channel is at its lowest
    from_dip = torch.add(from_dip, (from_dip / 6.0).round_(), alpha=-6).abs_()
    return value[:, None] - chroma[:, None] * (2.0 - from_dip).clamp_(0.0, 1.0)


def _gaussian_blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Blur each image with its own ``sigma [n]`` in pixels, reflecting the border; sigma 0 leaves it unchanged.

    The Gaussian kernel reaches `BLUR_RADIUS` pixels to either side, fewer where the image is smaller, and sums to one.
    """
    size = images.shape[-1]
    radius = min(BLUR_RADIUS, size - 1)
    position = torch.arange(size, device=images.device)
    offset = torch.arange(-radius, radius + 1, device=images.device)
    kernel = torch.exp(-0.5 * (offset / sigma.clamp(min=1e-3)[:, None]) ** 2)
    kernel = kernel / kernel.sum(dim=1, keepdim=True)
    source = (position[:, None] + offset).abs()
    source = torch.where(source > size - 1, 2 * (size - 1) - source, source)
    matrix = images.new_zeros(len(images), size, size)
    matrix.scatter_add_(2, source.expand(len(images), -1, -1), kernel[:, None].expand(-1, size, -1))
    return _separable(images, matrix, matrix)


def finish(images: Tensor, gray: Tensor, mean: Tensor, std: Tensor, out: Tensor | None = None) -> Tensor:
    """Turn the images that are `gray` ``[n]`` (bool) into grayscale, and normalise all by `mean` and `std`.

    In the recipe, grayscale comes before the blur. Doing it here, after the blur, gives the same: both are linear, and
    the blur treats all planes alike.
    """
    unit = torch.eye(3, dtype=images.dtype, device=images.device)
    matrix = torch.where(gray[:, None, None], _luma(images).expand(3, 3), unit)
    return _mix(images, matrix / std.view(3, 1), (-mean / std).view(3, 1), out)
