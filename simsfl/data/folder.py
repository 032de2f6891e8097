"""Data sets that are directories of pictures (`simsfl.data.listing` says in which layouts).

Small ones are read whole. The pictures of larger ones stay in their files, and threads decode them shortly before a
step needs them. The images are the same in both cases.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from simsfl.data import Arrays, Dataset, Images, check_memory, make_dataset, measure, planes
from simsfl.data.listing import checksums, list_pictures, list_unlabelled
from simsfl.data.picture import read_picture
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
            self._workers.submit(read_picture, Path(file), self.shape[-1]) for file in files
        ]

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Return the images at `rows` as uint8 ``[*rows.shape, 3, H, H]``.

        Raises:
            PictureError: a file is not a readable image.
        """
        key = np.array(rows.flatten().tolist()).tobytes()
        if key not in self._coming:
            self.ahead(rows)
        images = planes(np.stack([future.result() for future in self._coming.pop(key)]))
        return images.unflatten(0, rows.shape).to(self.device)

    def to(self, device: torch.device) -> Pictures:
        """Return the same images, which indexing puts onto another device."""
        return Pictures(self.files, self.shape[-1], device)


def read_folder(
    path: Path, name: str, *, image_size: int | None, stream: str, statistics: Statistics | None = None
) -> Dataset:
    """Return the data set in a directory of pictures, with tensors on the CPU.

    Args:
        path: the directory, in ImageFolder layout or that of Tiny-ImageNet-200.
        name: name of the data set.
        image_size: height and width of the images; `_DEFAULT_SIZE` if None.
        stream: whether pictures are decoded only when they are needed: "always", "never", or "auto", which does so if
            the data set would take more than `_SHARE_OF_MEMORY`.
        statistics: mean and standard deviation per channel; measured if None.

    Raises:
        ValueError: a split is missing or empty, the classes differ, an image cannot be read, or all images are to be
            read at once and do not fit into memory.
    """
    size = image_size or _DEFAULT_SIZE
    (train, test), unlabelled = list_pictures(path), list_unlabelled(path)
    training, count = [*train.files, *unlabelled], len(train.files) + len(test.files) + len(unlabelled)
    origin = f"directory {path}"
    sample = np.linspace(0, len(training) - 1, min(MEASURED, len(training))).astype(np.int64)
    total = count * 3 * size**2
    if stream == "never":
        check_memory(str(path), count, size, size)
    if stream == "never" or (stream == "auto" and total <= _SHARE_OF_MEMORY * free_memory()):
        pixels = _read_all(training, size)
        labelled, others = pixels[: len(train.files)], pixels[len(train.files) :]
        arrays = Arrays(
            labelled,
            train.labels,
            _read_all(test.files, size),
            test.labels,
            train.classes,
            unlabelled_x=others if unlabelled else None,
        )
        statistics = statistics or measure(torch.from_numpy(pixels[sample]).permute(0, 3, 1, 2))
        return make_dataset(name, origin, arrays, image_size=size, statistics=statistics)
    pictures = [Pictures(files, size) for files in (training, test.files)]
    if statistics is None:
        parts = torch.from_numpy(sample).split(100)
        statistics = measure(torch.cat([pictures[0][part] for part in watched(parts, f"Measuring {path}")]))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in statistics)
    checksum, listing = checksums(path, chain(train.files, test.files, unlabelled))
    return Dataset(
        name,
        f"{origin}, decoded as it is needed",
        checksum,
        train.classes,
        train=Images(pictures[0], mean, std),
        train_labels=torch.from_numpy(train.labels),
        test=Images(pictures[1], mean, std),
        test_labels=torch.from_numpy(test.labels),
        unlabelled=len(unlabelled),
        listing=listing,
    )


def _read_all(files: Sequence[str], size: int) -> np.ndarray:
    """Return the images in files as uint8 ``[n, H, H, 3]``."""
    images = np.empty((len(files), size, size, 3), dtype=np.uint8)
    for row, file in enumerate(watched(files, f"Reading {Path(files[0]).parent.parent}")):
        images[row] = read_picture(Path(file), size)
    return images
