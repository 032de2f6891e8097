"""Random views of images in one Triton kernel: one program makes one view, computed in float32 throughout.

The functions are those of `kernels.augment`, on one block of an image's pixels. A block's red, green and blue stay in
registers, but are laid down in memory where a pixel needs others: for the mean of the contrast, and for the blur.
"""

import torch
from torch import Tensor

from simsfl.kernels import gpu, view_parameters
from simsfl.kernels.gpu import jit, tl
from simsfl.kernels.view_parameters import BLUR_RADIUS, LUMA, ViewParameters

PIXELS = 1024
"""Pixels that a program has in registers at once, at most: an image of 32x32."""
PIXELS_PER_WARP = 64
"""Two for each thread: with more, those of an image of odd size no longer all fit in registers."""

CONTRAST = tl.constexpr(view_parameters.CONTRAST)
SATURATION = tl.constexpr(view_parameters.SATURATION)
HUE = tl.constexpr(view_parameters.HUE)
RED, GREEN, BLUE = (tl.constexpr(weight) for weight in LUMA)


def triton_augment(pixels: Tensor, views: ViewParameters, mean: Tensor, std: Tensor, out: Tensor) -> None:
    """Write the views into `out` ``[V, C, B, 3, H, H]``; the arguments are those of `kernels.augment.augment`.

    Besides `out` it needs room for two float32 images a view.
    """
    size, count = out.shape[-1], views.flip.numel()
    assert out.is_contiguous()
    block = min(gpu.next_power_of_2(size * size), PIXELS)
    views = views.map(Tensor.contiguous)
    planes, across = (torch.empty(count, 3, size, size, device=out.device) for _ in range(2))
    augment_kernel[(count,)](
        pixels.contiguous(), views.crop, views.flip, views.jitter, views.blends, views.hue_slot, views.gray,
        views.sigma, mean.contiguous(), std.contiguous(), planes, across, out, pixels.shape[:2].numel(),
        SIZE=size, RADIUS=min(BLUR_RADIUS, size - 1), BLOCK=block, num_warps=max(1, block // PIXELS_PER_WARP),
    )  # fmt: skip


@jit
def augment_kernel(
    pixels, crop, flip, jitter, blends, hue_slot, gray, sigma, mean, std, planes, across, out, IMAGES,
    SIZE: tl.constexpr, RADIUS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """View ``v`` of image ``v % IMAGES``, in passes over its pixels; a barrier comes where one reads another's.

    The first pass makes `planes` of all that comes before the contrast, and takes their mean; the second does the rest
    of the colours. Only where there is a blur, two more blur `across` each row, then down each column.
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
    contrast_slot = tl.where(tl.load(blends) == CONTRAST, 0, tl.where(tl.load(blends + 1) == CONTRAST, 1, 2))
    contrast_step = tl.where(contrast_slot < hue_step, contrast_slot, contrast_slot + 1)

    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, AREA, BLOCK):
        pixel = start + tl.arange(0, BLOCK)
        red, green, blue = resized_crop(pixels, pixel, crop, flipped, SIZE)
        red, green, blue = color_jitter(red, green, blue, jitter, blends, hue_step, contrast_step, True, 0.0)
        total += luma(red, green, blue)  # black beyond the last pixel: what comes before the contrast keeps it
        store(planes, pixel, red, green, blue, AREA)
    average = tl.sum(total, axis=0) / AREA

    tl.debug_barrier()
    for start in range(0, AREA, BLOCK):
        pixel = start + tl.arange(0, BLOCK)
        red, green, blue = load(planes, pixel, pixel, AREA)
        red, green, blue = color_jitter(red, green, blue, jitter, blends, hue_step, contrast_step, False, average)
        if deviation > 0:
            store(planes, pixel, red, green, blue, AREA)
        else:
            red, green, blue = finish(red, green, blue, is_gray, mean, std)
            store(out, pixel, red, green, blue, AREA)

    if deviation > 0:
        tl.debug_barrier()
        for start in range(0, AREA, BLOCK):
            pixel = start + tl.arange(0, BLOCK)
            red, green, blue = gaussian_blur(planes, pixel, pixel % SIZE, 1, deviation, SIZE, RADIUS)
            store(across, pixel, red, green, blue, AREA)
        tl.debug_barrier()
        for start in range(0, AREA, BLOCK):
            pixel = start + tl.arange(0, BLOCK)
            red, green, blue = gaussian_blur(across, pixel, pixel // SIZE, SIZE, deviation, SIZE, RADIUS)
            red, green, blue = finish(red, green, blue, is_gray, mean, std)
            store(out, pixel, red, green, blue, AREA)


@jit
def load(planes, pixel, at, AREA: tl.constexpr):
    """Red, green and blue of the pixels `at`, in float32; 0 where `pixel` is beyond the image's last."""
    inside = pixel < AREA
    red = tl.load(planes + at, mask=inside, other=0.0).to(tl.float32)
    green = tl.load(planes + AREA + at, mask=inside, other=0.0).to(tl.float32)
    blue = tl.load(planes + 2 * AREA + at, mask=inside, other=0.0).to(tl.float32)
    return red, green, blue


@jit
def store(planes, pixel, red, green, blue, AREA: tl.constexpr):
    """Write red, green and blue of each `pixel` of the image, in the type of `planes`."""
    inside = pixel < AREA
    tl.store(planes + pixel, red.to(planes.dtype.element_ty), mask=inside)
    tl.store(planes + AREA + pixel, green.to(planes.dtype.element_ty), mask=inside)
    tl.store(planes + 2 * AREA + pixel, blue.to(planes.dtype.element_ty), mask=inside)


@jit
def resized_crop(pixels, pixel, crop, flipped, SIZE: tl.constexpr):
    """Red, green and blue in [0, 1] of each `pixel` of the view: the mixture of the four bytes around its point."""
    AREA: tl.constexpr = SIZE * SIZE
    row, column = pixel // SIZE, pixel % SIZE
    top, bottom, lower = taps(row, tl.load(crop), tl.load(crop + 2), SIZE)
    left, right, later = taps(tl.where(flipped, SIZE - 1 - column, column), tl.load(crop + 1), tl.load(crop + 3), SIZE)
    red_above, green_above, blue_above = between(pixels + top * SIZE, pixel, left, right, later, AREA)
    red_below, green_below, blue_below = between(pixels + bottom * SIZE, pixel, left, right, later, AREA)
    red = clamp(red_above + lower * (red_below - red_above))
    green = clamp(green_above + lower * (green_below - green_above))
    blue = clamp(blue_above + lower * (blue_below - blue_above))
    return red, green, blue


@jit
def taps(order, start, extent, SIZE: tl.constexpr):
    """The two pixels of one axis that the view's pixels in `order` are read between, and the share of the second.

    A crop is of whole pixels, so that a point, moved into the crop, is a whole number of steps of ``1 / (2 SIZE)`` from
    its start: the share is as exact in a large image as in a small one.
    """
    start, extent = start.to(tl.int32), extent.to(tl.int32)
    steps = tl.minimum(tl.maximum((2 * order + 1) * extent - SIZE, 0), 2 * SIZE * (extent - 1))
    first = start + steps // (2 * SIZE)
    second = tl.minimum(first + 1, SIZE - 1)  # beyond the image its share is 0, but nothing there may be read
    return first, second, steps % (2 * SIZE) / (2.0 * SIZE)


@jit
def between(row, pixel, left, right, later, AREA: tl.constexpr):
    """Red, green and blue in [0, 1] of points in a `row` of bytes: the share `later` of `right`, the rest of `left`."""
    red_left, green_left, blue_left = load(row, pixel, left, AREA)
    red_right, green_right, blue_right = load(row, pixel, right, AREA)
    red = (red_left + later * (red_right - red_left)) / 255.0
    green = (green_left + later * (green_right - green_left)) / 255.0
    blue = (blue_left + later * (blue_right - blue_left)) / 255.0
    return red, green, blue


@jit
def color_jitter(red, green, blue, jitter, blends, hue_step, contrast_step, EARLY: tl.constexpr, average):
    """Do those of an image's four colour steps that precede its contrast if `EARLY`, else the contrast and the rest.

    The steps are its three blends in their order, and the hue at `hue_step`.
    """
    for step in range(4):
        if (step < contrast_step) == EARLY:
            slot = tl.where(step < hue_step, step, step - 1)
            operation = tl.load(blends + slot, mask=step != hue_step, other=HUE)
            amount = tl.load(jitter + operation).to(tl.float32)
            if operation == HUE:
                red, green, blue = shift_hue(red, green, blue, amount)
            else:
                red, green, blue = blend(red, green, blue, operation, amount, average)
    return red, green, blue


@jit
def blend(red, green, blue, operation, factor, average):
    """Mix the image with black, its mean gray `average` or its grayscale: brightness, contrast, saturation."""
    gray = tl.where(operation == SATURATION, luma(red, green, blue), tl.where(operation == CONTRAST, average, 0.0))
    rest = (1.0 - factor) * gray
    return clamp(factor * red + rest), clamp(factor * green + rest), clamp(factor * blue + rest)


@jit
def shift_hue(red, green, blue, shift):
    """Turn the hue by `shift` turns, value and chroma unchanged (Smith 1978)."""
    value = tl.maximum(tl.maximum(red, green), blue)
    chroma = value - tl.minimum(tl.minimum(red, green), blue)
    safe = tl.where(chroma > 0, chroma, 1.0)
    from_red = (green - blue) / safe
    from_green = 2.0 + (blue - red) / safe
    from_blue = 4.0 + (red - green) / safe
    sector = tl.where(value == red, from_red, tl.where(value == green, from_green, from_blue)) + 6.0 * shift
    red = value - chroma * depth(sector + 3.0)
    green = value - chroma * depth(sector + 1.0)
    blue = value - chroma * depth(sector - 1.0)
    return red, green, blue


@jit
def depth(from_dip):
    """How far a channel is from the value towards the lowest, `from_dip` sectors (modulo 6) from where it is lowest."""
    from_dip = tl.abs(from_dip - 6.0 * tl.floor(from_dip / 6.0 + 0.5))
    return clamp(2.0 - from_dip)


@jit
def gaussian_blur(planes, pixel, position, STRIDE: tl.constexpr, sigma, SIZE: tl.constexpr, RADIUS: tl.constexpr):
    """Blur along the axis that a pixel has its `position` on, neighbours `STRIDE` apart; the border is reflected."""
    red = tl.zeros(pixel.shape, dtype=tl.float32)
    green = tl.zeros(pixel.shape, dtype=tl.float32)
    blue = tl.zeros(pixel.shape, dtype=tl.float32)
    total = 0.0
    for offset in range(-RADIUS, RADIUS + 1):
        source = tl.abs(position + offset)
        source = tl.where(source > SIZE - 1, 2 * (SIZE - 1) - source, source)
        r, g, b = load(planes, pixel, pixel + (source - position) * STRIDE, SIZE * SIZE)
        weight = tl.exp(-0.5 * (offset / sigma) * (offset / sigma))
        red += weight * r
        green += weight * g
        blue += weight * b
        total += weight
    return red / total, green / total, blue / total


@jit
def finish(red, green, blue, gray, mean, std):
    """Take the colour out if the view is `gray`, and normalise."""
    shade = luma(red, green, blue)
    red = (tl.where(gray, shade, red) - tl.load(mean)) / tl.load(std)
    green = (tl.where(gray, shade, green) - tl.load(mean + 1)) / tl.load(std + 1)
    blue = (tl.where(gray, shade, blue) - tl.load(mean + 2)) / tl.load(std + 2)
    return red, green, blue


@jit
def luma(red, green, blue):
    """Brightness of a pixel, as its gray is."""
    return red * RED + green * GREEN + blue * BLUE


@jit
def clamp(value):
    """Nearest to `value` in [0, 1]."""
    return tl.minimum(tl.maximum(value, 0.0), 1.0)
