"""Random views of images: crop, colour jitter, grayscale, blur, flip, normalisation.

uint8 images ``[n, 3, H, H]``, rows of them ``[C, B]`` and the parameters of ``[V, C, B]`` views give normalised
floats ``[V, C, B, 3, H, H]``. Every operation has parameters of its own per image, so a draw can be replayed, and each
image compared with `torchvision.transforms.v2.functional` given the same numbers.

Images are float planes in [0, 1] throughout; nothing is rounded to bytes in between (the published program goes
through 8-bit PIL images).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from simsfl.kernels.choice import accelerating

BLUR_RADIUS = 6
"""Pixels to either side: three of the widest sigma (2)."""

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
"""Columns of `ViewParameters.jitter`, and the operations in `ViewParameters.blends`."""


@dataclass(frozen=True)
class ViewParameters:
    """Parameters of views, all with the same leading dimensions ``[...]``."""

    crop: Tensor
    """``[..., 4]`` float: top, left, height, width in pixels, all whole numbers."""
    flip: Tensor
    """``[...]`` bool."""
    jitter: Tensor
    """``[..., 4]`` float: brightness, contrast and saturation factors, hue shift in turns. Where the
    jitter is not applied: 1, 1, 1, 0."""
    blends: Tensor
    """``[..., 3]`` int64: brightness (0), contrast (1) and saturation (2) in the order applied."""
    hue_slot: Tensor
    """``[...]`` int64: how many of the three blends come before the hue shift."""
    gray: Tensor
    """``[...]`` bool."""
    sigma: Tensor
    """``[...]`` float: standard deviation of the blur in pixels, 0 for none."""

    def map(self, function: Callable[[Tensor], Tensor]) -> ViewParameters:
        """Apply `function` to every tensor, such as ``lambda t: t[step]``."""
        return replace(self, **{field.name: function(getattr(self, field.name)) for field in fields(self)})


def augment(
    pixels: Tensor,
    indices: Tensor,
    views: ViewParameters,
    mean: Tensor,
    std: Tensor,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Views of the images at `indices`, normalised.

    Args:
        pixels: ``[n, 3, H, H]`` uint8.
        indices: ``[C, B]`` int64 rows of `pixels`.
        views: leading dimensions ``[V, C, B]``: V views of each image.
        mean: ``[3, 1, 1]`` per channel, of pixels in [0, 1]; as `std`.
        dtype: of the result, and of what is computed.

    Returns:
        ``[V, C, B, 3, H, H]``.
    """
    shape = views.flip.shape
    rows = indices.expand(shape).flatten()
    views = views.map(lambda t: t.flatten(0, 2).to(dtype) if t.is_floating_point() else t.flatten(0, 2))
    mean, std = mean.to(dtype), std.to(dtype)
    version = by_rows if accelerating() and pixels.device.type == "cpu" else reference
    return version(pixels, rows, views, mean, std).unflatten(0, shape)


def reference(pixels: Tensor, rows: Tensor, views: ViewParameters, mean: Tensor, std: Tensor) -> Tensor:
    """All views ``[n]`` at once, each operation on all of them; where it is not an image's own, it changes nothing."""
    x = resized_crop(pixels[rows].to(mean.dtype).div_(255.0), views.crop)
    x = color_jitter(x, views.jitter, views.blends, views.hue_slot)
    x = torch.where(views.gray[:, None, None, None], grayscale(x), x)
    x = gaussian_blur(x, views.sigma)
    x = torch.where(views.flip[:, None, None, None], x.flip(-1), x)
    return (x - mean) / std


BLOCK_BYTES = 1 << 22
"""Images that `by_rows` has in hand: they should stay in cache."""


