"""Data sets that are directories of pictures: ImageFolder trees, and Tiny-ImageNet-200 in the layout of its archive.

Small ones are read whole. The pictures of larger ones stay in their files and are decoded when a step needs them, by
threads that work ahead; the images are the same either way.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from simsfl.data import Arrays, Dataset, Images, make_dataset, measure, planes
from simsfl.system.memory import free_memory
from simsfl.system.progress import watched

_DEFAULT_SIZE = 32
"""Height and width that pictures are resized to if no image size is given."""
MEASURED = 10_000
"""Training images that the statistics of a data set are measured on, at most."""
_SHARE_OF_MEMORY = 0.25
"""Share of the free memory that a data set may take; a larger one is not read whole."""

Statistics = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation, each per channel."""


@dataclass(frozen=True)
class _Listing:
    """The files of one split of a data set, with their labels."""

    files: list[str]
    """Path of each of n pictures."""
    labels: np.ndarray
    """``[n]`` integer labels."""
    classes: tuple[str, ...]
    """Name of the class of each label."""


class Pictures:
    """Images in files, indexed like a uint8 tensor ``[n, 3, H, H]``.

    Args:
        files: path of the file of each image.
        size: H; the shorter side of a picture is scaled to it, and the middle square cut out.
        device: device of the tensors that indexing returns.
    """

    def __init__(self, files: Sequence[str], size: int, device: torch.device | str = "cpu"):
        self.files, self.device = files, torch.device(device)
        self.shape = torch.Size((len(files), 3, size, size))
        self._workers = ThreadPoolExecutor(max(2, os.cpu_count() or 2), thread_name_prefix="decode")
        self._coming: dict[bytes, list[Future[np.ndarray]]] = {}

    def __len__(self) -> int:
        return len(self.files)

    def ahead(self, rows: Tensor) -> None:
        """Start to decode the images at `rows` in threads; indexing with the same rows later takes the results."""
        wanted = rows.flatten().tolist()
        files = [self.files[row] for row in wanted]
        self._coming[np.array(wanted).tobytes()] = [
            self._workers.submit(read_image, Path(file), self.shape[-1]) for file in files
        ]

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Return the images at `rows` as uint8 ``[*rows.shape, 3, H, H]``.

        Raises:
            ValueError: a file is not a readable image.
        """
        key = np.array(rows.flatten().tolist()).tobytes()
        if key not in self._coming:
            self.ahead(rows)
        images = planes(np.stack([future.result() for future in self._coming.pop(key)]))
        return images.unflatten(0, rows.shape).to(self.device)

    def to(self, device: torch.device) -> Pictures:
        """Return these images for another device."""
        return Pictures(self.files, self.shape[-1], device)


def read_folder(
    path: Path, name: str, *, image_size: int | None, stream: str, statistics: Statistics | None = None
) -> Dataset:
    """Read a data set from a directory of pictures, onto the CPU.

    Args:
        path: the directory, in ImageFolder layout or that of Tiny-ImageNet-200.
        name: name of the data set.
        image_size: height and width of the images; `_DEFAULT_SIZE` if None.
        stream: whether pictures are decoded only when they are needed: "always", "never", or "auto", which does so if
            the data set would take more than `_SHARE_OF_MEMORY`.
        statistics: mean and standard deviation per channel; measured if None.

    Raises:
        ValueError: a split is missing or empty, the classes differ, or an image cannot be read.
    """
    size = image_size or _DEFAULT_SIZE
    train, test = _tiny_imagenet(path) if (path / "val" / "val_annotations.txt").is_file() else _image_folder(path)
    origin = f"directory {path}"
    sample = np.linspace(0, len(train.files) - 1, min(MEASURED, len(train.files))).astype(np.int64)
    total = (len(train.files) + len(test.files)) * 3 * size**2
    if stream == "never" or (stream == "auto" and total <= _SHARE_OF_MEMORY * free_memory()):
        arrays = Arrays(*_read_all(train, size), *_read_all(test, size), train.classes)
        statistics = statistics or measure(torch.from_numpy(arrays.train_x[sample]).permute(0, 3, 1, 2))
        return make_dataset(name, origin, arrays, image_size=size, statistics=statistics)
    pictures = [Pictures(split.files, size) for split in (train, test)]
    if statistics is None:
        parts = torch.from_numpy(sample).split(100)
        statistics = measure(torch.cat([pictures[0][part] for part in watched(parts, f"Measuring {path}")]))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in statistics)
    files = [*train.files, *test.files]
    return Dataset(
        name,
        f"{origin}, decoded as it is needed",
        _listing_checksum(path, files, sizes=True),
        train.classes,
        train=Images(pictures[0], mean, std),
        train_labels=torch.from_numpy(train.labels),
        test=Images(pictures[1], mean, std),
        test_labels=torch.from_numpy(test.labels),
        listing=_listing_checksum(path, files, sizes=False),
    )


def _image_folder(path: Path) -> tuple[_Listing, _Listing]:
    """List the training and test pictures of a directory: ``train/CLASS/*``, and ``test/CLASS/*`` or ``val/CLASS/*``.

    Raises:
        ValueError: a split is missing or empty, or the classes of the two differ.
    """
    test = next((path / name for name in ("test", "val") if _has_directories(path / name)), None)
    if not (path / "train").is_dir() or test is None:
        raise ValueError(f"dataset: {path} must hold the directories train/ and test/ (or val/), one per class in each")
    listings = _list_split(path / "train"), _list_split(test)
    if listings[0].classes != listings[1].classes:
        odd = sorted(set(listings[0].classes) ^ set(listings[1].classes))[0]
        raise ValueError(f"dataset: class {odd!r} is only in one of {path / 'train'} and {test}")
    return listings


def _has_directories(path: Path) -> bool:
    """Return whether a directory holds others; ImageNet's test/ does not, because its pictures have no labels."""
    return path.is_dir() and any(child.is_dir() for child in path.iterdir())


def _list_split(path: Path) -> _Listing:
    """List the pictures of one split in the order of torchvision's ImageFolder.

    Raises:
        ValueError: there is no class, or a class without an image.
    """
    from torchvision.datasets import ImageFolder  # noqa: PLC0415  (takes a second to import)

    try:
        folder = ImageFolder(str(path))
    except FileNotFoundError as error:
        raise ValueError(f"dataset: {path} must hold one directory per class with at least one image each") from error
    return _Listing([file for file, _ in folder.samples], np.array(folder.targets), tuple(folder.classes))


def _tiny_imagenet(path: Path) -> tuple[_Listing, _Listing]:
    """List the training and validation pictures of Tiny-ImageNet-200.

    Training pictures are ``train/WNID/images/*``. Validation pictures are in one directory, and their classes in the
    file ``val/val_annotations.txt``.

    Raises:
        ValueError: that file names no image, or a class that does not occur in training.
    """
    train = _list_split(path / "train")
    annotations = path / "val" / "val_annotations.txt"
    files, labels = [], []
    for number, line in enumerate(annotations.read_text(encoding="utf-8").splitlines(), start=1):
        file, _, rest = line.partition("\t")
        wnid = rest.partition("\t")[0]
        if wnid not in train.classes:
            raise ValueError(f"dataset: {annotations}, line {number}: class {wnid!r} is not in {path / 'train'}")
        files.append(str(path / "val" / "images" / file))
        labels.append(train.classes.index(wnid))
    if not files:
        raise ValueError(f"dataset: {annotations} names no image")
    return train, _Listing(files, np.array(labels), train.classes)


def _read_all(split: _Listing, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the images of a split as uint8 ``[n, H, H, 3]``, and its labels ``[n]``."""
    images = np.empty((len(split.files), size, size, 3), dtype=np.uint8)
    for row, file in enumerate(watched(split.files, f"Reading {Path(split.files[0]).parent.parent}")):
        images[row] = read_image(Path(file), size)
    return images, split.labels


def _listing_checksum(path: Path, files: Sequence[str], *, sizes: bool) -> str:
    """Return the SHA-256 of the files' names, relative to `path`, and if asked for their sizes.

    To read all files would take too long.
    """
    lines = (f"{os.path.relpath(file, path)}{f' {Path(file).stat().st_size}' if sizes else ''}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def read_image(path: Path, size: int) -> np.ndarray:
    """Read an image as uint8 ``[size, size, 3]``: the middle square, after the shorter side is scaled to `size`.

    Raises:
        ValueError: the file is not a readable image.
    """
    try:
        with Image.open(path) as file:
            image = _as_8_bit(file).convert("RGB")
    except Exception as error:  # a damaged or foreign file can raise anything
        raise ValueError(f"dataset: {path} is not a readable image ({error})") from error
    scale = size / min(image.size)
    scaled = image.resize([max(size, round(side * scale)) for side in image.size], Image.Resampling.BILINEAR)
    left, top = ((side - size) // 2 for side in scaled.size)
    return np.asarray(scaled.crop((left, top, left + size, top + size)))


def _as_8_bit(image: Image.Image) -> Image.Image:
    """Return gray images of 16 bits scaled to 8, where Pillow's own conversion would clip them; others unchanged."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
