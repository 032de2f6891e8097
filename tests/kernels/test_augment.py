"""Views against torchvision's functional transforms with the same parameters, image by image.

Views by Triton are compared with those of the PyTorch version in float64, which the other tests show to be right.
"""

import itertools
import sys
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import ColorJitter, RandomResizedCrop
from torchvision.transforms.v2 import functional as TF

from simsfl.config import RECIPES
from simsfl.data import views as draws
from simsfl.kernels import ViewParameters, accelerated, augment, augment_triton
from tests.kernels.agreement import DEVICE, TRITON

kernel = sys.modules[augment.__module__]

TOLERANCE = 2e-6
"""Absolute tolerance for pixels in [0, 1] in float32: a few roundings."""
HUE_TOLERANCE = 2e-5
"""Absolute tolerance for a shift of the hue, which divides by the chroma."""
NORMALISED_TOLERANCE = 1e-5
"""Absolute tolerance for views in float32 that are normalised, by a standard deviation of about a fifth."""
COUNT = 48
"""Number of images in tests of a single transform."""


@pytest.fixture(scope="module", params=[32, 9], ids=["32px", "9px"])
def images(request):
    """Return random images in [0, 1], among them a black, a white and a gray one."""
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.integers(0, 256, (COUNT, 3, request.param, request.param), dtype=np.uint8))
    x[0], x[1] = 0, 255  # black, white: chroma 0
    x[2, 1] = x[2, 2] = x[2, 0]  # gray
    return x.float() / 255


def views(size, recipe="v2", count=COUNT, **options):
    """Return random parameters of views by a recipe."""
    return draws.Recipe(recipe, size, **options).sample(np.random.default_rng(1).random((count, draws.UNIFORMS)))


def each(images, function):
    """Return the results of a function that takes an image and its number, stacked."""
    return torch.stack([function(image, i) for i, image in enumerate(images)])


def test_resized_crop(images):
    size = images.shape[-1]
    view = views(size)

    def one(x, i):
        x = TF.resized_crop(x, *view.crop[i].int().tolist(), [size, size], InterpolationMode.BILINEAR, antialias=True)
        return TF.horizontal_flip(x) if view.flip[i] else x

    ours = kernel._resized_crop(images, view.crop, view.flip)
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

    ours = kernel._color_jitter(images, view.jitter, view.blends, view.hue_slot)
    torch.testing.assert_close(ours, each(images, one), rtol=0, atol=HUE_TOLERANCE)


@pytest.mark.parametrize("operation", ["brightness", "contrast", "saturation"])
def test_blend(images, operation):
    column = ["brightness", "contrast", "saturation"].index(operation)
    factor = torch.linspace(0.6, 1.4, COUNT)
    expected = each(images, lambda x, i: getattr(TF, f"adjust_{operation}")(x, float(factor[i])))
    ours = kernel._blend(images, torch.full((COUNT,), column), factor)
    torch.testing.assert_close(ours, expected, rtol=0, atol=TOLERANCE)


def test_hue(images):
    shift = torch.linspace(-0.5, 0.5, COUNT)
    expected = each(images, lambda x, i: TF.adjust_hue(x, float(shift[i])))
    torch.testing.assert_close(kernel._shift_hue(images, shift), expected, rtol=0, atol=HUE_TOLERANCE)


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
    torch.testing.assert_close(kernel._gaussian_blur(images, sigma), expected, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(kernel._gaussian_blur(images, 0 * sigma), images, rtol=0, atol=0)


@pytest.mark.parametrize("recipe", RECIPES)
def test_whole_view_in_the_order_of_the_recipe(images, recipe, monkeypatch):
    monkeypatch.setattr(kernel, "_BLOCK_BYTES", 1 << 17)
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
    """Frequencies and ranges are as documented, and crops are like those of torchvision's RandomResizedCrop."""
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


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0, 2.5])
def test_the_strength_of_colours_is_that_of_torchvision_with_multiplied_arguments(strength):
    jitter = views(32, count=5_000, color_strength=strength).jitter
    changed = ColorJitter(*[strength * most for most in (0.4, 0.4, 0.4, 0.1)])
    for column, name in enumerate(("brightness", "contrast", "saturation", "hue")):
        low, high = getattr(changed, name) or (float(name != "hue"),) * 2
        found = jitter[:, column]
        assert found.min().item() == pytest.approx(low, abs=0.001 * (1 + strength))
        assert found.max().item() == pytest.approx(high, abs=0.001 * (1 + strength))
    assert ((jitter == torch.tensor([1.0, 1.0, 1.0, 0.0])).all(dim=1).float().mean() > 0.9) == (strength == 0)


def bytes_of_images(seed, clients, batch, size):
    """Return random images ``[C, B, 3, H, H]``; every second has four levels only, so that channels are often equal."""
    pixels = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (clients, batch, 3, size, size), np.uint8))
    pixels.flatten(0, 1)[::2].floor_divide_(64).mul_(85)
    return pixels


