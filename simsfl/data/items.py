"""Data sets that give one image at a time, as torchvision's do when they are indexed."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image
from torch import Tensor

from simsfl.data import Arrays, Dataset, check_memory, make_dataset, numbered
from simsfl.data.picture import as_rgb, middle_square
from simsfl.system.messages import kind_of, shown
from simsfl.system.progress import watched


class Items(Protocol):
    """A data set that is indexed by whole numbers from 0."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> Any: ...


def from_torchvision(
    train: Items,
    test: Items,
    *,
    unlabelled: Items | None = None,
    name: str | None = None,
    image_size: int | None = None,
) -> Dataset:
    """Return the data set of tensors that is read from data sets of torchvision, on the CPU.

    Each item is an image and a label. Images are PIL images, or uint8 pixels: tensors ``[3, H, W]``, ``[1, H, W]`` or
    ``[H, W]``, or arrays ``[H, W, 3]``, ``[H, W, 1]`` or ``[H, W]``. They must not be transformed, because views are
    made of them in training. Labels are integers from 0, whose names are in ``train.classes``; without such names they
    are renumbered without gaps, and the numbers become the names.

    >>> images, labels = np.zeros((4, 8, 8), np.uint8), [0, 1, 0, 1]
    >>> from_torchvision(list(zip(images, labels)), list(zip(images, labels)), name="black").classes
    ('0', '1')

    Args:
        train: training images with labels.
        test: test images with labels.
        unlabelled: training images that clients hold instead of those of `train`; items are images, or begin with one.
        name: name of the data set, for errors and records; None for that of the class of `train`, in small letters.
        image_size: height and width that images are scaled to, of which the middle square is taken; None keeps them as
            they are, and then they must be squares of one size.

    Raises:
        ValueError: an image or a label is something else, or the images do not fit into memory.
    """
    name = name or type(train).__name__.lower()
    pairs = {"train": train, "test": test}
    (train_x, train_y), (test_x, test_y) = (
        read_pairs(items, f"{what} of {name}", image_size) for what, items in pairs.items()
    )
    without = None if unlabelled is None else read_images(unlabelled, f"unlabelled of {name}", image_size)
    arrays = as_arrays(
        name, (train_x, train_y), (test_x, test_y), getattr(train, "classes", None), unlabelled_x=without
    )
    return make_dataset(name, f"{type(train).__name__}, passed from Python", arrays, image_size=image_size)


def as_arrays(
    name: str,
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    classes: Sequence[Any] | None,
    *,
    unlabelled_x: np.ndarray | None = None,
    owners: np.ndarray | None = None,
) -> Arrays:
    """Return a data set as arrays.

    Args:
        name: name of the data set, for errors.
        train: training images ``[n, H, W, 3]`` and their labels ``[n]``.
        test: test images and their labels.
        classes: names of the classes, in the order of the labels; None for the numbers that are the labels.
        unlabelled_x: training images without labels.
        owners: ``[n]`` client of each image that clients hold, as any sortable values.

    Raises:
        ValueError: there are no names, and a label is below 0, or occurs in the test images alone.
    """
    (train_x, train_y), (test_x, test_y) = train, test
    if classes is None:
        train_y, test_y, names = numbered(name, ("train", train_y), ("test", test_y))
    else:
        names = tuple(one if isinstance(one, str) else ", ".join(map(str, one)) for one in classes)
    if owners is not None:
        owners = np.unique(owners, return_inverse=True)[1].reshape(-1).astype(np.int64)
    return Arrays(train_x, train_y, test_x, test_y, names, owners, unlabelled_x)


