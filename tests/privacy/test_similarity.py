"""Scores of reconstructed images, against those of scikit-image, torchmetrics and a plain loop."""

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.functional.image import structural_similarity_index_measure

from simsfl.privacy import similarity
from tests.conftest import generator


def pair(count, size):
    """Return images ``[n, 3, size, size]`` in float64, and others that are like them."""
    images = torch.rand(count, 3, size, size, generator=generator(), dtype=torch.float64)
    noise = torch.randn(count, 3, size, size, generator=generator(1), dtype=torch.float64)
    return (images + 0.1 * noise).clamp(0, 1), images


def test_scores_are_scikit_images():
    """SSIM is compared where its window is inside the image, since the two mirror borders differently."""
    made, images = pair(4, 24)
    _, map_ = structural_similarity_index_measure(
        made, images, gaussian_kernel=True, sigma=1.5, data_range=1.0, reduction="none", return_full_image=True
    )
    torch.testing.assert_close(similarity.ssim(made, images, "mirror"), map_.mean(dim=(1, 2, 3)))
    for n in range(4):
        one, other = made[n].numpy(), images[n].numpy()
        options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
        _, theirs = structural_similarity(one, other, channel_axis=0, full=True, **options)
        np.testing.assert_allclose(map_[n, :, 5:-5, 5:-5], theirs[:, 5:-5, 5:-5], rtol=1e-9)
        assert similarity.psnr(made, images)[n] == pytest.approx(peak_signal_noise_ratio(other, one, data_range=1.0))
        assert similarity.mse(made, images)[n] == pytest.approx(((one - other) ** 2).mean())


@pytest.mark.parametrize("borders", ["zeros", "mirror"])
@pytest.mark.parametrize("size", [8, 13])
def test_ssim_is_that_of_each_window(borders, size):
    """A loop takes the weighted means, variances and covariance in each window of padded images, by the formula."""
    made, images = pair(1, size)
    mode = {"zeros": "constant", "mirror": "reflect"}[borders]
    one, other = (np.pad(array[0], ((0, 0), (5, 5), (5, 5)), mode=mode) for array in (made, images))
    row = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    weights = np.outer(row, row) / row.sum() ** 2
    values = []
    for channel, top, left in np.ndindex(3, size, size):
        x, y = (array[channel, top : top + 11, left : left + 11] for array in (one, other))
        mean_x, mean_y = (weights * x).sum(), (weights * y).sum()
        var_x, var_y = (weights * (x - mean_x) ** 2).sum(), (weights * (y - mean_y) ** 2).sum()
        covariance = (weights * (x - mean_x) * (y - mean_y)).sum()
        alike = (2 * mean_x * mean_y + 1e-4) * (2 * covariance + 9e-4)
        values.append(alike / ((mean_x**2 + mean_y**2 + 1e-4) * (var_x + var_y + 9e-4)))
    assert similarity.ssim(made, images, borders).item() == pytest.approx(np.mean(values), rel=1e-10)


def test_similarity_with_black_borders_is_the_published_one_and_the_higher_one():
    made, images = pair(3, 32)
    torch.testing.assert_close(similarity.ssim(images, images), torch.ones(3).double())
    torch.testing.assert_close(similarity.ssim(made, images), similarity.ssim(made, images, "zeros"))
    assert (similarity.ssim(made, images) > similarity.ssim(made, images, "mirror")).all()


@pytest.mark.parametrize("borders", ["zeros", "mirror"])
def test_ssim_has_the_gradients_of_finite_differences(borders):
    """Also those of its gradients, and also under vmap, which attackers of several clients need."""
    made, images = pair(1, 8)
    made.requires_grad_()

    def score(reconstructions):
        return similarity.ssim(reconstructions, images.expand_as(reconstructions), borders)

    assert torch.autograd.gradcheck(score, made, fast_mode=True)
    assert torch.autograd.gradgradcheck(score, made, fast_mode=True)
    several = pair(4, 8)[0]
    mapped = torch.func.vmap(score)(several.unflatten(0, (2, 2)))
    torch.testing.assert_close(mapped.flatten(), score(several))