def any_views(seed, shape, size):
    """Return parameters of views with any crop, order and strength, far beyond those of the recipes."""
    rng = np.random.default_rng(seed)
    extent = rng.integers(1, size + 1, (*shape, 2))
    start = rng.integers(0, size - extent + 1)
    jitter = np.concatenate([rng.uniform(0, 2.5, (*shape, 3)), rng.uniform(-1, 1, (*shape, 1))], axis=-1)
    return ViewParameters(
        crop=torch.from_numpy(np.concatenate([start, extent], axis=-1)).float(),
        flip=torch.from_numpy(rng.random(shape) < 0.5),
        jitter=torch.from_numpy(jitter).float(),
        blends=torch.from_numpy(rng.random((*shape, 3)).argsort(axis=-1)),
        hue_slot=torch.from_numpy(rng.integers(0, 4, shape)),
        gray=torch.from_numpy(rng.random(shape) < 0.3),
        sigma=torch.from_numpy(np.where(rng.random(shape) < 0.3, 0.0, rng.uniform(0.1, 2, shape))).float(),
    )


def assert_triton_agrees(version, pixels, view, dtype=torch.float32, rtol=0.0):
    """Compare views by Triton in `dtype` with those by PyTorch in float64, and check that Triton made them."""
    pixels, view = pixels.to(DEVICE), view.map(lambda t: t.to(DEVICE))
    mean, std = (
        torch.tensor(values, device=DEVICE).view(3, 1, 1) for values in ([0.49, 0.48, 0.45], [0.2, 0.19, 0.21])
    )
    expected = augment(pixels, view, mean, std, torch.float64)
    with accelerated(version), mock.patch.object(kernel, "triton_augment", wraps=kernel.triton_augment) as made:
        ours = augment(pixels, view, mean, std, dtype)
    made.assert_called_once()
    assert ours.dtype == dtype
    torch.testing.assert_close(ours.double(), expected, rtol=rtol, atol=NORMALISED_TOLERANCE)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("size", [8, 32, 33])
@pytest.mark.parametrize("version", [TRITON])
def test_views_of_a_recipe(version, size, recipe):
    uniforms = np.random.default_rng(size).random((2, 5, 2, draws.UNIFORMS))
    assert_triton_agrees(version, bytes_of_images(0, 5, 2, size), draws.Recipe(recipe, size).sample(uniforms))


@pytest.mark.parametrize("version", [TRITON])
def test_every_order_of_strong_colours(version):
    orders = list(itertools.product(itertools.permutations(range(3)), range(4)))
    view = any_views(3, (1, len(orders), 2), 8)
    for place, (blends, hue_slot) in enumerate(orders):
        view.blends[:, place] = torch.tensor(blends)
        view.hue_slot[:, place] = hue_slot
    assert_triton_agrees(version, bytes_of_images(1, len(orders), 2, 8), view)


@pytest.mark.parametrize("version", [TRITON])
def test_image_of_many_blocks(version, monkeypatch):
    """A pixel's neighbours and the summands of a mean are in other blocks; all combinations of options are tried."""
    monkeypatch.setattr(augment_triton, "PIXELS", 512)
    options = list(itertools.product([False, True], [False, True], [0.0, 0.1, 2.0]))
    size, view = 40, any_views(4, (1, len(options), 1), 40)
    for place, (flip, gray, sigma) in enumerate(options):
        view.flip[:, place], view.gray[:, place], view.sigma[:, place] = flip, gray, sigma
    assert_triton_agrees(version, bytes_of_images(2, len(options), 1, size), view)


@pytest.mark.parametrize("version", [TRITON])
@settings(deadline=None, max_examples=15, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(*[st.integers(1, 2)] * 3),
    size=st.sampled_from([1, 7, 13]),  # few, as a kernel is compiled for each
)
def test_whatever_is_drawn(version, seed, shape, size):
    with mock.patch.object(augment_triton, "PIXELS", 128):
        assert_triton_agrees(version, bytes_of_images(seed, *shape[1:], size), any_views(seed, shape, size))


@pytest.mark.parametrize("version", [TRITON])
def test_gray_black_and_white_images(version):
    pixels = bytes_of_images(5, 2, 3, 9)
    pixels[:, 0], pixels[:, 1], pixels[:, 2] = 0, 255, pixels[:, 2, :1]
    assert_triton_agrees(version, pixels, any_views(5, (2, 2, 3), 9))


@pytest.mark.parametrize("version", [TRITON])
def test_result_in_half_the_bits(version):
    assert_triton_agrees(
        version, bytes_of_images(6, 3, 2, 16), any_views(6, (2, 3, 2), 16), torch.bfloat16, rtol=2.0**-7
    )


@pytest.mark.parametrize("version", [TRITON])
def test_arguments_that_are_not_contiguous(version):
    pixels = bytes_of_images(7, 4, 2, 12)[:, :, :, :8, 2:10]
    view = any_views(7, (2, 4, 2), 8)
    assert_triton_agrees(version, pixels[1:3], view.map(lambda t: t[:, 1:3]))


@pytest.mark.parametrize("version", [TRITON])
def test_double_precision_is_not_for_it(version):
    """Float64 is left to PyTorch, as the kernel computes in float32."""
    pixels, view = bytes_of_images(8, 1, 1, 8).to(DEVICE), any_views(8, (1, 1, 1), 8).map(lambda t: t.to(DEVICE))
    mean, std = torch.zeros(3, 1, 1, device=DEVICE), torch.ones(3, 1, 1, device=DEVICE)
    expected = augment(pixels, view, mean, std, torch.float64)
    with accelerated(version):
        torch.testing.assert_close(augment(pixels, view, mean, std, torch.float64), expected, rtol=0, atol=0)