def read_pairs(items: Items, what: str, size: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the images ``[n, H, W, 3]`` uint8 of items, and their labels ``[n]`` int64.

    Args:
        items: pairs of image and label; see `from_torchvision`.
        what: description of the items, for errors.
        size: height and width that images are scaled to; None keeps them as they are.

    Raises:
        ValueError: an item is something else, or images differ in size, or do not fit into memory.
    """
    labels = np.empty(len(items), dtype=np.int64)

    def images() -> Iterable[Any]:
        for row in range(len(items)):
            item = items[row]
            if not isinstance(item, Sequence) or len(item) < 2:
                raise ValueError(f"dataset: item {row} of {what} is {_described(item)}; allowed: an image and a label")
            try:
                labels[row] = operator.index(item[1])
            except TypeError:
                raise ValueError(
                    f"dataset: label {row} of {what} is {_described(item[1])}; allowed: whole numbers from 0"
                ) from None
            yield item[0]

    return _stacked(images(), len(items), what, size), labels


def read_images(items: Items, what: str, size: int | None) -> np.ndarray:
    """Return the images ``[n, H, W, 3]`` uint8 of items that are images, or begin with one; see `read_pairs`."""
    found = (items[row] for row in range(len(items)))
    images = (item[0] if isinstance(item, tuple | list) else item for item in found)
    return _stacked(images, len(items), what, size)


def _stacked(images: Iterable[Any], count: int, what: str, size: int | None) -> np.ndarray:
    """Return `count` images as uint8 ``[count, H, W, 3]``; see `read_pairs` for arguments and errors."""
    if not count:
        raise ValueError(f"dataset: {what} has no images; allowed: one or more")
    coming, stacked = iter(images), None
    for row in watched(range(count), f"Reading {what}"):
        pixels = _pixels(next(coming), f"image {row} of {what}", size)
        if stacked is None:
            check_memory(what, count, *pixels.shape[:2])
            stacked = np.empty((count, *pixels.shape), dtype=np.uint8)
        if pixels.shape != stacked.shape[1:]:
            sizes = [f"{height}x{width}" for height, width, _ in (pixels.shape, stacked.shape[1:])]
            raise ValueError(
                f"dataset: image {row} of {what} has {sizes[0]} pixels, and the first {sizes[1]}; allowed: one size, "
                "or an image size that they are scaled to"
            )
        stacked[row] = pixels
    assert stacked is not None  # there is one image at least
    return stacked


def _pixels(image: Any, which: str, size: int | None) -> np.ndarray:
    """Return an image as uint8 ``[H, W, 3]``.

    Args:
        image: the image, as `from_torchvision` describes it.
        which: description of the image, for errors.
        size: height and width that it is scaled to; None keeps it as it is.

    Raises:
        ValueError: it is no image.
    """
    try:
        picture = as_rgb(image if isinstance(image, Image.Image) else _picture(image))
    except ValueError as error:
        raise ValueError(
            f"dataset: {which} cannot be used ({error}); allowed: PIL images, or uint8 pixels with 1 or 3 channels, "
            "without transforms"
        ) from None
    return np.asarray(picture) if size is None else middle_square(picture, size)


def _picture(image: Any) -> Image.Image:
    """Return the pixels in a tensor or an array as an image; raise a ValueError if they are something else."""
    array = image.numpy() if isinstance(image, Tensor) else image
    if isinstance(image, Tensor) and array.ndim == 3:
        array = array.transpose(1, 2, 0)
    right = isinstance(array, np.ndarray) and array.dtype == np.uint8 and 0 not in array.shape
    if not right or array.ndim not in (2, 3) or array.shape[2:] not in ((), (1,), (3,)):
        raise ValueError(f"it is {_described(image)}")
    return Image.fromarray(array[..., 0] if array.shape[2:] == (1,) else array)


def _described(value: Any) -> str:
    """Return what a value is, for errors: its type, and of tensors and arrays what they consist of."""
    if isinstance(value, Tensor | np.ndarray):
        return f"{kind_of(value)} of {str(value.dtype).removeprefix('torch.')} and shape {tuple(value.shape)}"
    return shown(value) if isinstance(value, str | int | float | None) else kind_of(value)
