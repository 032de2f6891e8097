"""The random parameters of the views of an image; `kernels.augment` makes the views from them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from simsfl.config import RunConfig
from simsfl.kernels import ViewParameters

_CROP_ATTEMPTS = 10
"""Times that a crop is drawn before the whole image is taken instead."""
UNIFORMS = 4 * _CROP_ATTEMPTS + 13
"""Number of uniform random numbers that one view takes."""


@dataclass(frozen=True)
class Recipe:
    """How the two views of an image are drawn.

    Recipe "v2" (MoCo v2) is crop, colour jitter, grayscale, blur, flip. Recipe "v1" has no blur, and has the flip right
    after the crop, which makes no difference, because the flip commutes with everything that follows.

    The crop is drawn as torchvision's RandomResizedCrop does it: ten attempts at an area share in (`crop_scale`, 1) and
    a log-uniform aspect ratio in (3/4, 4/3), then the whole image. ColorJitter (0.4, 0.4, 0.4, 0.1), times
    `color_strength` as in SimCLR (Chen et al., ICML 2020, appendix A), has probability 0.8, and its order is drawn per
    image; grayscale has probability 0.2; the blur of "v2" has sigma in (0.1, 2) and probability 0.5; the flip has
    probability 0.5.
    """

    name: str
    """"v1" or "v2"."""
    image_size: int
    """Height and width of the images in pixels."""
    crop_scale: float = 0.08
    """Smallest area of a crop, as a share of the image."""
    color_strength: float = 1.0
    """Strength of the colour jitter, as a multiple of the published one."""

    @classmethod
    def of(cls, config: RunConfig) -> Recipe:
        """Return the recipe that a config with every rule applied means."""
        return cls(config.views, config.image_size, config.crop_scale, config.color_strength)

    def sample(self, uniforms: np.ndarray) -> ViewParameters:
        """Turn uniform numbers into the parameters of views.

        >>> uniforms = np.random.default_rng(0).random((2, 8, UNIFORMS))  # two views of each of eight images
        >>> views = Recipe("v2", image_size=32).sample(uniforms)
        >>> views.crop.shape, views.flip.shape
        (torch.Size([2, 8, 4]), torch.Size([2, 8]))

        Args:
            uniforms: ``[..., UNIFORMS]`` in [0, 1).

        Returns:
            Parameters with the leading dimensions ``[...]``, on the CPU.
        """
        tries, rest = np.split(uniforms, [4 * _CROP_ATTEMPTS], axis=-1)
        return ViewParameters(
            crop=torch.from_numpy(self._crop(tries)).float(),
            flip=torch.from_numpy(rest[..., 9] < 0.5),
            jitter=torch.from_numpy(self._jitter(rest)).float(),
            blends=torch.from_numpy(rest[..., 5:8].argsort(axis=-1)),
            hue_slot=torch.from_numpy(np.floor(4 * rest[..., 8]).astype(np.int64)),
            gray=torch.from_numpy(rest[..., 10] < 0.2),
            sigma=torch.from_numpy(self._sigma(rest)).float(),
        )

    def _crop(self, tries: np.ndarray) -> np.ndarray:
        """Return top, left, height and width ``[..., 4]`` of the crops."""
        size, smallest = self.image_size, self.crop_scale
        tries = tries.reshape(*tries.shape[:-1], 4, _CROP_ATTEMPTS)
        area = size**2 * (smallest + (1 - smallest) * tries[..., 0, :])
        ratio = np.exp(np.log(4 / 3) * (2 * tries[..., 1, :] - 1))
        width = np.rint(np.sqrt(area * ratio))
        height = np.rint(np.sqrt(area / ratio))
        fits = (width <= size) & (height <= size) & (width > 0) & (height > 0)
        top = np.floor(tries[..., 2, :] * (size - height + 1))
        left = np.floor(tries[..., 3, :] * (size - width + 1))
        candidates = np.stack([top, left, height, width], axis=-1)
        first = fits.argmax(axis=-1)[..., None, None]
        crop = np.take_along_axis(candidates, first, axis=-2)[..., 0, :]
        return np.where(fits.any(axis=-1, keepdims=True), crop, [0, 0, size, size])

    def _jitter(self, rest: np.ndarray) -> np.ndarray:
        """Return the factors of brightness, contrast and saturation and the shift of the hue, ``[..., 4]``."""
        most, shift = 0.4 * self.color_strength, 0.1 * self.color_strength
        factors = np.concatenate([(1 - most) + 2 * most * rest[..., 0:3], 2 * shift * rest[..., 3:4] - shift], axis=-1)
        return np.where(rest[..., 4:5] < 0.8, factors, [1.0, 1.0, 1.0, 0.0])

    def _sigma(self, rest: np.ndarray) -> np.ndarray:
        """Return the sigma of the blur in pixels ``[...]``, 0 where there is none."""
        blurred = (rest[..., 11] < 0.5) & (self.name == "v2")
        return np.where(blurred, 0.1 + 1.9 * rest[..., 12], 0.0)
