"""How close reconstructions are to the images: MSE, SSIM and PSNR, the latter two by torchmetrics."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def mse(reconstructions: Tensor, images: Tensor) -> Tensor:
    """Return the mean squared error ``[n]`` of each of n reconstructions; both arguments are ``[n, 3, H, H]``.

    >>> import torch
    >>> black, gray = torch.zeros(2, 3, 8, 8), torch.full((2, 3, 8, 8), 0.5)
    >>> mse(gray, black)
    tensor([0.2500, 0.2500])
    """
    return F.mse_loss(reconstructions, images, reduction="none").flatten(1).mean(dim=1)


def ssim(reconstructions: Tensor, images: Tensor) -> Tensor:
    """Return the structural similarity ``[n]`` (Wang et al., 2004) of each of n reconstructions, at most 1.

    The window is a Gaussian of 11x11 pixels with sigma 1.5. Similarity is averaged over the whole image, which is
    mirrored at its borders, where the published program pads with zeros.

    Args:
        reconstructions: ``[n, 3, H, H]`` in [0, 1].
        images: the originals, ``[n, 3, H, H]`` in [0, 1].
    """
    from torchmetrics.functional.image import structural_similarity_index_measure  # noqa: PLC0415  (takes a second)

    return structural_similarity_index_measure(
        reconstructions, images, gaussian_kernel=True, sigma=1.5, kernel_size=11, data_range=1.0, reduction="none"
    )


def psnr(reconstructions: Tensor, images: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio ``[n]`` in dB of each of n reconstructions ``[n, 3, H, H]`` in [0, 1]."""
    from torchmetrics.functional.image import peak_signal_noise_ratio  # noqa: PLC0415

    return peak_signal_noise_ratio(reconstructions, images, data_range=1.0, reduction="none", dim=(1, 2, 3))
