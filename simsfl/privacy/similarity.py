"""How close reconstructions are to the images: MSE, SSIM and PSNR, the last by torchmetrics."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_RADIUS, _SIGMA = 5, 1.5
"""Pixels that the window of SSIM reaches from its middle, and the standard deviation of its Gaussian in pixels."""
_LUMINANCE, _CONTRAST = 0.01**2, 0.03**2
"""Constants that keep the two quotients of SSIM finite, for pixels in [0, 1]."""


def mse(reconstructions: Tensor, images: Tensor) -> Tensor:
    """Return the mean squared error ``[n]`` of each of n reconstructions; both arguments are ``[n, 3, H, H]``.

    >>> import torch
    >>> black, gray = torch.zeros(2, 3, 8, 8), torch.full((2, 3, 8, 8), 0.5)
    >>> mse(gray, black)
    tensor([0.2500, 0.2500])
    """
    return F.mse_loss(reconstructions, images, reduction="none").flatten(1).mean(dim=1)


def ssim(reconstructions: Tensor, images: Tensor, borders: str = "zeros") -> Tensor:
    """Return the structural similarity ``[n]`` (Wang et al., IEEE TIP 2004, eq. 13) of n reconstructions, at most 1.

    The window is a Gaussian of 11x11 pixels with sigma 1.5. Similarity is averaged over all channels, and over all
    windows whose middle is a pixel of the image. On small images most of them reach over its border.

    The window is separable, so that the five means that SSIM consists of come from products with one matrix from
    either side, which has derivatives of any order.

    Args:
        reconstructions: ``[n, 3, H, H]`` in [0, 1].
        images: the originals, ``[n, 3, H, H]`` in [0, 1].
        borders: what is beyond the border: "zeros", as in the published program, or with "mirror" the image itself,
            mirrored at the middle of its outermost pixels. Black borders are alike in all images, so that "zeros" gives
            higher similarities.
    """
    size, like = images.shape[-1], reconstructions
    window = _window(size, borders, like.dtype, like.device)
    products = (reconstructions, images, reconstructions.square(), images.square(), reconstructions * images)
    one, other, one_square, other_square, both = window @ torch.stack(products) @ window.T
    ones, others, mixed = one.square(), other.square(), one * other
    luminance = (2 * mixed + _LUMINANCE) / (ones + others + _LUMINANCE)
    contrast = (2 * (both - mixed) + _CONTRAST) / (one_square - ones + other_square - others + _CONTRAST)
    return (luminance * contrast).flatten(1).mean(dim=1)


@cache
def _window(size: int, borders: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the matrix ``[H, H]`` that takes the weighted mean of `size` pixels in a row around each of them."""
    offsets = np.arange(-_RADIUS, _RADIUS + 1)
    weights = np.exp(-((offsets / _SIGMA) ** 2) / 2)
    middles = np.arange(size)[:, None]
    mirrored = (size - 1) - np.abs((size - 1) - np.abs(middles + offsets))
    matrix = np.zeros((size, size))
    counted = {"zeros": mirrored == middles + offsets, "mirror": 1.0}[borders]
    np.add.at(matrix, (np.broadcast_to(middles, mirrored.shape), mirrored), counted * weights / weights.sum())
    return torch.from_numpy(matrix).to(device, dtype)


def psnr(reconstructions: Tensor, images: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio ``[n]`` in dB of each of n reconstructions ``[n, 3, H, H]`` in [0, 1]."""
    from torchmetrics.functional.image import peak_signal_noise_ratio  # noqa: PLC0415  (takes a second)

    return peak_signal_noise_ratio(reconstructions, images, data_range=1.0, reduction="none", dim=(1, 2, 3))
