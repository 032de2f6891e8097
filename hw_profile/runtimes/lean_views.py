"""Random views of images on NumPy alone, in float32, one image at a time: what `kernels.augment` makes of the same.

The same numbers in the same order as there, which explains them; here what an image has no use for is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

BLUR_RADIUS = 6
"""Pixels to either side: three of the widest sigma (2)."""
LUMA = np.array([0.2989, 0.587, 0.114], np.float32)
"""Red, green and blue in a gray image (ITU-R 601)."""
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
"""Columns of the parameter `jitter`, and the operations in `blends`."""


def augment(
    pixels: np.ndarray, parameters: Mapping[str, np.ndarray], mean: Sequence[float], std: Sequence[float]
) -> np.ndarray:
    """Views of images, normalised.

    Args:
        pixels: ``[B, 3, H, H]`` uint8.
        parameters: the fields of `kernels.ViewParameters`, with leading dimensions ``[V, B]``: V views of each
            image.
        mean: of each channel of pixels in [0, 1]; as `std`.

    Returns:
        ``[V, B, 3, H, H]`` float32.
    """
    mean, std = (np.asarray(figures, np.float32).reshape(3, 1, 1) for figures in (mean, std))
    result = np.empty((len(parameters["flip"]), *pixels.shape), np.float32)
    for place in np.ndindex(result.shape[:2]):
        own = {name: values[place].tolist() for name, values in parameters.items()}
        np.divide(view(pixels[place[1]], **own) - mean, std, out=result[place])
    return result


def view(
    pixels: np.ndarray,
    crop: Sequence[float],
    flip: bool,
    jitter: Sequence[float],
    blends: Sequence[int],
    hue_slot: int,
    gray: bool,
    sigma: float,
) -> np.ndarray:
    """One view of one image ``[3, H, H]`` uint8: the same in [0, 1]."""
    x = resized_crop(pixels.astype(np.float32) / 255, crop, flip)
    for operation in (*blends[:hue_slot], HUE, *blends[hue_slot:]):
        x = adjusted(x, operation, jitter[operation])
    if gray:
        x[:] = luma(x)
    if sigma > 0:
        matrix = blur_matrix(x.shape[-1], sigma)
        x = separable(x, matrix, matrix)
    return x


def separable(x: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Resample planes ``[3, H, H]`` by a matrix per axis: ``rows @ plane @ columns^T``."""
    return rows @ x @ columns.T


def resized_crop(x: np.ndarray, crop: Sequence[float], flip: bool) -> np.ndarray:
    """Cut out `crop` (top, left, height, width), resize it to full size, bilinearly, and `flip` it."""
    size = x.shape[-1]
    position = np.arange(size, dtype=np.float32)

    def weights(start: float, extent: float) -> np.ndarray:
        point = start + (position + 0.5) * extent / size - 0.5
        point = point.clip(start, start + extent - 1)
        return (1 - np.abs(point[:, None] - position)).clip(0)

    top, left, height, width = crop
    columns = weights(left, width)
    return separable(x, weights(top, height), columns[::-1] if flip else columns).clip(0, 1)


def luma(x: np.ndarray) -> np.ndarray:
    """The gray image ``[H, H]`` of one in colour."""
    return (LUMA @ x.reshape(3, -1)).reshape(x.shape[1:])


def adjusted(x: np.ndarray, operation: int, amount: float) -> np.ndarray:
    """Brightness, contrast or saturation changed by a factor, or the hue turned."""
    if operation == HUE:
        return shifted_hue(x, amount) if amount else x
    if amount == 1:
        return x
    if operation == BRIGHTNESS:
        x = amount * x
    else:
        gray = luma(x)
        x = amount * x + (1 - amount) * (gray.mean() if operation == CONTRAST else gray)
    return x.clip(0, 1)


def shifted_hue(x: np.ndarray, shift: float) -> np.ndarray:
    """Turn the hue by `shift` turns, value and chroma unchanged (Smith 1978)."""
    red, green, blue = x
    value = x.max(axis=0)
    chroma = value - x.min(axis=0)
    safe = np.where(chroma > 0, chroma, np.float32(1))
    sector = np.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe)
    sector = np.where(value == red, (green - blue) / safe, sector)
    from_dip = sector + 6 * shift + np.array([3, 1, -1], np.float32)[:, None, None]  # where a channel is lowest
    from_dip = np.abs(from_dip - 6 * np.rint(from_dip / 6))
    return value - chroma * (2 - from_dip).clip(0, 1)


def blur_matrix(size: int, sigma: float) -> np.ndarray:
    """Gaussian weights ``[H, H]`` of the pixels around each along an axis; beyond the border they are reflected."""
    radius = min(BLUR_RADIUS, size - 1)
    source = np.arange(-radius, size + radius, dtype=np.float32)
    offset = source - source[radius:-radius, None]
    weights = np.exp(-0.5 * (offset / sigma) ** 2) * (np.abs(offset) <= radius)
    weights /= weights.sum(axis=1, keepdims=True)
    matrix = weights[:, radius:-radius].copy()
    matrix[:, 1 : radius + 1] += weights[:, :radius][:, ::-1]
    matrix[:, -radius - 1 : -1] += weights[:, -radius:][:, ::-1]
    return matrix
