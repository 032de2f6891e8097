"""The built-in data set: patterns of ten shapes, where only the shape distinguishes the classes.

An image is a window onto staggered rows of copies of its shape. The copies cover the same area whatever the shape, and
everything else is drawn in the same way for every class: pitch, tilt and position of the rows, brightness of ink and
ground, and size, rotation and tint of each copy. So neither colour nor position reveals the class, and images with
similar pixels rarely belong to the same class.

Two random crops of an image have in common what its copies have in common: the shape, which contrastive learning
therefore finds. With a single copy per image, the shape would hardly be learnt, because a crop loses it; nor would it
be where colours alone distinguish images. The data set needs no files and no network.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from simsfl.data import Arrays
from simsfl.system.randomness import Purpose, numpy_generator

_SIZE = 32
"""Height and width of the images."""
_TRAIN, _TEST = 50_000, 10_000
"""Numbers of training and test images by default."""
_CHUNK = 200
"""Images that are drawn together, about; few enough for their intermediate arrays to stay in the processor's cache."""
_COPIES = 5
"""Rows and columns after which the pattern repeats; a window shows fewer."""
_AREA = 0.22
"""Area of a copy before its size is varied, as a share of its cell in the pattern."""

_Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Function from points (x, y) to their signed distance from an outline, negative inside."""


def _disc(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Return the signed distance of points to a disc around the origin."""
    return np.hypot(x, y) - radius


def _box(x: np.ndarray, y: np.ndarray, half_width: float, half_height: float) -> np.ndarray:
    """Return the signed distance of points to an upright rectangle around the origin (at corners, in the max norm)."""
    return np.maximum(np.abs(x) - half_width, np.abs(y) - half_height)


def _spikes(x: np.ndarray, y: np.ndarray, count: int, slope: float) -> np.ndarray:
    """Return the signed distance to a star of `count` points; if `slope` is 0, a regular polygon of inner radius 1."""
    sector = np.float32(2 * np.pi / count)
    angle = np.arctan2(y, x)
    folded = np.abs(angle - sector * np.rint(angle / sector))
    return np.hypot(x, y) * np.cos(folded - np.float32(slope)) - 1.0


CLASSES: dict[str, _Distance] = {
    "disc": lambda x, y: _disc(x, y, 1.0),
    "ring": lambda x, y: np.abs(_disc(x, y, 0.8)) - 0.2,
    "half": lambda x, y: np.maximum(_disc(x, y + 0.4, 1.0), -y - 0.4),
    "crescent": lambda x, y: np.maximum(_disc(x - 0.1, y, 1.0), -_disc(x - 0.6, y, 0.8)),
    "bar": lambda x, y: _box(x, y, 1.0, 0.26),
    "square": lambda x, y: _box(x, y, 1.0, 1.0),
    "triangle": lambda x, y: _spikes(x, y, 3, 0.0),
    "cross": lambda x, y: np.minimum(_box(x, y, 1.0, 0.28), _box(x, y, 0.28, 1.0)),
    "star": lambda x, y: _spikes(x, y, 5, 1.25),
    "pair": lambda x, y: _disc(np.abs(x) - 0.58, y, 0.42),
}
"""Signed distance from each shape, by the name of its class, in a unit of the shape's own (see `_unit`)."""


def _unit(distance: _Distance) -> float:
    """Return the unit, as a share of the pattern's pitch, with which a shape covers `_AREA` of its cell."""
    reach, points = 5.0, 1000
    grid = np.linspace(-reach, reach, points)
    inside = distance(grid[None, :], grid[:, None]) < 0
    return float(np.sqrt(_AREA / (inside.mean() * (2 * reach) ** 2)))


def shapes(seed: int, train: int = _TRAIN, test: int = _TEST) -> Arrays:
    """Draw the data set, with balanced labels in random order.

    The same seed gives the same images on the same kind of machine. Between kinds of processor, whose sines differ in
    the last bit, a few pixels may differ by one.

    Args:
        seed: the run's seed.
        train: number of training images.
        test: number of test images.
    """
    labels = numpy_generator(seed, Purpose.SHAPES).permutation(np.arange(train + test) % len(CLASSES))
    images = np.empty((train + test, _SIZE, _SIZE, 3), dtype=np.uint8)

    def draw_chunk(label: int, chunk: int, rows: np.ndarray) -> None:
        images[rows] = _draw(
            distances[label], units[label], len(rows), numpy_generator(seed, Purpose.SHAPES, label, chunk)
        )

    distances = list(CLASSES.values())
    units = [_unit(distance) for distance in distances]
    with ThreadPoolExecutor() as pool:
        jobs = []
        for label in range(len(CLASSES)):
            rows = np.flatnonzero(labels == label)
            for chunk, part in enumerate(np.array_split(rows, max(1, len(rows) // _CHUNK))):
                jobs.append(pool.submit(draw_chunk, label, chunk, part))
        for job in jobs:
            job.result()
    return Arrays(images[:train], labels[:train], images[train:], labels[train:], tuple(CLASSES))


def _draw(distance: _Distance, size: float, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw uint8 images ``[count, _SIZE, _SIZE, 3]`` of a shape with the unit `size`; everything else is random."""

    def uniform(low: float, high: float, *shape: int) -> np.ndarray:
        return rng.random((count, *shape), dtype=np.float32) * np.float32(high - low) + np.float32(low)

    pixel = 1 / uniform(10, 20, 1, 1)  # side of a pixel, in pitches of the pattern
    stretch = np.exp(uniform(-0.2, 0.2, 1, 1))
    place = np.arange(_SIZE, dtype=np.float32)
    x, y = _turn(place[None, :] * pixel * stretch, place[:, None] * pixel / stretch, uniform(-0.15, 0.15, 1, 1))
    y += uniform(0, _COPIES, 1, 1)
    row = np.floor(y)
    x += uniform(0, _COPIES, 1, 1) + uniform(0, 1, 1, 1) * row
    column = np.floor(x)
    copy = row.astype(np.intp) % _COPIES * _COPIES + column.astype(np.intp) % _COPIES
    copy += np.arange(count)[:, None, None] * _COPIES**2

    def of_each_copy(low: float, high: float) -> np.ndarray:
        return uniform(low, high, _COPIES**2).ravel().take(copy)

    own = size * of_each_copy(0.8, 1.1)
    x, y = _turn((x - column - 0.5) / own, (y - row - 0.5) / own, of_each_copy(-0.2, 0.2))
    mask = np.clip(0.5 - distance(x, y) * own / pixel, 0, 1)
    noise = rng.integers(-10, 11, (count, _SIZE, _SIZE), dtype=np.int8)
    ground, ink = uniform(20, 60, 1, 1) + noise, uniform(140, 220, 1, 1)
    image = np.empty((count, _SIZE, _SIZE, 3), dtype=np.uint8)
    for channel in range(3):
        image[..., channel] = ground + mask * (ink + of_each_copy(-35, 35) - ground)
    negative = uniform(0, 1) < 0.5
    image[negative] = 255 - image[negative]
    return image


def _turn(x: np.ndarray, y: np.ndarray, angle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the coordinates of points (x, y) on axes that are rotated by `angle`, in radians."""
    cos, sin = np.cos(angle), np.sin(angle)
    return cos * x + sin * y, cos * y - sin * x
