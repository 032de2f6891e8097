"""Scores of reconstructed images, against those of scikit-image."""

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.functional.image import structural_similarity_index_measure

from simsfl.privacy import similarity
from tests.conftest import generator


def test_scores_are_scikit_images():
    """SSIM is compared where its window is inside the image, since the two pad borders differently."""
    images = torch.rand(4, 3, 24, 24, generator=generator(), dtype=torch.float64)
    made = (images + 0.1 * torch.randn(4, 3, 24, 24, generator=generator(1), dtype=torch.float64)).clamp(0, 1)
    _, ours = structural_similarity_index_measure(
        made, images, gaussian_kernel=True, sigma=1.5, data_range=1.0, reduction="none", return_full_image=True
    )
    torch.testing.assert_close(similarity.ssim(made, images), ours.mean(dim=(1, 2, 3)))
    for n in range(4):
        one, other = made[n].numpy(), images[n].numpy()
        options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
        _, theirs = structural_similarity(one, other, channel_axis=0, full=True, **options)
        np.testing.assert_allclose(ours[n, :, 5:-5, 5:-5], theirs[:, 5:-5, 5:-5], rtol=1e-9)
        assert similarity.psnr(made, images)[n] == pytest.approx(peak_signal_noise_ratio(other, one, data_range=1.0))
        assert similarity.mse(made, images)[n] == pytest.approx(((one - other) ** 2).mean())
