"""The built-in data set: patterns of one of ten shapes, which nothing but the shape tells apart.

An image is a window onto staggered rows of copies of its shape. The copies cover the same area whatever the
shape, and everything else is drawn alike for every class: pitch, tilt and place of the rows, brightness of ink and
ground, size, turn and tint of each copy. So neither colour nor place gives a class away, and images whose pixels
are near one another are rarely of one class.

Two random crops of an image have in common what its copies have in common: the shape, which is what contrastive
learning then finds. One shape to an image is hardly learnt, since a crop loses it; nor are shapes where colours
alone tell images apart. Needs no files and no network.
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
CHUNK = 250
"""Images drawn together, so that the planes they are made of stay in cache."""
COPIES = 5
"""Rows and columns after which the pattern repeats: more than a window shows."""
AREA = 0.22
"""Of a copy of middle size, as a share of its cell in the pattern."""


def disc(x: Tensor, y: Tensor, radius: float) -> Tensor:
    """Distance to a disc around the origin."""
    return torch.hypot(x, y) - radius


def box(x: Tensor, y: Tensor, half_width: float, half_height: float) -> Tensor:
    """Distance to an upright rectangle around the origin (outside corners as a square's)."""
    return torch.maximum(x.abs() - half_width, y.abs() - half_height)


def spikes(x: Tensor, y: Tensor, count: int, slope: float) -> Tensor:
    """Distance to a star of `count` points; with `slope` 0 a regular polygon of inner radius 1."""
    sector = 2 * np.pi / count
    angle = torch.atan2(y, x)
    folded = (angle - sector * torch.round(angle / sector)).abs()
    return torch.hypot(x, y) * torch.cos(folded - slope) - 1.0


CLASSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "disc": lambda x, y: disc(x, y, 1.0),
    "ring": lambda x, y: disc(x, y, 0.8).abs() - 0.2,
    "half": lambda x, y: torch.maximum(disc(x, y + 0.4, 1.0), -y - 0.4),
    "crescent": lambda x, y: torch.maximum(disc(x - 0.1, y, 1.0), -disc(x - 0.6, y, 0.8)),
    "bar": lambda x, y: box(x, y, 1.0, 0.26),
    "square": lambda x, y: box(x, y, 1.0, 1.0),
    "triangle": lambda x, y: spikes(x, y, 3, 0.0),
    "cross": lambda x, y: torch.minimum(box(x, y, 1.0, 0.28), box(x, y, 0.28, 1.0)),
    "star": lambda x, y: spikes(x, y, 5, 1.25),
    "pair": lambda x, y: disc(x.abs() - 0.58, y, 0.42),
}
"""Signed distance to each shape's outline, negative inside, in a unit of its own (see `unit`)."""


def unit(distance: Callable[[Tensor, Tensor], Tensor]) -> float:
    """The unit, as a share of the pattern's pitch, with which a shape covers `AREA` of its cell."""
    reach, points = 5.0, 1000
    grid = torch.linspace(-reach, reach, points)
    inside = distance(grid[None, :], grid[:, None]) < 0
    return (AREA / (inside.float().mean().item() * (2 * reach) ** 2)) ** 0.5


def shapes(seed: int, train: int = TRAIN, test: int = TEST) -> Arrays:
    """Draw the data set: balanced labels in random order, the same for the same seed anywhere."""
    rng = numpy_generator(seed, Purpose.SHAPES)
    labels = rng.permutation(np.arange(train + test) % len(CLASSES))
    images = np.empty((train + test, SIZE, SIZE, 3), dtype=np.uint8)
    for label, distance in enumerate(CLASSES.values()):
        rows = np.flatnonzero(labels == label)
        size = unit(distance)
        for part in np.array_split(rows, max(1, len(rows) // CHUNK)):
            images[part] = draw(distance, size, len(part), rng)
    return Arrays(images[:train], labels[:train], images[train:], labels[train:], tuple(CLASSES))


def draw(distance: Callable[[Tensor, Tensor], Tensor], size: float, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` images ``[count, SIZE, SIZE, 3]`` of the shape with its unit `size`, everything else at random."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.from_numpy(rng.random((count, *shape), dtype=np.float32) * np.float32(high - low) + low)

    pixel = 1 / uniform(10, 20, 1, 1)  # in pitches of the pattern
    stretch = torch.exp(uniform(-0.2, 0.2, 1, 1))
    place = torch.arange(SIZE, dtype=torch.float32)
    x, y = turn(
        place[None, None, :] * pixel * stretch, place[None, :, None] * pixel / stretch, uniform(-0.15, 0.15, 1, 1)
    )
    y += uniform(0, COPIES, 1, 1)
    row = y.floor()
    x += uniform(0, COPIES, 1, 1) + uniform(0, 1, 1, 1) * row
    column = x.floor()
    copy = (row.remainder(COPIES) * COPIES + column.remainder(COPIES)).long().flatten(1)

    def of_each_copy(low: float, high: float) -> Tensor:
        return uniform(low, high, COPIES**2).gather(1, copy).view(count, SIZE, SIZE)

    own = size * of_each_copy(0.8, 1.1)
    x, y = turn((x - column - 0.5) / own, (y - row - 0.5) / own, of_each_copy(-0.2, 0.2))
    mask = (0.5 - distance(x, y) * own / pixel).clamp_(0, 1)
    noise = torch.from_numpy(rng.integers(-10, 11, (count, SIZE, SIZE), dtype=np.int8))
    ground, ink = uniform(20, 60, 1, 1) + noise, uniform(140, 220, 1, 1)
    negative = torch.where(uniform(0, 1, 1, 1) < 0.5, 255, 0).to(torch.uint8)
    tinted = [torch.lerp(ground, ink + of_each_copy(-35, 35), mask).to(torch.uint8) ^ negative for _ in range(3)]
    return torch.stack(tinted, dim=-1).numpy()


def turn(x: Tensor, y: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """The same points as seen from axes turned by `angle`."""
    cos, sin = torch.cos(angle), torch.sin(angle)
    return cos * x + sin * y, cos * y - sin * x
