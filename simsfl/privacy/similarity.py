"""How close a reconstruction is to the image: MSE, SSIM and PSNR, by torchmetrics (which takes a second to import)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def mse(reconstructions: Tensor, images: Tensor) -> Tensor:
    """``[n]`` mean squared error of each ``[n, 3, H, H]`` in [0, 1]."""
    return F.mse_loss(reconstructions, images, reduction="none").flatten(1).mean(dim=1)


def ssim(reconstructions: Tensor, images: Tensor) -> Tensor:
    """``[n]`` structural similarity (Wang et al., 2004) of each: a Gaussian window of 11x11 pixels, sigma 1.5.

    Averaged over the whole image, mirrored at its borders, where the published program pads with zeros.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure  # noqa: PLC0415

    return structural_similarity_index_measure(
        reconstructions, images, gaussian_kernel=True, sigma=1.5, kernel_size=11, data_range=1.0, reduction="none"
    )


def psnr(reconstructions: Tensor, images: Tensor) -> Tensor:
    """``[n]`` peak signal-to-noise ratio of each, in dB."""
    from torchmetrics.functional.image import peak_signal_noise_ratio  # noqa: PLC0415

    return peak_signal_noise_ratio(reconstructions, images, data_range=1.0, reduction="none", dim=(1, 2, 3))
