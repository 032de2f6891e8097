"""Data sets as uint8 tensors on the device, independent of the files that they come from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from simsfl.config.constraints import SMALLEST
from simsfl.kernels import ViewParameters, augment
from simsfl.system.memory import free_memory
from simsfl.system.messages import kind_of

if TYPE_CHECKING:
    from simsfl.data.folder import Pictures

__all__ = ["ARRAYS", "Arrays", "Dataset", "Images", "make_dataset"]

ARRAYS = ("train_x", "train_y", "test_x", "test_y")
"""Names of the arrays of a data set that it must have, in files and in `Arrays`."""
UNLABELLED = ("unlabelled", "unlabeled")
"""What images without labels are called, in names of arrays, directories and splits; the first is simsfl's own name."""
_PART = 1024
"""Images that are scaled at a time."""


@dataclass(frozen=True)
class Arrays:
    """A data set as NumPy arrays: uint8 images ``[n, H, W, 3]`` and integer labels ``[n]``, to train and to test on."""

    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray
    classes: tuple[str, ...]
    """Name of the class of each label."""
    train_client: np.ndarray | None = None
    """``[n]`` int64 client that each image belongs to that clients hold, numbered from 0 without gaps: of the training
    images without labels, if there are any, else of all. None where that is not known."""
    unlabelled_x: np.ndarray | None = None
    """uint8 training images ``[n, H, W, 3]`` without labels, which clients then hold instead of `train_x`; or None."""

    @cached_property
    def digests(self) -> dict[str, str]:
        """SHA-256 of the bytes of each array, by name; labels count as uint8 if all are below 256, else as int64."""
        small = max(self.train_y.max(), self.test_y.max()) < 256
        to = np.uint8 if small else np.int64
        arrays = {
            "train_x": self.train_x,
            "train_y": self.train_y.astype(to),
            "test_x": self.test_x,
            "test_y": self.test_y.astype(to),
        }
        if self.train_client is not None:
            arrays["train_client"] = self.train_client.astype(np.int64)
        if self.unlabelled_x is not None:
            arrays["unlabelled_x"] = self.unlabelled_x
        return {name: hashlib.sha256(np.ascontiguousarray(array).data).hexdigest() for name, array in arrays.items()}

    @property
    def checksum(self) -> str:
        """SHA-256 of the hexadecimal digests in `digests`, one after the other."""
        return hashlib.sha256("".join(self.digests.values()).encode()).hexdigest()


