"""Views, image by image, against torchvision's functional transforms given the same parameters."""

import sys

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import RandomResizedCrop
from torchvision.transforms.v2 import functional as TF

from simsfl import views as draws
from simsfl.config import RECIPES
from simsfl.kernels import augment

kernel = sys.modules[augment.__module__]

TOLERANCE = 2e-6
"""Of pixels in [0, 1], float32: a few roundings. The hue goes through a division by the chroma."""
HUE_TOLERANCE = 2e-5
COUNT = 48


@pytest.fixture(scope="module", params=[32, 9], ids=["32px", "9px"])
def images(request):
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.integers(0, 256, (COUNT, 3, request.param, request.param), dtype=np.uint8))
    x[0], x[1] = 0, 255  # black, white: chroma 0
    x[2, 1] = x[2, 2] = x[2, 0]  # gray
    return x.float() / 255


def views(size, recipe="v2", count=COUNT, **options):
    return draws.sample(np.random.default_rng(1).random((count, draws.UNIFORMS)), recipe, size, **options)


def each(images, function):
    return torch.stack([function(image, i) for i, image in enumerate(images)])


def test_resized_crop(images):
    size = images.shape[-1]
    view = views(size)

    def one(x, i):
        x = TF.resized_crop(x, *view.crop[i].int().tolist(), [size, size], InterpolationMode.BILINEAR, antialias=True)
        return TF.horizontal_flip(x) if view.flip[i] else x

    ours = kernel.resized_crop(images, view.crop, view.flip)
    torch.testing.assert_close(ours, each(images, one), rtol=0, atol=TOLERANCE)


def test_color_jitter_in_every_order(images):
    view = views(images.shape[-1])
    adjust = [TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation]

    def one(x, i):
        operations = view.blends[i].tolist()
        operations.insert(int(view.hue_slot[i]), kernel.HUE)
        for operation in operations:
            amount = float(view.jitter[i, operation])
            x = TF.adjust_hue(x, amount) if operation == kernel.HUE else adjust[operation](x, amount)
        return x

    ours = kernel.color_jitter(images, view.jitter, view.blends, view.hue_slot)
    torch.testing.assert_close(ours, each(images, one), rtol=0, atol=HUE_TOLERANCE)


@pytest.mark.parametrize("operation", ["brightness", "contrast", "saturation"])
def test_blend(images, operation):
    column = ["brightness", "contrast", "saturation"].index(operation)
    factor = torch.linspace(0.6, 1.4, COUNT)
    expected = each(images, lambda x, i: getattr(TF, f"adjust_{operation}")(x, float(factor[i])))
    ours = kernel.blend(images, torch.full((COUNT,), column), factor)
    torch.testing.assert_close(ours, expected, rtol=0, atol=TOLERANCE)


def test_hue(images):
    shift = torch.linspace(-0.5, 0.5, COUNT)
    expected = each(images, lambda x, i: TF.adjust_hue(x, float(shift[i])))
    torch.testing.assert_close(kernel.shift_hue(images, shift), expected, rtol=0, atol=HUE_TOLERANCE)


def test_finish(images):
    gray = torch.arange(COUNT) % 2 == 0
    mean, std = [0.49, 0.48, 0.45], [0.2, 0.19, 0.21]
    expected = each(images, lambda x, i: TF.normalize(TF.rgb_to_grayscale(x, 3) if gray[i] else x, mean, std))
    ours = kernel.finish(images, gray, torch.tensor(mean), torch.tensor(std))
    torch.testing.assert_close(ours, expected, rtol=0, atol=10 * TOLERANCE)


