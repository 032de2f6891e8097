"""Attacks by the server: on what clients send it, or on clients that it trains for itself, and how close they come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import mean, stdev

import numpy as np
import torch
from torch import Tensor

from simsfl.data import Images
from simsfl.data.partition import Partition
from simsfl.privacy import similarity
from simsfl.privacy.decoders import Training
from simsfl.system.randomness import Purpose, numpy_generator

__all__ = [
    "SIMILARITIES",
    "TARGETS",
    "Result",
    "attackers_rows",
    "others",
    "pixels",
    "some",
    "targets",
    "with_published_contrast",
]

TARGETS = 128
"""Images that are reconstructed, at most."""
SIMILARITIES = {"zeros": "SSIM (zeros, as published)", "mirror": "SSIM (mirrored)"}
"""What structural similarity is called, by how it continues images at their borders."""
_CONTRAST = (0.2023 / 0.2470, 0.1994 / 0.2435, 0.2010 / 0.2616)
"""Factors of red, green and blue by which the published evaluation lowers the contrast of images: its stored images are
normalised with CIFAR-10's standard deviations, and turned back with those of the training program."""


@dataclass(frozen=True)
class Result:
    """What an attack with one seed reconstructed, and how close it came."""

    mse: float
    """Mean squared error of pixels in [0, 1], averaged over the targets."""
    ssim: float
    """Structural similarity with black borders, as published, averaged over the targets."""
    ssim_mirrored: float
    """Structural similarity with mirrored borders, averaged over the targets."""
    psnr: float
    """Peak signal-to-noise ratio in dB, averaged over the targets."""
    training: Training | None
    """Errors of the decoder; None where the attack descends on the images."""
    reconstructions: Tensor
    """``[n, 3, H, H]`` reconstructed images in [0, 1], on the CPU."""

    @classmethod
    def of(cls, made: Tensor, originals: Tensor, training: Training | None = None) -> Result:
        """Return the result of an attack, given reconstructions and originals ``[n, 3, H, H]``."""
        mirrored = partial(similarity.ssim, borders="mirror")
        scores = (similarity.mse, similarity.ssim, mirrored, similarity.psnr)
        return cls(*(score(made, originals).mean().item() for score in scores), training, made.cpu())


def targets(partition: Partition, client: int) -> Tensor:
    """Return the rows ``[n]`` int64 of the images to reconstruct.

    These are the images of `client`, then those of the clients with the next ids, until there are `TARGETS`. They are
    at most half of all images, so that the attacker can have others.

    >>> partition = Partition.of([np.array([4, 0]), np.array([2, 5]), np.array([1, 3])])
    >>> targets(partition, client=2)
    tensor([1, 3, 4])
    """
    count = min(TARGETS, max(1, len(partition.indices) // 2))
    ids = [(client + offset) % len(partition) for offset in range(len(partition))]
    rows: list[int] = []
    for owner in ids:
        rows += partition[owner].tolist()
        if len(rows) >= count:
            break
    return torch.tensor(rows[:count], dtype=torch.long)


def attackers_rows(count: int, share: float, taken: Tensor, seed: int) -> Tensor:
    """Return the rows ``[k]`` int64 of the attacker's own images: a random `share` of `count`, none of them `taken`."""
    drawn = numpy_generator(seed, Purpose.ATTACKER).permutation(count)
    own = drawn[~np.isin(drawn, taken.numpy())][: max(1, round(share * count))]
    return torch.from_numpy(own.copy())


def with_published_contrast(images: Images) -> Images:
    """Return images with four fifths of their contrast, as the published evaluation has them.

    It shows both the client and those who judge reconstructions these images. The pixels of the result are floats.
    """
    lower = torch.tensor(_CONTRAST, device=images.mean.device).view(3, 1, 1)
    mean = 255 * images.mean
    return Images(mean + lower * (images.pixels - mean), images.mean, images.std)


def others(images: Images, than: Images) -> Images:
    """Return those of the images whose pixels are none of the images in `than`; both are on one device."""
    taken = {image.cpu().numpy().tobytes() for image in than.pixels}
    kept = [row for row, image in enumerate(images.pixels) if image.cpu().numpy().tobytes() not in taken]
    return some(images, torch.tensor(kept, dtype=torch.long))


def some(images: Images, rows: Tensor) -> Images:
    """Return the images at `rows` ``[n]``, on the device of `images.mean`."""
    device = images.mean.device
    return Images(images.pixels[rows.to(device)].to(device), images.mean, images.std)


def pixels(images: Images) -> Tensor:
    """Return images as float32 ``[n, 3, H, H]`` in [0, 1]."""
    return images.pixels.to(torch.float32).div(255.0)


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """Return the mean and the sample standard deviation of some values; the latter is None for a single value.

    >>> spread([1.0, 3.0])
    {'mean': 2.0, 'std': 1.4142135623730951}
    """
    return {"mean": mean(values), "std": stdev(values) if len(values) > 1 else None}