@dataclass(frozen=True)
class Images:
    """Square images of one size, with the statistics that they are normalised by."""

    pixels: Tensor | Pictures
    """``[n, 3, H, H]`` uint8 pixels: a tensor, or `Pictures` that are read from files when they are needed."""
    mean: Tensor
    """``[3, 1, 1]`` mean per channel, of pixels in [0, 1]."""
    std: Tensor
    """``[3, 1, 1]`` standard deviation per channel, of pixels in [0, 1]."""

    def __len__(self) -> int:
        return len(self.pixels)

    def ahead(self, rows: Tensor) -> None:
        """Start to decode the images at `rows`, which are needed next, if they are in files."""
        if not isinstance(self.pixels, Tensor):
            self.pixels.ahead(rows)

    def normalise(self, images: Tensor) -> Tensor:
        """Return float images ``[..., 3, H, H]`` in [0, 1] after normalisation."""
        return (images - self.mean.to(images.dtype)) / self.std.to(images.dtype)

    def restore(self, images: Tensor) -> Tensor:
        """Return normalised images ``[..., 3, H, H]`` as images in [0, 1]; the inverse of `normalise`."""
        return images * self.std.to(images.dtype) + self.mean.to(images.dtype)

    def plain(self, rows: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the images at `rows`, normalised but not augmented, as evaluation uses them: ``[n, 3, H, H]``."""
        return self.normalise(self.pixels[rows].to(dtype).div_(255.0))

    def augmented(self, pixels: Tensor, views: ViewParameters, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return normalised views ``[V, C, B, 3, H, H]`` of uint8 `pixels` ``[C, B, 3, H, H]``, as used in training."""
        return augment(pixels, views, self.mean, self.std, dtype)

    def to(self, device: torch.device) -> Images:
        """Return these images on another device."""
        return Images(self.pixels.to(device), self.mean.to(device), self.std.to(device))


@dataclass(frozen=True)
class Dataset:
    """Training and test images; self-supervised training needs labels for partition and evaluation only.

    Training images come in this order: those with labels, those without, and those of an auxiliary data set. If there
    are any without labels, clients hold these, and those with labels serve evaluation alone: as the kNN bank, and for
    probes to be trained on.
    """

    name: str
    origin: str
    """Description, for people, of where the data set came from."""
    checksum: str
    """SHA-256 of the arrays that it was made from, before any resizing; of the names and sizes of files, if pictures
    are decoded when they are needed."""
    classes: tuple[str, ...]
    """Name of the class of each label."""
    train: Images
    train_labels: Tensor
    """``[n]`` int64 labels of the training images that have some, which come first."""
    test: Images
    test_labels: Tensor
    """``[n]`` int64 labels of the test images."""
    train_client: np.ndarray | None = None
    """``[n]`` int64 client that each of the images at the rows `held` belongs to, on the host; None where that is not
    known."""
    unlabelled: int = 0
    """Number of training images without labels."""
    auxiliary: int = 0
    """Number of training images of another data set, which come last: clients may hold them, and nothing is evaluated
    on them."""
    validation: float = 0.0
    """Share of the labelled training images that are held out, and are the test images (`simsfl.data.validation`)."""
    listing: str | None = None
    """SHA-256 of the names of the files, if images stay in their files: it stays the same when one of them is mended,
    which changes the checksum with the file's size. None if the images were read at once."""

    @property
    def held(self) -> range:
        """Rows of the training images that are divided among clients, besides the auxiliary ones."""
        labelled = len(self.train_labels)
        return range(labelled, labelled + self.unlabelled) if self.unlabelled else range(labelled)

    @property
    def image_size(self) -> int:
        """Height and width of every image, in pixels."""
        return self.train.pixels.shape[-1]

    def to(self, device: torch.device) -> Dataset:
        """Return this data set on another device."""
        return replace(
            self,
            train=self.train.to(device),
            train_labels=self.train_labels.to(device),
            test=self.test.to(device),
            test_labels=self.test_labels.to(device),
        )


def make_dataset(
    name: str,
    origin: str,
    arrays: Arrays,
    *,
    image_size: int | None = None,
    statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
) -> Dataset:
    """Return the data set of tensors that is made from arrays, on the CPU.

    Args:
        name: name of the data set, for errors and records.
        origin: description, for people, of where it came from.
        arrays: images and labels.
        image_size: height and width that images are resized to (antialiased, middle square); None keeps their size.
        statistics: mean and standard deviation per channel; None measures them on the training images, also on those
            without labels.

    Raises:
        ValueError: an array is not as `Arrays` describes it, the images are too small, or not square, and no
            `image_size` is given, or they do not fit into memory at this size.
    """
    _check(name, arrays, image_size)
    height, width = arrays.train_x.shape[1:3]
    unlabelled = [] if arrays.unlabelled_x is None else [arrays.unlabelled_x]
    if image_size is None and min(height, width) < SMALLEST:
        raise ValueError(f"dataset: {name} has images of {height}x{width}; give --image-size {SMALLEST} or more")
    if image_size is None and height != width:
        raise ValueError(f"dataset: {name} has images of {height}x{width}; give --image-size to make them square")
    if image_size is not None and (height, width) != (image_size, image_size):
        count = sum(map(len, (arrays.train_x, arrays.test_x, *unlabelled)))
        check_memory(name, count, image_size, image_size)
    train = resized([arrays.train_x, *unlabelled], image_size)
    test = resized([arrays.test_x], image_size)
    mean, std = (torch.tensor(s).view(3, 1, 1) for s in statistics or measure(train))
    return Dataset(
        name,
        origin,
        arrays.checksum,
        arrays.classes,
        train=Images(train, mean, std),
        train_labels=torch.from_numpy(arrays.train_y.astype(np.int64)),
        test=Images(test, mean, std),
        test_labels=torch.from_numpy(arrays.test_y.astype(np.int64)),
        train_client=arrays.train_client,
        unlabelled=sum(map(len, unlabelled)),
    )


def _check(name: str, arrays: Arrays, image_size: int | None) -> None:
    """Raise a ValueError unless arrays are as `Arrays` describes them, and fit together; see `make_dataset`."""
    train, held = arrays.train_x, len(arrays.train_x if arrays.unlabelled_x is None else arrays.unlabelled_x)
    for what in ("train_x", "test_x", "unlabelled_x"):
        images, wrong = getattr(arrays, what), None
        if images is None:
            continue
        if not isinstance(images, np.ndarray):
            wrong = f"{kind_of(images)}; allowed: a uint8 array of shape (n, height, width, 3)"
        elif images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape:
            wrong = f"{images.dtype} of shape {images.shape}; allowed: uint8 of shape (n, height, width, 3)"
        elif image_size is None and images.shape[1:] != train.shape[1:]:
            sizes = ("{}x{}".format(*one.shape[1:3]) for one in (images, train))
            wrong = "images of {}, and train_x of {}; allowed: one size, or an image_size".format(*sizes)
        if wrong:
            raise ValueError(f"dataset: {what} of {name} has {wrong}")
    labels = {"train_y": (len(train), len(arrays.classes)), "test_y": (len(arrays.test_x), len(arrays.classes))}
    owners = {} if arrays.train_client is None else {"train_client": (held, held)}
    for what, (count, bound) in (labels | owners).items():
        values, wrong = getattr(arrays, what), None
        if not isinstance(values, np.ndarray):
            wrong = f"{kind_of(values)}; allowed: an array of integers of shape ({count},)"
        elif values.dtype.kind not in "iu" or values.shape != (count,):
            wrong = f"{values.dtype} of shape {values.shape}; allowed: integers of shape ({count},)"
        elif values.min() < 0 or values.max() >= bound:
            outside = values.min() if values.min() < 0 else values.max()
            wrong = f"the value {outside}; allowed: 0 to {bound - 1}"
        if wrong:
            raise ValueError(f"dataset: {what} of {name} has {wrong}")


def check_memory(name: str, images: int, height: int, width: int) -> None:
    """Raise a ValueError if images do not fit into the free memory, before they are read or scaled.

    Args:
        name: name of the data set.
        images: number of images, of 3 bytes a pixel.
        height: height of each, in pixels.
        width: width of each, in pixels.
    """
    size, free = images * height * width * 3, free_memory()
    if size > free:
        raise ValueError(
            f"dataset: {name} takes {size / 1e9:,.1f} GB at {height}x{width}, and {free / 1e9:,.1f} GB of memory are "
            "free; allowed: fewer or smaller images, or a directory of pictures with --stream always"
        )


def check_dataset(found: Dataset, by: str | None = None) -> None:
    """Raise a ValueError unless something that was given, or that a function of a plugin has returned, is a data set.

    Args:
        found: the thing.
        by: the name of the function; None if it was given.
    """
    if not isinstance(found, Dataset):
        what = f"{by} returns {kind_of(found)}" if by else f"{type(found).__name__} is no Dataset"
        raise ValueError(f"dataset: {what}; allowed: what simsfl.extend.make_dataset or from_torchvision returns")


def with_auxiliary(data: Dataset, other: Dataset) -> Dataset:
    """Return `data` with the images that clients of `other` would hold, normalised by the statistics of `data`.

    Raises:
        ValueError: the images of the two differ in size, or one of the two is too large to be read whole.
    """
    if data.image_size != other.image_size:
        sizes = (f"{one.name} has images of {one.image_size}x{one.image_size}" for one in (other, data))
        raise ValueError(f"aux_dataset: {', '.join(sizes)}; allowed: one size, give --image-size")
    both = []
    for one in (data, other):
        if not isinstance(one.train.pixels, Tensor):
            raise ValueError(f"aux_dataset: {one.name} is too large to be read whole; allowed: --stream never")
        both.append(one.train.pixels)
    pixels = torch.cat([both[0], both[1][other.held.start : other.held.stop]])
    return replace(
        data,
        origin=f"{data.origin}, with the {len(other.held):,} images of {other.name} ({other.origin})",
        checksum=hashlib.sha256((data.checksum + other.checksum).encode()).hexdigest(),
        train=replace(data.train, pixels=pixels),
        auxiliary=len(other.held),
    )


def numbered(
    whose: str, train: tuple[str, np.ndarray], test: tuple[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Return training and test labels that are renumbered without gaps, and the names of the classes: the old numbers.

    Args:
        whose: name or path of the data set, for errors.
        train: what the training labels are called, and these, ``[n]`` integers.
        test: the same of the test labels.

    Raises:
        ValueError: a training label is below 0, or a test label does not occur in training.
    """
    classes = np.unique(train[1])
    if classes[0] < 0:
        raise ValueError(f"dataset: {whose}: {train[0]} has label {classes[0]}; labels must be 0 or more")
    if len(strange := np.setdiff1d(test[1], classes)):
        raise ValueError(f"dataset: {whose} has label {strange[0]} in {test[0]} that does not occur in {train[0]}")
    return np.searchsorted(classes, train[1]), np.searchsorted(classes, test[1]), tuple(map(str, classes))


def planes(images: np.ndarray) -> Tensor:
    """Return a uint8 array ``[n, H, W, 3]`` of images as a uint8 tensor ``[n, 3, H, W]``."""
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def resized(images: Sequence[np.ndarray], size: int | None) -> Tensor:
    """Return the images in uint8 arrays ``[n, H, W, 3]``, one after the other, scaled as by `resize`.

    The result is ``[total, 3, size, size]`` uint8. They are scaled in parts, so that no second copy is in memory.
    """
    first, parts = images[0], [part for array in images for part in _parts(array)]
    shape = (size, size) if size else first.shape[1:3]
    pixels = torch.empty(sum(map(len, images)), 3, *shape, dtype=torch.uint8)
    for to, part in zip(pixels.split([len(part) for part in parts]), parts, strict=True):
        to.copy_(resize(planes(part), size))
    return pixels


def _parts(array: np.ndarray) -> list[np.ndarray]:
    """Return an array in parts of `_PART` rows, as views."""
    return [array[start : start + _PART] for start in range(0, len(array), _PART)]


def resize(pixels: Tensor, size: int | None) -> Tensor:
    """Scale the shorter side of uint8 images ``[n, 3, H, W]`` to `size` and cut out the middle square.

    The result is ``[n, 3, size, size]`` uint8; if `size` is None, the images are returned unchanged. Interpolation is
    done in float and rounded at the end, because interpolation of bytes differs between versions of PyTorch.
    """
    if size is None or pixels.shape[-2:] == (size, size):
        return pixels
    height, width = pixels.shape[-2:]
    scaled = [max(size, size * side // min(height, width)) for side in (height, width)]
    top, left = (round((side - size) / 2) for side in scaled)
    parts = [
        interpolate(part.float(), scaled, mode="bilinear", antialias=True)[..., top : top + size, left : left + size]
        for part in pixels.split(_PART)
    ]
    return torch.cat([part.round_().clamp_(0, 255).to(torch.uint8) for part in parts])


def measure(pixels: Tensor) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation per channel of uint8 images ``[n, 3, H, W]``, with pixels scaled to [0, 1].

    They come from the histogram of byte values, so they are exact and need no float copy of the images.
    """
    counts = torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in pixels.transpose(0, 1)])
    weights = counts.double() / counts.sum(dim=1, keepdim=True)
    value = torch.arange(256, dtype=torch.float64) / 255
    mean = weights @ value
    std = (weights @ value**2 - mean**2).clamp(min=1e-8).sqrt()
    return mean.tolist(), std.tolist()