def test_gaussian_blur(images):
    sigma = torch.linspace(0.1, 2.0, COUNT)
    width = 2 * min(kernel.BLUR_RADIUS, images.shape[-1] - 1) + 1
    expected = each(images, lambda x, i: TF.gaussian_blur(x, [width, width], [float(sigma[i])] * 2))
    torch.testing.assert_close(kernel.gaussian_blur(images, sigma), expected, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(kernel.gaussian_blur(images, 0 * sigma), images, rtol=0, atol=0)


@pytest.mark.parametrize("recipe", RECIPES)
def test_whole_view_in_the_order_of_the_recipe(images, recipe, monkeypatch):
    monkeypatch.setattr(kernel, "BLOCK_BYTES", 1 << 17)
    size = images.shape[-1]
    pixels = (images * 255).to(torch.uint8)
    view = views(size, recipe, 2 * COUNT).map(lambda t: t.view(2, COUNT // 4, 4, *t.shape[1:]))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ([0.49, 0.48, 0.45], [0.2, 0.19, 0.21]))
    indices = torch.from_numpy(np.random.default_rng(2).permutation(COUNT)).view(COUNT // 4, 4)
    ours = augment(pixels[indices], view, mean, std)
    assert ours.shape == (2, COUNT // 4, 4, 3, size, size)
    width = 2 * min(kernel.BLUR_RADIUS, size - 1) + 1
    adjust = [TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue]
    for at in np.ndindex(2, COUNT // 4, 4):
        v = view.map(lambda t, at=at: t[at])
        x = pixels[indices[at[1:]]].float() / 255
        x = TF.resized_crop(x, *v.crop.int().tolist(), [size, size], antialias=True)
        if recipe == "v1" and v.flip:
            x = TF.horizontal_flip(x)
        operations = v.blends.tolist()
        operations.insert(int(v.hue_slot), kernel.HUE)
        for operation in operations:
            x = adjust[operation](x, float(v.jitter[operation]))
        if v.gray:
            x = TF.rgb_to_grayscale(x, num_output_channels=3)
        if v.sigma > 0:
            assert recipe == "v2"
            x = TF.gaussian_blur(x, [width, width], [float(v.sigma)] * 2)
        if recipe == "v2" and v.flip:
            x = TF.horizontal_flip(x)
        expected = TF.normalize(x, [0.49, 0.48, 0.45], [0.2, 0.19, 0.21])
        torch.testing.assert_close(ours[at], expected, rtol=0, atol=1e-3 if size == 9 else 5e-4)


def test_distribution_of_the_parameters():
    """Frequencies and ranges as stated, and crops like torchvision's RandomResizedCrop."""
    n, size = 40_000, 32
    view = views(size, count=n)
    top, left, height, width = view.crop.unbind(1)
    assert ((top >= 0) & (left >= 0) & (height >= 1) & (width >= 1)).all()
    assert ((top + height <= size) & (left + width <= size)).all()
    rates = {"flip": view.flip, "gray": view.gray, "blur": view.sigma > 0, "jitter": view.jitter[:, 0] != 1}
    expected = {"flip": 0.5, "gray": 0.2, "blur": 0.5, "jitter": 0.8}
    for name, rate in rates.items():
        assert abs(rate.float().mean() - expected[name]) < 0.01, name
    assert view.sigma[view.sigma > 0].min() >= 0.1
    assert view.sigma.max() <= 2.0
    assert view.jitter[:, 3].abs().max() <= 0.1
    orders = torch.cat([view.blends, view.hue_slot[:, None]], dim=1).unique(dim=0)
    assert len(orders) == 24

    torch.manual_seed(0)
    crop = RandomResizedCrop(size)
    theirs = [crop.make_params([torch.empty(3, size, size)]) for _ in range(8_000)]
    for name, ours in zip(("top", "left", "height", "width"), (top, left, height, width), strict=True):
        reference = torch.tensor([float(p[name]) for p in theirs])
        assert abs(ours.mean() - reference.mean()) < 0.25, name
        assert abs(ours.std() - reference.std()) < 0.25, name


def test_no_blur_in_v1_and_crop_scale_is_kept():
    view = views(32, "v1", count=2_000, crop_scale=0.5)
    assert (view.sigma == 0).all()
    area = view.crop[:, 2] * view.crop[:, 3]
    assert area.min() >= 0.45 * 32 * 32
