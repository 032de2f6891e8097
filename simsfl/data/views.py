"""The random parameters of the views of an image; `kernels.augment` makes the views from them."""

from __future__ import annotations

import numpy as np
import torch

from simsfl.kernels import ViewParameters

_CROP_ATTEMPTS = 10
"""Times that a crop is drawn before the whole image is taken instead."""
UNIFORMS = 4 * _CROP_ATTEMPTS + 13
"""Number of uniform random numbers that one view takes."""


def sample(uniforms: np.ndarray, recipe: str, image_size: int, crop_scale: float = 0.08) -> ViewParameters:
    """Turn uniform numbers into the parameters of views.

    Recipe "v2" (MoCo v2) is crop, colour jitter, grayscale, blur, flip. Recipe "v1" has no blur, and has the flip right
    after the crop, which makes no difference, because the flip commutes with everything that follows.

    The crop is drawn as torchvision's RandomResizedCrop does it: ten attempts at an area share in (`crop_scale`, 1) and
    a log-uniform aspect ratio in (3/4, 4/3), then the whole image. ColorJitter (0.4, 0.4, 0.4, 0.1) has probability
    0.8, and its order is drawn per image; grayscale has probability 0.2; the blur of "v2" has sigma in (0.1, 2) and
    probability 0.5; the flip has probability 0.5.

    >>> uniforms = np.random.default_rng(0).random((2, 8, UNIFORMS))  # two views of each of eight images
    >>> views = sample(uniforms, "v2", image_size=32)
    >>> views.crop.shape, views.flip.shape
    (torch.Size([2, 8, 4]), torch.Size([2, 8]))

    Args:
        uniforms: ``[..., UNIFORMS]`` in [0, 1).
        recipe: "v1" or "v2".
        image_size: height and width of the images.
        crop_scale: smallest area of a crop, as a share of the image.

    Returns:
        Parameters with the leading dimensions ``[...]``, on the CPU.
    """
    tries, rest = np.split(uniforms, [4 * _CROP_ATTEMPTS], axis=-1)
    tries = tries.reshape(*tries.shape[:-1], 4, _CROP_ATTEMPTS)
    area = image_size**2 * (crop_scale + (1 - crop_scale) * tries[..., 0, :])
    ratio = np.exp(np.log(4 / 3) * (2 * tries[..., 1, :] - 1))
    width = np.rint(np.sqrt(area * ratio))
    height = np.rint(np.sqrt(area / ratio))
    fits = (width <= image_size) & (height <= image_size) & (width > 0) & (height > 0)
    top = np.floor(tries[..., 2, :] * (image_size - height + 1))
    left = np.floor(tries[..., 3, :] * (image_size - width + 1))
    candidates = np.stack([top, left, height, width], axis=-1)
    first = fits.argmax(axis=-1)[..., None, None]
    crop = np.take_along_axis(candidates, first, axis=-2)[..., 0, :]
    crop = np.where(fits.any(axis=-1, keepdims=True), crop, [0, 0, image_size, image_size])

    factors = np.concatenate([0.6 + 0.8 * rest[..., 0:3], 0.2 * rest[..., 3:4] - 0.1], axis=-1)
    jitter = np.where(rest[..., 4:5] < 0.8, factors, [1.0, 1.0, 1.0, 0.0])
    blurred = (rest[..., 11] < 0.5) & (recipe == "v2")
    return ViewParameters(
        crop=torch.from_numpy(crop).float(),
        flip=torch.from_numpy(rest[..., 9] < 0.5),
        jitter=torch.from_numpy(jitter).float(),
        blends=torch.from_numpy(rest[..., 5:8].argsort(axis=-1)),
        hue_slot=torch.from_numpy(np.floor(4 * rest[..., 8]).astype(np.int64)),
        gray=torch.from_numpy(rest[..., 10] < 0.2),
        sigma=torch.from_numpy(np.where(blurred, 0.1 + 1.9 * rest[..., 12], 0.0)).float(),
    )
