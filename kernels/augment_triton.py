"""Random views of images in one Triton kernel: one program makes one view, and computes in float32 throughout.

The helpers do what the functions of the same names in `kernels.augment` do, on one block of an image's pixels. A
block's red, green and blue stay in registers, and are written to memory only where a pixel depends on other pixels:
for the mean that the contrast needs, and for the blur.
"""

import torch
from torch import Tensor

from simsfl.kernels import gpu, view_parameters
from simsfl.kernels.gpu import jit, tl
from simsfl.kernels.view_parameters import BLUR_RADIUS, LUMA, ViewParameters

PIXELS = 1024
"""Maximum number of pixels that a program holds in registers at once: an image of 32x32."""
_PIXELS_PER_WARP = 64
"""Pixels per warp, two per thread: with more, the pixels of an image of odd size do not all fit in registers."""

_CONTRAST = tl.constexpr(view_parameters.CONTRAST)
_SATURATION = tl.constexpr(view_parameters.SATURATION)
_HUE = tl.constexpr(view_parameters.HUE)
_RED, _GREEN, _BLUE = (tl.constexpr(weight) for weight in LUMA)


def triton_augment(pixels: Tensor, views: ViewParameters, mean: Tensor, std: Tensor, out: Tensor) -> None:
    """Write the views into the contiguous `out` ``[V, C, B, 3, H, H]``; arguments are as for `kernels.augment.augment`.

    Besides `out`, this allocates two float32 images per view.
    """
    size, count = out.shape[-1], views.flip.numel()
    assert out.is_contiguous()
    block = min(gpu.next_power_of_2(size * size), PIXELS)
    views = views.map(Tensor.contiguous)
    planes, across = (torch.empty(count, 3, size, size, device=out.device) for _ in range(2))
    _augment_kernel[(count,)](
        pixels.contiguous(), views.crop, views.flip, views.jitter, views.blends, views.hue_slot, views.gray,
        views.sigma, mean.contiguous(), std.contiguous(), planes, across, out, pixels.shape[:2].numel(),
        SIZE=size, RADIUS=min(BLUR_RADIUS, size - 1), BLOCK=block, num_warps=max(1, block // _PIXELS_PER_WARP),
    )  # fmt: skip


@jit
def _augment_kernel(
    pixels, crop, flip, jitter, blends, hue_slot, gray, sigma, mean, std, planes, across, out, IMAGES,
    SIZE: tl.constexpr, RADIUS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Make view ``v`` (the program's number) of image ``v % IMAGES``, in two or four passes over its pixels.

    The first pass does everything that comes before the contrast, writes the result to `planes`, and takes its mean.
    The second does the remaining colour steps. Only a view with a blur needs two more: one blurs along each row, into
    `across`, and one along each column. A barrier separates passes where one reads what the one before has written.
    """
    AREA: tl.constexpr = SIZE * SIZE
    view = tl.program_id(0).to(tl.int64)
    pixels += view % IMAGES * 3 * AREA
    planes += view * 3 * AREA
    across += view * 3 * AREA
    out += view * 3 * AREA
    crop += view * 4
    jitter += view * 4
    blends += view * 3
    flipped, is_gray, deviation = tl.load(flip + view), tl.load(gray + view), tl.load(sigma + view).to(tl.float32)
    hue_step = tl.load(hue_slot + view)
    contrast_slot = tl.where(tl.load(blends) == _CONTRAST, 0, tl.where(tl.load(blends + 1) == _CONTRAST, 1, 2))
    contrast_step = tl.where(contrast_slot < hue_step, contrast_slot, contrast_slot + 1)

    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, AREA, BLOCK):
        pixel = start + tl.arange(0, BLOCK)
        red, green, blue = _resized_crop(pixels, pixel, crop, flipped, SIZE)
        red, green, blue = _color_jitter(red, green, blue, jitter, blends, hue_step, contrast_step, True, 0.0)
        total += _luma(red, green, blue)  # adds 0 beyond the last pixel: no step before the contrast changes black
        _store(planes, pixel, red, green, blue, AREA)
    average = tl.sum(total, axis=0) / AREA

    tl.debug_barrier()
    for start in range(0, AREA, BLOCK):
        pixel = start + tl.arange(0, BLOCK)
        red, green, blue = _load(planes, pixel, pixel, AREA)
        red, green, blue = _color_jitter(red, green, blue, jitter, blends, hue_step, contrast_step, False, average)
        if deviation > 0:
            _store(planes, pixel, red, green, blue, AREA)
        else:
            red, green, blue = _finish(red, green, blue, is_gray, mean, std)
            _store(out, pixel, red, green, blue, AREA)

    if deviation > 0:
        tl.debug_barrier()
        for start in range(0, AREA, BLOCK):
            pixel = start + tl.arange(0, BLOCK)
            red, green, blue = _gaussian_blur(planes, pixel, pixel % SIZE, 1, deviation, SIZE, RADIUS)
            _store(across, pixel, red, green, blue, AREA)
        tl.debug_barrier()
        for start in range(0, AREA, BLOCK):
            pixel = start + tl.arange(0, BLOCK)
            red, green, blue = _gaussian_blur(across, pixel, pixel // SIZE, SIZE, deviation, SIZE, RADIUS)
            red, green, blue = _finish(red, green, blue, is_gray, mean, std)
            _store(out, pixel, red, green, blue, AREA)


@jit
def _load(planes, pixel, at, AREA: tl.constexpr):
    """Return red, green and blue of the pixels `at`, in float32; 0 where `pixel` is beyond the image's last."""
    inside = pixel < AREA
    red = tl.load(planes + at, mask=inside, other=0.0).to(tl.float32)
    green = tl.load(planes + AREA + at, mask=inside, other=0.0).to(tl.float32)
    blue = tl.load(planes + 2 * AREA + at, mask=inside, other=0.0).to(tl.float32)
    return red, green, blue


@jit
def _store(planes, pixel, red, green, blue, AREA: tl.constexpr):
    """Write red, green and blue of each `pixel` of the image into `planes`, in the type of `planes`."""
    inside = pixel < AREA
    tl.store(planes + pixel, red.to(planes.dtype.element_ty), mask=inside)
    tl.store(planes + AREA + pixel, green.to(planes.dtype.element_ty), mask=inside)
    tl.store(planes + 2 * AREA + pixel, blue.to(planes.dtype.element_ty), mask=inside)


@jit
def _resized_crop(pixels, pixel, crop, flipped, SIZE: tl.constexpr):
    """Return red, green and blue in [0, 1] of each `pixel` of the view, interpolated from the four bytes around it."""
    AREA: tl.constexpr = SIZE * SIZE
    row, column = pixel // SIZE, pixel % SIZE
    top, bottom, lower = _taps(row, tl.load(crop), tl.load(crop + 2), SIZE)
    left, right, later = _taps(tl.where(flipped, SIZE - 1 - column, column), tl.load(crop + 1), tl.load(crop + 3), SIZE)
    red_above, green_above, blue_above = _between(pixels + top * SIZE, pixel, left, right, later, AREA)
    red_below, green_below, blue_below = _between(pixels + bottom * SIZE, pixel, left, right, later, AREA)
    red = _clamp(red_above + lower * (red_below - red_above))
    green = _clamp(green_above + lower * (green_below - green_above))
    blue = _clamp(blue_above + lower * (blue_below - blue_above))
    return red, green, blue


@jit
def _taps(order, start, extent, SIZE: tl.constexpr):
    """Return, for one axis, the two image pixels that each view pixel lies between, and the weight of the second.

    `order` is the view pixel's index on that axis; `start` and `extent` are those of the crop.

    A crop consists of whole pixels, so a point inside it is a whole number of steps of ``1 / (2 SIZE)`` pixels from its
    start. Counting steps in integers makes the weight as exact in a large image as in a small one.
    """
    start, extent = start.to(tl.int32), extent.to(tl.int32)
    steps = tl.minimum(tl.maximum((2 * order + 1) * extent - SIZE, 0), 2 * SIZE * (extent - 1))
    first = start + steps // (2 * SIZE)
    second = tl.minimum(first + 1, SIZE - 1)  # beyond the image its weight is 0, but nothing there may be read
    return first, second, steps % (2 * SIZE) / (2.0 * SIZE)


@jit
def _between(row, pixel, left, right, later, AREA: tl.constexpr):
    """Return red, green and blue in [0, 1] of points in a `row` of bytes: ``(1 - later) * left + later * right``."""
    red_left, green_left, blue_left = _load(row, pixel, left, AREA)
    red_right, green_right, blue_right = _load(row, pixel, right, AREA)
    red = (red_left + later * (red_right - red_left)) / 255.0
    green = (green_left + later * (green_right - green_left)) / 255.0
    blue = (blue_left + later * (blue_right - blue_left)) / 255.0
    return red, green, blue


@jit
def _color_jitter(red, green, blue, jitter, blends, hue_step, contrast_step, EARLY: tl.constexpr, average):
    """Apply the colour steps that precede an image's contrast if `EARLY`, else the contrast and the steps after it.

    An image has four colour steps: its three blends in their order, and the hue shift at `hue_step`.
    """
    for step in range(4):
        if (step < contrast_step) == EARLY:
            slot = tl.where(step < hue_step, step, step - 1)
            operation = tl.load(blends + slot, mask=step != hue_step, other=_HUE)
            amount = tl.load(jitter + operation).to(tl.float32)
            if operation == _HUE:
                red, green, blue = _shift_hue(red, green, blue, amount)
            else:
                red, green, blue = _blend(red, green, blue, operation, amount, average)
    return red, green, blue


@jit
def _blend(red, green, blue, operation, factor, average):
    """Mix the image with black, its mean gray `average` or its grayscale: brightness, contrast or saturation."""
    gray = tl.where(operation == _SATURATION, _luma(red, green, blue), tl.where(operation == _CONTRAST, average, 0.0))
    rest = (1.0 - factor) * gray
    return _clamp(factor * red + rest), _clamp(factor * green + rest), _clamp(factor * blue + rest)


@jit
def _shift_hue(red, green, blue, shift):
    """Rotate the hue by `shift` turns, leaving value and chroma unchanged (Smith 1978)."""
    value = tl.maximum(tl.maximum(red, green), blue)
    chroma = value - tl.minimum(tl.minimum(red, green), blue)
    safe = tl.where(chroma > 0, chroma, 1.0)
    from_red = (green - blue) / safe
    from_green = 2.0 + (blue - red) / safe
    from_blue = 4.0 + (red - green) / safe
    sector = tl.where(value == red, from_red, tl.where(value == green, from_green, from_blue)) + 6.0 * shift
    red = value - chroma * _depth(sector + 3.0)
    green = value - chroma * _depth(sector + 1.0)
    blue = value - chroma * _depth(sector - 1.0)
    return red, green, blue


@jit
def _depth(from_dip):
    """Return how far a channel is below the pixel's value, as a share of the chroma in [0, 1].

    `from_dip` is the distance, in sectors of the hue circle (modulo 6), from where the channel is at its lowest.
    """
    from_dip = tl.abs(from_dip - 6.0 * tl.floor(from_dip / 6.0 + 0.5))
    return _clamp(2.0 - from_dip)


@jit
def _gaussian_blur(planes, pixel, position, STRIDE: tl.constexpr, sigma, SIZE: tl.constexpr, RADIUS: tl.constexpr):
    """Return `planes` blurred along one axis, with the border reflected.

    `position` is each pixel's index on that axis, and neighbours on it are `STRIDE` pixels apart in memory.
    """
    red = tl.zeros(pixel.shape, dtype=tl.float32)
    green = tl.zeros(pixel.shape, dtype=tl.float32)
    blue = tl.zeros(pixel.shape, dtype=tl.float32)
    total = 0.0
    for offset in range(-RADIUS, RADIUS + 1):
        source = tl.abs(position + offset)
        source = tl.where(source > SIZE - 1, 2 * (SIZE - 1) - source, source)
        r, g, b = _load(planes, pixel, pixel + (source - position) * STRIDE, SIZE * SIZE)
        weight = tl.exp(-0.5 * (offset / sigma) * (offset / sigma))
        red += weight * r
        green += weight * g
        blue += weight * b
        total += weight
    return red / total, green / total, blue / total


@jit
def _finish(red, green, blue, gray, mean, std):
    """Turn the view into grayscale if it is `gray`, and normalise it by `mean` and `std`."""
    shade = _luma(red, green, blue)
    red = (tl.where(gray, shade, red) - tl.load(mean)) / tl.load(std)
    green = (tl.where(gray, shade, green) - tl.load(mean + 1)) / tl.load(std + 1)
    blue = (tl.where(gray, shade, blue) - tl.load(mean + 2)) / tl.load(std + 2)
    return red, green, blue


@jit
def _luma(red, green, blue):
    """Return the luma of each pixel: its value in a gray image."""
    return red * _RED + green * _GREEN + blue * _BLUE


@jit
def _clamp(value):
    """Return the number in [0, 1] that is nearest to `value`."""
    return tl.minimum(tl.maximum(value, 0.0), 1.0)
