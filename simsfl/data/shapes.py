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
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from simsfl.data import Arrays
from simsfl.system.randomness import Purpose, numpy_generator

SIZE = 32
TRAIN, TEST = 50_000, 10_000
CHUNK = 200
"""Images drawn together, so that the planes they are made of stay in cache."""
COPIES = 5
"""Rows and columns after which the pattern repeats: more than a window shows."""
AREA = 0.22
"""Of a copy of middle size, as a share of its cell in the pattern."""

Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Signed distance of points (x, y) to an outline, negative inside."""


def disc(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Distance to a disc around the origin."""
    return np.hypot(x, y) - radius


def box(x: np.ndarray, y: np.ndarray, half_width: float, half_height: float) -> np.ndarray:
    """Distance to an upright rectangle around the origin (outside corners as a square's)."""
    return np.maximum(np.abs(x) - half_width, np.abs(y) - half_height)


def spikes(x: np.ndarray, y: np.ndarray, count: int, slope: float) -> np.ndarray:
    """Distance to a star of `count` points; with `slope` 0 a regular polygon of inner radius 1."""
    sector = np.float32(2 * np.pi / count)
    angle = np.arctan2(y, x)
    folded = np.abs(angle - sector * np.rint(angle / sector))
    return np.hypot(x, y) * np.cos(folded - np.float32(slope)) - 1.0


CLASSES: dict[str, Distance] = {
    "disc": lambda x, y: disc(x, y, 1.0),
    "ring": lambda x, y: np.abs(disc(x, y, 0.8)) - 0.2,
    "half": lambda x, y: np.maximum(disc(x, y + 0.4, 1.0), -y - 0.4),
    "crescent": lambda x, y: np.maximum(disc(x - 0.1, y, 1.0), -disc(x - 0.6, y, 0.8)),
    "bar": lambda x, y: box(x, y, 1.0, 0.26),
    "square": lambda x, y: box(x, y, 1.0, 1.0),
    "triangle": lambda x, y: spikes(x, y, 3, 0.0),
    "cross": lambda x, y: np.minimum(box(x, y, 1.0, 0.28), box(x, y, 0.28, 1.0)),
    "star": lambda x, y: spikes(x, y, 5, 1.25),
    "pair": lambda x, y: disc(np.abs(x) - 0.58, y, 0.42),
}
"""Each shape in a unit of its own (see `unit`)."""


def unit(distance: Distance) -> float:
    """The unit, as a share of the pattern's pitch, with which a shape covers `AREA` of its cell."""
    reach, points = 5.0, 1000
    grid = np.linspace(-reach, reach, points)
    inside = distance(grid[None, :], grid[:, None]) < 0
    return float(np.sqrt(AREA / (inside.mean() * (2 * reach) ** 2)))


def shapes(seed: int, train: int = TRAIN, test: int = TEST) -> Arrays:
    """Draw the data set: balanced labels in random order.

    The same seed gives the same images on machines of one kind; between kinds of processor, whose sines differ in
    the last bit, a few pixels may differ by one.
    """
    labels = numpy_generator(seed, Purpose.SHAPES).permutation(np.arange(train + test) % len(CLASSES))
    images = np.empty((train + test, SIZE, SIZE, 3), dtype=np.uint8)

    def draw_chunk(label: int, chunk: int, rows: np.ndarray) -> None:
        images[rows] = draw(
            distances[label], units[label], len(rows), numpy_generator(seed, Purpose.SHAPES, label, chunk)
        )

    distances = list(CLASSES.values())
    units = [unit(distance) for distance in distances]
    with ThreadPoolExecutor() as pool:
        jobs = []
        for label in range(len(CLASSES)):
            rows = np.flatnonzero(labels == label)
            for chunk, part in enumerate(np.array_split(rows, max(1, len(rows) // CHUNK))):
                jobs.append(pool.submit(draw_chunk, label, chunk, part))
        for job in jobs:
            job.result()
    return Arrays(images[:train], labels[:train], images[train:], labels[train:], tuple(CLASSES))


def draw(distance: Distance, size: float, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` images ``[count, SIZE, SIZE, 3]`` of the shape with its unit `size`, everything else at random."""

    def uniform(low: float, high: float, *shape: int) -> np.ndarray:
        return rng.random((count, *shape), dtype=np.float32) * np.float32(high - low) + np.float32(low)

    pixel = 1 / uniform(10, 20, 1, 1)  # in pitches of the pattern
    stretch = np.exp(uniform(-0.2, 0.2, 1, 1))
    place = np.arange(SIZE, dtype=np.float32)
    x, y = turn(place[None, :] * pixel * stretch, place[:, None] * pixel / stretch, uniform(-0.15, 0.15, 1, 1))
    y += uniform(0, COPIES, 1, 1)
    row = np.floor(y)
    x += uniform(0, COPIES, 1, 1) + uniform(0, 1, 1, 1) * row
    column = np.floor(x)
    copy = row.astype(np.intp) % COPIES * COPIES + column.astype(np.intp) % COPIES
    copy += np.arange(count)[:, None, None] * COPIES**2

    def of_each_copy(low: float, high: float) -> np.ndarray:
        return uniform(low, high, COPIES**2).ravel().take(copy)

    own = size * of_each_copy(0.8, 1.1)
    x, y = turn((x - column - 0.5) / own, (y - row - 0.5) / own, of_each_copy(-0.2, 0.2))
    mask = np.clip(0.5 - distance(x, y) * own / pixel, 0, 1)
    noise = rng.integers(-10, 11, (count, SIZE, SIZE), dtype=np.int8)
    ground, ink = uniform(20, 60, 1, 1) + noise, uniform(140, 220, 1, 1)
    image = np.empty((count, SIZE, SIZE, 3), dtype=np.uint8)
    for channel in range(3):
        image[..., channel] = ground + mask * (ink + of_each_copy(-35, 35) - ground)
    negative = uniform(0, 1) < 0.5
    image[negative] = 255 - image[negative]
    return image


def turn(x: np.ndarray, y: np.ndarray, angle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same points as seen from axes turned by `angle`."""
    cos, sin = np.cos(angle), np.sin(angle)
    return cos * x + sin * y, cos * y - sin * x
