"""Data sets of the user's own: an ``.npz`` file, or a directory in ImageFolder layout."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track

from simsfl.data import ARRAYS, Arrays

DEFAULT_FOLDER_SIZE = 32
"""Height and width that a folder's images are brought to where no image size is asked for."""


def read_npz(path: Path) -> Arrays:
    """``train_x train_y test_x test_y``: uint8 ``[n, H, W, 3]`` or ``[n, H, W, 1]``, integer labels.

    Raises:
        ValueError: the file cannot be read, or an array is missing or not as described.
    """
    if not zipfile.is_zipfile(path):
        raise ValueError(f"dataset: {path} is not a whole .npz file; allowed: what numpy.savez writes")
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {key: file[key] for key in ARRAYS if key in file}
            held = ", ".join(file.files) or "nothing"
    except Exception as error:  # a damaged or foreign file can raise anything
        raise ValueError(f"dataset: {path} cannot be read as arrays of plain numbers ({error})") from error
    missing = [key for key in ARRAYS if key not in arrays]
    if missing:
        raise ValueError(f"dataset: {path} lacks {', '.join(missing)}; it has {held}, and needs {', '.join(ARRAYS)}")
    for key, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise ValueError(f"dataset: {path}: {key} is no array")
    for split in ("train", "test"):
        check_split(path, split, arrays[f"{split}_x"], arrays[f"{split}_y"])
    if arrays["train_x"].shape[1:] != arrays["test_x"].shape[1:]:
        raise ValueError(
            f"dataset: {path} has train_x of {arrays['train_x'].shape[1:]} but test_x of "
            f"{arrays['test_x'].shape[1:]} an image; they must be alike"
        )
    strange = np.setdiff1d(arrays["test_y"], arrays["train_y"])
    if len(strange):
        raise ValueError(f"dataset: {path} has label {strange[0]} in test_y that does not occur in train_y")
    names = np.unique(arrays["train_y"])
    return Arrays(
        as_rgb(arrays["train_x"]),
        np.searchsorted(names, arrays["train_y"]),
        as_rgb(arrays["test_x"]),
        np.searchsorted(names, arrays["test_y"]),
        tuple(str(name) for name in names),
    )


def check_split(path: Path, split: str, images: np.ndarray, labels: np.ndarray) -> None:
    """Raise a ValueError that names what is wrong with one split's arrays."""
    wrong = None
    if images.dtype != np.uint8:
        wrong = f"{split}_x has dtype {images.dtype}; it must be uint8"
    elif images.ndim != 4 or images.shape[3] not in (1, 3):
        wrong = f"{split}_x has shape {images.shape}; it must be (n, height, width, 3)"
    elif 0 in images.shape:
        wrong = f"{split}_x has shape {images.shape}; it must not be empty"
    elif not np.issubdtype(labels.dtype, np.integer):
        wrong = f"{split}_y has dtype {labels.dtype}; labels must be integers"
    elif labels.ndim != 1:
        wrong = f"{split}_y has shape {labels.shape}; it must be (n,)"
    elif len(labels) != len(images):
        wrong = f"{split}_y has {len(labels)} labels for {len(images)} images; the lengths must agree"
    elif labels.min() < 0:
        wrong = f"{split}_y has label {labels.min()}; labels must be 0 or more"
    if wrong:
        raise ValueError(f"dataset: {path}: {wrong}")


def as_rgb(images: np.ndarray) -> np.ndarray:
    """Gray images repeated over three channels."""
    return np.repeat(images, 3, axis=3) if images.shape[3] == 1 else images


def read_folder(path: Path, image_size: int | None) -> Arrays:
    """``train/CLASS/*`` and ``test/CLASS/*`` (or ``val``), scaled and cut to squares of `image_size`.

    Raises:
        ValueError: a split is missing or empty, the classes differ, or an image cannot be read.
    """
    size = image_size or DEFAULT_FOLDER_SIZE
    test = next((path / name for name in ("test", "val") if (path / name).is_dir()), None)
    if not (path / "train").is_dir() or test is None:
        raise ValueError(f"dataset: {path} must hold the directories train/ and test/ (or val/), one per class in each")
    train_x, train_y, classes = read_split(path / "train", size)
    test_x, test_y, test_classes = read_split(test, size)
    if classes != test_classes:
        odd = sorted(set(classes) ^ set(test_classes))[0]
        raise ValueError(f"dataset: class {odd!r} is only in one of {path / 'train'} and {test}")
    return Arrays(train_x, train_y, test_x, test_y, tuple(classes))


def read_split(path: Path, size: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Images, labels and class names of one split, in ImageFolder's order."""
    from torchvision.datasets import ImageFolder  # noqa: PLC0415  (takes a second to import)

    try:
        folder = ImageFolder(str(path))
    except FileNotFoundError as error:
        raise ValueError(f"dataset: {path} must hold one directory per class with at least one image each") from error
    images = np.empty((len(folder), size, size, 3), dtype=np.uint8)
    console = Console(stderr=True)
    samples = track(folder.samples, f"Reading {path}", console=console, transient=True, disable=not console.is_terminal)
    for row, (name, _) in enumerate(samples):
        images[row] = read_image(Path(name), size)
    return images, np.array(folder.targets), folder.classes


def read_image(path: Path, size: int) -> np.ndarray:
    """One image, its shorter side scaled to `size`, the middle square of it."""
    try:
        with Image.open(path) as file:
            image = as_8_bit(file).convert("RGB")
    except Exception as error:  # a damaged or foreign file can raise anything
        raise ValueError(f"dataset: {path} is not a readable image ({error})") from error
    scale = size / min(image.size)
    scaled = image.resize([max(size, round(side * scale)) for side in image.size], Image.Resampling.BILINEAR)
    left, top = ((side - size) // 2 for side in scaled.size)
    return np.asarray(scaled.crop((left, top, left + size, top + size)))


def as_8_bit(image: Image.Image) -> Image.Image:
    """Gray images of 16 bits scaled down, which Pillow's own conversion would cut off; others as they are."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
