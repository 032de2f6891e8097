"""Data sets of users, as arrays in an ``.npz`` file."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from simsfl.data import ARRAYS, Arrays


def read_npz(path: Path) -> Arrays:
    """Read a data set from a file with the arrays ``train_x``, ``train_y``, ``test_x`` and ``test_y``.

    Images are uint8 ``[n, H, W, 3]``, or ``[n, H, W, 1]`` if gray. Labels are integers ``[n]`` from 0; they are
    renumbered without gaps, and the numbers in the file become the names of the classes.

    Raises:
        ValueError: the file cannot be read, an array is missing or not as described, training and test images differ in
            shape, or a test label does not occur in training.
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
        _check_split(path, split, arrays[f"{split}_x"], arrays[f"{split}_y"])
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
        _as_rgb(arrays["train_x"]),
        np.searchsorted(names, arrays["train_y"]),
        _as_rgb(arrays["test_x"]),
        np.searchsorted(names, arrays["test_y"]),
        tuple(str(name) for name in names),
    )


def _check_split(path: Path, split: str, images: np.ndarray, labels: np.ndarray) -> None:
    """Raise a ValueError that says what is wrong unless the arrays of one split are as `read_npz` describes them."""
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


def _as_rgb(images: np.ndarray) -> np.ndarray:
    """Return images ``[n, H, W, 3]``; gray ones ``[n, H, W, 1]`` are repeated over three channels."""
    return np.repeat(images, 3, axis=3) if images.shape[3] == 1 else images