def by_rows(pixels: Tensor, rows: Tensor, views: ViewParameters, mean: Tensor, std: Tensor) -> Tensor:
    """For a CPU: each operation on those images alone that it is for, a block of images at a time."""
    result = torch.empty(len(rows), *pixels.shape[1:], dtype=mean.dtype)
    slots = torch.arange(4)
    before = slots < views.hue_slot[:, None]
    order = torch.where(before, views.blends[:, slots.clamp(max=2)], views.blends[:, (slots - 1).clamp(min=0)])
    order = torch.where(slots == views.hue_slot[:, None], HUE, order)
    order[(views.jitter == views.jitter.new_tensor([1.0, 1.0, 1.0, 0.0])).all(dim=1)] = -1
    count = max(1, BLOCK_BYTES // (pixels[0].numel() * mean.dtype.itemsize))
    for start in range(0, len(rows), count):
        part = slice(start, start + count)
        view = views.map(lambda t, part=part: t[part])
        x = resized_crop(pixels[rows[part]].to(mean.dtype).div_(255.0), view.crop)
        for slot in range(4):
            for operation, function in enumerate(OPERATIONS):
                change_(x, order[part, slot] == operation, function, view.jitter[:, operation])
        change_(x, view.gray, lambda images: grayscale(images).expand_as(images))
        change_(x, view.sigma > 0, gaussian_blur, view.sigma)
        change_(x, view.flip, lambda images: images.flip(-1))
        torch.sub(x, mean, out=result[part]).div_(std)
    return result


def change_(images: Tensor, chosen: Tensor, function: Callable[..., Tensor], *amounts: Tensor) -> None:
    """Put ``function(images, *amounts)`` in place of those images ``[n]`` that are `chosen` ``[n]``."""
    rows = chosen.nonzero().flatten()
    if len(rows):
        images[rows] = function(images[rows], *(amount[rows] for amount in amounts))


def separable(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Resample ``[n, 3, H, W]`` by a matrix per image and axis: ``rows @ plane @ columns^T``.

    The three planes of an image go through each product together, side by side.
    """
    n, channels, height, width = images.shape
    y = rows @ images.transpose(1, 2).reshape(n, height, channels * width)
    y = y.view(n, height * channels, width) @ columns.transpose(1, 2)
    return y.view(n, height, channels, width).transpose(1, 2)


def resized_crop(images: Tensor, crop: Tensor) -> Tensor:
    """Cut ``crop [n, 4]`` (top, left, height, width) out of each image and resize it to full size.

    Bilinear: a triangle filter, its weights renormalised where it reaches beyond the crop. A crop is
    never larger than the result, so antialiasing, which only matters when shrinking, changes nothing.
    """
    size = images.shape[-1]
    position = torch.arange(size, device=images.device, dtype=images.dtype)

    def weights(start: Tensor, extent: Tensor) -> Tensor:
        start, extent = start[:, None, None], extent[:, None, None]
        centre = start + (position[:, None] + 0.5) * extent / size
        distance = position + 0.5 - centre
        inside = (position >= start) & (position < start + extent)
        weight = (1.0 - distance.abs()).clamp(min=0.0) * inside
        return weight / weight.sum(dim=-1, keepdim=True)

    top, left, height, width = crop.unbind(dim=1)
    return separable(images, weights(top, height), weights(left, width)).clamp_(0.0, 1.0)


def grayscale(images: Tensor) -> Tensor:
    """Luma ``[n, 1, H, W]`` with the ITU-R 601 weights."""
    red, green, blue = images.unbind(dim=1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue).unsqueeze(1)


def color_jitter(images: Tensor, jitter: Tensor, blends: Tensor, hue_slot: Tensor) -> Tensor:
    """Brightness, contrast, saturation and hue, each image in its own order.

    Every image has three blends and one hue shift, so the hue is computed once: three blends come
    before it and three after, those that are not an image's own with factor 1, which changes nothing.
    """
    factors = jitter.gather(1, blends)
    for slot in range(3):
        images = blend(images, blends[:, slot], torch.where(slot < hue_slot, factors[:, slot], 1.0))
    images = shift_hue(images, jitter[:, HUE])
    for slot in range(3):
        images = blend(images, blends[:, slot], torch.where(slot >= hue_slot, factors[:, slot], 1.0))
    return images


def blend(images: Tensor, operation: Tensor, factor: Tensor) -> Tensor:
    """Mix each image with black, its mean gray or its grayscale: brightness, contrast, saturation."""
    gray = grayscale(images)
    operation, factor = operation[:, None, None, None], factor[:, None, None, None]
    other = torch.where(operation == CONTRAST, gray.mean(dim=(1, 2, 3), keepdim=True), gray)
    other = torch.where(operation == BRIGHTNESS, 0.0, other)
    return (other + factor * (images - other)).clamp_(0.0, 1.0)


def shift_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue of each image by ``shift [n]`` turns, value and chroma unchanged (Smith 1978)."""
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
    phase = (5 - 2 * channel + sector[:, None]) % 6.0
    ramp = torch.minimum(phase, 4.0 - phase).clamp_(0.0, 1.0)
    shifted = value[:, None] - chroma[:, None] * ramp
    return torch.where((shift != 0)[:, None, None, None], shifted, images)


def gaussian_blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Blur each image with its own ``sigma [n]``, the border reflected; sigma 0 leaves it as it is.

    The kernel reaches `BLUR_RADIUS` pixels, less where the image is smaller, and sums to one.
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
    return separable(images, matrix, matrix)


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Mix each image with black."""
    return (images * factor[:, None, None, None]).clamp_(0.0, 1.0)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Mix each image with its mean gray."""
    return torch.lerp(grayscale(images).mean(dim=(1, 2, 3), keepdim=True), images, factor[:, None, None, None]).clamp_(
        0.0, 1.0
    )


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Mix each image with its grayscale."""
    return torch.lerp(grayscale(images), images, factor[:, None, None, None]).clamp_(0.0, 1.0)


OPERATIONS = (brightness, contrast, saturation, shift_hue)
"""By their number."""
