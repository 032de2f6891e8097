"""Data sets of users and of MedMNIST, as arrays in an ``.npz`` file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from simsfl.data import ARRAYS, UNLABELLED, Arrays, check_memory, numbered
from simsfl.system.array_zip import ArrayZip, Header, NotArraysError
from simsfl.system.messages import count_text, shortened

_MEDMNIST = ("train_images", "train_labels", "test_images", "test_labels")
"""Names of the `ARRAYS` in files of MedMNIST, which have ``val_images`` and ``val_labels`` as well."""
_OWNERS = "train_client"
"""Name of the array that says whose the images are that clients hold."""
_WITHOUT_LABELS = tuple(f"{name}_x" for name in UNLABELLED)
"""Names of the array of training images without labels."""


_IMAGES = ("images", "train_x", "train_images", "test_x", "test_images", *_WITHOUT_LABELS)
"""Names that the array of images may have in a file of images alone, in the order in which they are looked for."""


def read_npz(path: Path) -> tuple[Arrays, str]:
    """Read a data set from a file with the arrays ``train_x``, ``train_y``, ``test_x`` and ``test_y``.

    Images are uint8 ``[n, H, W, 3]``, or ``[n, H, W]`` or ``[n, H, W, 1]`` if gray. Labels are integers ``[n]`` or
    ``[n, 1]`` from 0; they are renumbered without gaps, and the numbers in the file become the names of the classes.

    An array ``train_client``, which may be missing, says by an integer which client each training image belongs to, for
    ``--partition natural``. Clients are renumbered without gaps, in the order of these integers.

    An array ``unlabelled_x`` of images like the others, which may be missing, are training images without labels.
    Clients then hold these, and ``train_client`` is about them.

    A file of MedMNIST has the same under other names. Its validation images are not used, so that results can be
    compared with published ones, for which networks are trained on the training images alone.

    Returns:
        The arrays, and a description for people of where they come from.

    Raises:
        ValueError: the file cannot be read, an array is missing or not as described, training and test images differ in
            shape, a test label does not occur in training, or the images do not fit into memory.
    """
    try:
        file = ArrayZip(path, compressed=True)
        names = _names(path, file.names)
        unlabelled = next((name for name in _WITHOUT_LABELS if name in file.names), None)
        more = [(unlabelled, file.header(unlabelled))] if unlabelled else []
        _check(path, {names[key]: file.header(names[key]) for key in ARRAYS}, more)
        images, labels = (
            {split: file.array(names[f"{split}_{part}"]) for split in ("train", "test")} for part in ("x", "y")
        )
        if unlabelled:
            images["unlabelled"] = file.array(unlabelled)
        owners = _owners(path, file, len(images["unlabelled" if unlabelled else "train"]))
        unused = file.header("val_images").shape[0] if "val_images" in file.names else 0
    except NotArraysError as error:
        raise ValueError(f"dataset: {path} {error}; allowed: what numpy.savez writes") from error
    except OSError as error:
        raise ValueError(f"dataset: {path} cannot be read ({error.strerror}); allowed: an .npz file") from error
    split = ((names[f"{one}_y"], labels[one].reshape(-1)) for one in ("train", "test"))
    train_y, test_y, classes = numbered(str(path), *split)
    arrays = Arrays(
        _as_rgb(images["train"]),
        train_y,
        _as_rgb(images["test"]),
        test_y,
        classes,
        owners,
        _as_rgb(images["unlabelled"]) if unlabelled else None,
    )
    without = f", without its {count_text(unused, 'validation image')}" if unused else ""
    return arrays, f"file {path}{without}"


def read_images(path: Path) -> np.ndarray:
    """Return the images in a file, uint8 ``[n, H, W, 3]``: those of one of `_IMAGES`, or of its only array.

    Raises:
        ValueError: the file cannot be read, or holds no such images, or they do not fit into memory.
    """
    try:
        file = ArrayZip(path, compressed=True)
        name = next((name for name in (*_IMAGES, *file.names) if name in file.names), "")
        if name not in _IMAGES and len(file.names) != 1:
            has = shortened(", ".join(file.names) or "nothing")
            raise ValueError(f"{path} has {has}; allowed: images called {', '.join(_IMAGES)}, or a single array")
        if wrong := _wrong_images(name, file.header(name)):
            raise ValueError(f"{path}: {wrong}")
        check_memory(str(path), *file.header(name).shape[:3])
        return _as_rgb(file.array(name))
    except NotArraysError as error:
        raise ValueError(f"{path} {error}; allowed: what numpy.savez writes") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); allowed: an .npz file") from error


def _wrong_images(x: str, images: Header) -> str | None:
    """Return what is wrong with an array of images of the name `x`, None if nothing is."""
    if images.dtype != np.uint8:
        return f"{x} has dtype {images.dtype}; it must be uint8"
    if images.shape[3:] not in ((), (1,), (3,)) or len(images.shape) < 3 or images.shape[2:] == (3,):
        single = ", which is one image" if images.shape[2:] == (3,) else ""
        return f"{x} has shape {images.shape}{single}; it must be (n, height, width, 3), or (n, height, width) if gray"
    return f"{x} has shape {images.shape}; it must not be empty" if 0 in images.shape else None


def _owners(path: Path, file: ArrayZip, images: int) -> np.ndarray | None:
    """Return the client ``[n]`` that each image belongs to, from 0 without gaps; None if that is not said.

    Args:
        path: path of the file.
        file: the file.
        images: number of images that clients hold.

    Raises:
        ValueError: the array is not as `read_npz` describes it.
    """
    if _OWNERS not in file.names:
        return None
    try:
        header = file.header(_OWNERS)
    except NotArraysError as error:
        raise ValueError(
            f"dataset: {path} {error}; allowed: integers of shape ({images},), one for each training image that "
            "clients hold, as numpy.unique(names, return_inverse=True)[1] makes them of names"
        ) from error
    if header.dtype.kind not in "iu" or header.shape not in ((images,), (images, 1)):
        raise ValueError(
            f"dataset: {path}: {_OWNERS} has dtype {header.dtype} and shape {header.shape}; it must be integers of "
            f"shape ({images},), one for each training image that clients hold"
        )
    return np.unique(file.array(_OWNERS).reshape(-1), return_inverse=True)[1].reshape(-1).astype(np.int64)


def _names(path: Path, held: list[str]) -> dict[str, str]:
    """Return the names of the `ARRAYS` in a file that holds arrays of the names `held`.

    Raises:
        ValueError: an array is missing.
    """
    own = _MEDMNIST if set(_MEDMNIST) & set(held) and not set(ARRAYS) & set(held) else ARRAYS
    if missing := [name for name in own if name not in held]:
        has = shortened(", ".join(held) or "nothing")
        raise ValueError(f"dataset: {path} lacks {', '.join(missing)}; it has {has}, and needs {', '.join(own)}")
    return dict(zip(ARRAYS, own, strict=True))


def _check(path: Path, headers: dict[str, Header], unlabelled: list[tuple[str, Header]]) -> None:
    """Raise a ValueError that says what is wrong, unless arrays are as `read_npz` describes them.

    Args:
        path: path of the file.
        headers: what the four arrays are, by their names in the file, in the order of `ARRAYS`.
        unlabelled: name of the array of images without labels, and what it is, if there is one.
    """
    (train_x, train), train_labels, (test_x, test), test_labels = headers.items()
    for x, images in ((train_x, train), (test_x, test), *unlabelled):
        wrong = _wrong_images(x, images)
        if not wrong and images.shape[1:] != train.shape[1:]:
            wrong = f"{x} has images of {images.shape[1:]}, but {train_x} of {train.shape[1:]}; they must be alike"
        if wrong:
            raise ValueError(f"dataset: {path}: {wrong}")
    for images, (y, labels) in ((train, train_labels), (test, test_labels)):
        wrong = None
        if labels.dtype.kind not in "iu":
            wrong = f"{y} has dtype {labels.dtype}; labels must be integers"
        elif labels.shape[1:] not in ((), (1,)) or not labels.shape:
            wrong = f"{y} has shape {labels.shape}; it must be (n,), one label for each image"
        elif labels.shape[0] != images.shape[0]:
            wrong = f"{y} has {labels.shape[0]} labels for {images.shape[0]} images; the lengths must agree"
        if wrong:
            raise ValueError(f"dataset: {path}: {wrong}")
    count = train.shape[0] + test.shape[0] + sum(header.shape[0] for _, header in unlabelled)
    check_memory(str(path), count, *train.shape[1:3])


def _as_rgb(images: np.ndarray) -> np.ndarray:
    """Return images ``[n, H, W, 3]``; gray ones ``[n, H, W]`` or ``[n, H, W, 1]`` are repeated over three channels."""
    images = images if images.ndim == 4 else images[..., None]
    return np.repeat(images, 3, axis=3) if images.shape[3] == 1 else images
