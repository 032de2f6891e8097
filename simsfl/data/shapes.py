"""The built-in data set: ten shapes that nothing but their outline tells apart.

Position, size, tilt, the two colours and the texture are drawn alike for every class, so neither colour nor
place gives a class away. Colours stay close to dark and light gray: were they varied, they alone would tell
images apart, and contrastive learning would learn them and not the shapes. Needs no files and no network.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from simsfl.data import Arrays
from simsfl.randomness import Purpose, numpy_generator

SIZE = 32
TRAIN, TEST = 50_000, 10_000


def ring(x: Tensor, y: Tensor, radius: float, width: float) -> Tensor:
    """Distance to a circle's outline of a given width."""
    return (torch.hypot(x, y) - radius).abs() - width


def disc(x: Tensor, y: Tensor, radius: float) -> Tensor:
    """Distance to a disc around the origin."""
    return torch.hypot(x, y) - radius


def box(x: Tensor, y: Tensor, half_width: float, half_height: float) -> Tensor:
    """Distance to an upright rectangle around the origin (outside corners as a square's)."""
    return torch.maximum(x.abs() - half_width, y.abs() - half_height)


def polygon(x: Tensor, y: Tensor, corners: int, radius: float) -> Tensor:
    """Distance to a regular polygon with the given inner radius."""
    sector = 2 * np.pi / corners
    angle = torch.atan2(y, x)
    return torch.hypot(x, y) * torch.cos(angle - sector * torch.round(angle / sector)) - radius


def star(x: Tensor, y: Tensor) -> Tensor:
    """Distance-like function of a five-pointed star."""
    sector = 2 * np.pi / 5
    angle = torch.atan2(y, x)
    folded = (angle - sector * torch.round(angle / sector)).abs()
    return torch.hypot(x, y) * torch.cos(folded - 1.25) - 0.32


CLASSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "disc": lambda x, y: disc(x, y, 0.8),
    "ring": lambda x, y: ring(x, y, 0.68, 0.16),
    "half": lambda x, y: torch.maximum(disc(x, y + 0.35, 0.95), -y - 0.35),
    "crescent": lambda x, y: torch.maximum(disc(x - 0.5, y, 0.9), -disc(x - 0.95, y, 0.72)),
    "bar": lambda x, y: box(x, y, 1.0, 0.26),
    "square": lambda x, y: box(x, y, 0.72, 0.72),
    "triangle": lambda x, y: polygon(x, y, 3, 0.5),
    "cross": lambda x, y: torch.minimum(box(x, y, 0.95, 0.27), box(x, y, 0.27, 0.95)),
    "star": star,
    "pair": lambda x, y: disc(x.abs() - 0.58, y, 0.42),
}
"""Signed distance (negative inside) at points of a plane where a shape has about unit radius."""


def shapes(seed: int, train: int = TRAIN, test: int = TEST) -> Arrays:
    """Draw the data set: balanced labels in random order, the same for the same seed anywhere."""
    rng = numpy_generator(seed, Purpose.SHAPES)
    labels = rng.permutation(np.arange(train + test) % len(CLASSES))
    images = np.empty((train + test, SIZE, SIZE, 3), dtype=np.uint8)
    for label, distance in enumerate(CLASSES.values()):
        rows = np.flatnonzero(labels == label)
        for part in np.array_split(rows, max(1, len(rows) // 1000)):
            images[part] = draw(distance, len(part), rng)
    return Arrays(images[:train], labels[:train], images[train:], labels[train:], tuple(CLASSES))


def draw(distance: Callable[[Tensor, Tensor], Tensor], count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` images ``[count, SIZE, SIZE, 3]`` of one shape, everything else at random."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, (count, *shape)).astype(np.float32))

    grid = torch.linspace(-1, 1, SIZE)
    radius = uniform(0.4, 0.7, 1, 1)
    centre = uniform(-1.0, 1.0, 2, 1, 1) * (0.9 - radius)[:, None]
    angle = uniform(-0.35, 0.35, 1, 1)
    stretch = torch.exp(uniform(-0.35, 0.35, 1, 1))
    x = (grid[None, None, :] - centre[:, 0]) / radius * stretch
    y = (grid[None, :, None] - centre[:, 1]) / radius / stretch
    turned_x = torch.cos(angle) * x + torch.sin(angle) * y
    turned_y = torch.cos(angle) * y - torch.sin(angle) * x
    pixel = 2 / (SIZE - 1) / radius
    mask = (0.5 - distance(turned_x, turned_y) / pixel).clamp_(0, 1)[..., None]

    dark = uniform(40, 90, 1, 1, 1) + uniform(-10, 10, 1, 1, 3)
    light = uniform(150, 200, 1, 1, 1) + uniform(-10, 10, 1, 1, 3)
    swap = uniform(0, 1, 1, 1, 1) < 0.5
    background, ink = torch.where(swap, light, dark), torch.where(swap, dark, light)
    slope = uniform(-15, 15, 2, 1, 1)
    noise = torch.from_numpy(rng.integers(0, 41, (count, SIZE, SIZE), dtype=np.uint8))
    shade = slope[:, 0] * grid[None, None, :] + slope[:, 1] * grid[None, :, None] + noise - 20
    image = torch.addcmul(background + shade[..., None], mask, ink - background)
    return image.clamp_(0, 255).to(torch.uint8).numpy()
