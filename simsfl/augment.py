"""The two random views of an image: `sample` draws their parameters, `apply` makes them.

Every operation is batched with parameters of its own per image, so a draw can be replayed and each
image compared with `torchvision.transforms.v2.functional` given the same numbers.

Images are float planes in [0, 1] throughout; nothing is rounded to bytes in between (the published
program goes through 8-bit PIL images).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from simsfl.data import Images

CROP_ATTEMPTS = 10
UNIFORMS = 4 * CROP_ATTEMPTS + 13
"""Uniform numbers that one view takes."""

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


def sample(uniforms: np.ndarray, recipe: str, image_size: int, crop_scale: float = 0.08) -> ViewParameters:
    """Turn uniform numbers ``[..., UNIFORMS]`` in [0, 1) into view parameters.

    Recipe "v2" (MoCo v2) is crop, colour jitter, grayscale, blur, flip. "v1" has no blur, and the flip after the
    crop, which makes no difference, since the flip commutes with everything after it.

    The crop is drawn as torchvision's RandomResizedCrop does: ten tries at an area share in
    (`crop_scale`, 1) and a log-uniform aspect ratio in (3/4, 4/3), else the whole image. ColorJitter
    (0.4, 0.4, 0.4, 0.1) with probability 0.8, its order drawn per image; grayscale 0.2; in v2 blur with
    sigma in (0.1, 2) and probability 0.5; flip 0.5.
    """
    tries, rest = np.split(uniforms, [4 * CROP_ATTEMPTS], axis=-1)
    tries = tries.reshape(*tries.shape[:-1], 4, CROP_ATTEMPTS)
    area = image_size**2 * (crop_scale + (1 - crop_scale) * tries[..., 0, :])
    ratio = np.exp(np.log(4 / 3) * (2 * tries[..., 1, :] - 1))
    width = np.rint(np.sqrt(area * ratio))
    height = np.rint(np.sqrt(area / ratio))
    fits = (width <= image_size) & (height <= image_size) & (width > 0) & (height > 0)
    top = np.floor(tries[..., 2, :] * (image_size - height + 1))
    left = np.floor(tries[..., 3, :] * (image_size - width + 1))
    candidates = np.stack([top, left, height, width], axis=-1)
    first = fits.argmax(axis=-1)[..., None, None]
    crop = np.take_along_axis(candidates, first, axis=-2)[..., 0, :]
    crop = np.where(fits.any(axis=-1, keepdims=True), crop, [0, 0, image_size, image_size])

    factors = np.concatenate([0.6 + 0.8 * rest[..., 0:3], 0.2 * rest[..., 3:4] - 0.1], axis=-1)
    jitter = np.where(rest[..., 4:5] < 0.8, factors, [1.0, 1.0, 1.0, 0.0])
    blurred = (rest[..., 11] < 0.5) & (recipe == "v2")
    return ViewParameters(
        crop=torch.from_numpy(crop).float(),
        flip=torch.from_numpy(rest[..., 9] < 0.5),
        jitter=torch.from_numpy(jitter).float(),
        blends=torch.from_numpy(rest[..., 5:8].argsort(axis=-1)),
        hue_slot=torch.from_numpy(np.floor(4 * rest[..., 8]).astype(np.int64)),
        gray=torch.from_numpy(rest[..., 10] < 0.2),
        sigma=torch.from_numpy(np.where(blurred, 0.1 + 1.9 * rest[..., 12], 0.0)).float(),
    )


def apply(images: Images, indices: Tensor, views: ViewParameters, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normalised views ``[2, C, B, 3, H, H]`` of the images at `indices` ``[C, B]``.

    `views` has leading dimensions ``[2, C, B]``; the result is of dtype `dtype`.
    """
    shape = views.flip.shape
    views = views.map(lambda t: t.flatten(0, 2).to(dtype) if t.is_floating_point() else t.flatten(0, 2))
    x = images.pixels[indices.flatten()].to(dtype).div_(255.0).repeat(shape[0], 1, 1, 1)
    x = resized_crop(x, views.crop)
    x = color_jitter(x, views.jitter, views.blends, views.hue_slot)
    x = torch.where(views.gray[:, None, None, None], grayscale(x), x)
    x = gaussian_blur(x, views.sigma)
    x = torch.where(views.flip[:, None, None, None], x.flip(-1), x)
    return images.normalise(x).view(shape + x.shape[1:])


def separable(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Resample ``[n, 3, H, W]`` by a matrix per image and axis: ``rows @ plane @ columns^T``."""
    return rows[:, None] @ images @ columns[:, None].transpose(-1, -2)


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
