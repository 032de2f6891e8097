"""Random views of images on NumPy alone, in float32, one image at a time.

The results are those of `simsfl.kernels.augment`, which explains the operations; the same numbers are computed in the
same order, but operations that an image does not use are skipped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

_BLUR_RADIUS = 6
"""Pixels on either side that a blur reaches: three times the widest sigma, 2."""
_LUMA = np.array([0.2989, 0.587, 0.114], np.float32)
"""Weights of red, green and blue in a gray image (ITU-R 601)."""
_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = range(4)
"""Columns of the parameter `jitter`, and numbers of the operations in `blends`."""


def augment(
    pixels: np.ndarray, parameters: Mapping[str, np.ndarray], mean: Sequence[float], std: Sequence[float]
) -> np.ndarray:
    """Return normalised views of images, ``[V, B, 3, H, H]`` float32.

    Args:
        pixels: ``[B, 3, H, H]`` uint8.
        parameters: the fields of `simsfl.kernels.ViewParameters`, with leading dimensions ``[V, B]`` for V views of
            each image.
        mean: mean of each channel, of pixels in [0, 1].
        std: standard deviation of each channel, of pixels in [0, 1].
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
    """Return one view of ``pixels [3, H, H]`` uint8, as float32 in [0, 1] of the same shape, not normalised.

    Args:
        pixels: the image.
        crop: top, left, height and width of the part that is resized to the full size, in pixels.
        flip: whether to mirror it horizontally.
        jitter: factors of brightness, contrast and saturation, and the shift of the hue in turns.
        blends: order of brightness, contrast and saturation.
        hue_slot: how many of the blends come before the hue.
        gray: whether to make it gray.
        sigma: standard deviation of the blur in pixels; 0 for none.
    """
    x = _resized_crop(pixels.astype(np.float32) / 255, crop, flip)
    for operation in (*blends[:hue_slot], _HUE, *blends[hue_slot:]):
        x = _adjusted(x, operation, jitter[operation])
    if gray:
        x[:] = _luma(x)
    if sigma > 0:
        matrix = _blur_matrix(x.shape[-1], sigma)
        x = _separable(x, matrix, matrix)
    return x


def _separable(x: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Resample planes ``[3, H, H]`` by a matrix per axis: ``rows @ plane @ columns^T``."""
    return rows @ x @ columns.T


def _resized_crop(x: np.ndarray, crop: Sequence[float], flip: bool) -> np.ndarray:
    """Cut out `crop` (top, left, height, width), resize it bilinearly to the full size, and `flip` it."""
    size = x.shape[-1]
    position = np.arange(size, dtype=np.float32)

    def weights(start: float, extent: float) -> np.ndarray:
        point = start + (position + 0.5) * extent / size - 0.5
        point = point.clip(start, start + extent - 1)
        return (1 - np.abs(point[:, None] - position)).clip(0)

    top, left, height, width = crop
    columns = weights(left, width)
    return _separable(x, weights(top, height), columns[::-1] if flip else columns).clip(0, 1)


def _luma(x: np.ndarray) -> np.ndarray:
    """Return the gray image ``[H, H]`` of a colour image ``[3, H, H]``."""
    return (_LUMA @ x.reshape(3, -1)).reshape(x.shape[1:])


def _adjusted(x: np.ndarray, operation: int, amount: float) -> np.ndarray:
    """Return an image with brightness, contrast or saturation scaled by `amount`, or with its hue turned by it."""
    if operation == _HUE:
        return _shifted_hue(x, amount) if amount else x
    if amount == 1:
        return x
    if operation == _BRIGHTNESS:
        x = amount * x
    else:
        gray = _luma(x)
        x = amount * x + (1 - amount) * (gray.mean() if operation == _CONTRAST else gray)
    return x.clip(0, 1)


def _shifted_hue(x: np.ndarray, shift: float) -> np.ndarray:
    """Return an image with its hue turned by `shift` turns, value and chroma unchanged (Smith 1978)."""
    red, green, blue = x
    value = x.max(axis=0)
    chroma = value - x.min(axis=0)
    safe = np.where(chroma > 0, chroma, np.float32(1))
    sector = np.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe)
    sector = np.where(value == red, (green - blue) / safe, sector)
    from_dip = sector + 6 * shift + np.array([3, 1, -1], np.float32)[:, None, None]  # where a channel is lowest
    from_dip = np.abs(from_dip - 6 * np.rint(from_dip / 6))
    return value - chroma * (2 - from_dip).clip(0, 1)


def _blur_matrix(size: int, sigma: float) -> np.ndarray:
    """Return the Gaussian weights ``[H, H]`` of the pixels along an axis; the border reflects."""
    radius = min(_BLUR_RADIUS, size - 1)
    source = np.arange(-radius, size + radius, dtype=np.float32)
    offset = source - source[radius:-radius, None]
    weights = np.exp(-0.5 * (offset / sigma) ** 2) * (np.abs(offset) <= radius)
    weights /= weights.sum(axis=1, keepdims=True)
    matrix = weights[:, radius:-radius].copy()
    matrix[:, 1 : radius + 1] += weights[:, :radius][:, ::-1]
    matrix[:, -radius - 1 : -1] += weights[:, -radius:][:, ::-1]
    return matrix
