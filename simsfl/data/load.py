"""One entrance to every data set: a name, a file or a directory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from simsfl.config import DATASETS
from simsfl.data import Dataset, make_dataset, with_auxiliary
from simsfl.data.folder import read_folder
from simsfl.data.npz import read_npz
from simsfl.data.shapes import shapes
from simsfl.data.sources import SOURCES, Unavailable, fetch
from simsfl.system.messages import shortened, unknown

FOLDERS = {
    "tiny-imagenet": ("tiny-imagenet-200", 64, ((0.5141, 0.5775, 0.3985), (0.2927, 0.2570, 0.1434))),
    "imagenet12": ("imagenet-12", 224, ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))),
    "imagenet": ("imagenet", 224, ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))),
}
"""Public sets that are directories: the name they have in `data_dir`, image size, and the published statistics."""


def load_dataset(
    name: str,
    *,
    data_dir: str | Path = "data",
    image_size: int | None = None,
    seed: int = 0,
    stream: str = "auto",
    auxiliary: str | None = None,
) -> Dataset:
    """Load a data set onto the CPU.

    Args:
        name: one of `DATASETS`, the path of an ``.npz`` file, or that of a directory in ImageFolder layout.
            "auto" is CIFAR-10, or the built-in shapes where CIFAR-10 cannot be had.
        data_dir: where torchvision's files may lie.
        image_size: resize to this height and width; None keeps the data set's own.
        seed: of the built-in set.
        stream: "always" or "never" decode the pictures of a directory when they are needed; "auto" where there are
            too many to read them all.
        auxiliary: another data set, whose training images are put behind this one's.

    Raises:
        ValueError: no such data set, not to be had, or not as it should be.
    """
    if auxiliary is not None:
        data = load_dataset(name, data_dir=data_dir, image_size=image_size, seed=seed, stream=stream)
        try:
            other = load_dataset(auxiliary, data_dir=data_dir, image_size=image_size, seed=seed, stream=stream)
        except ValueError as error:
            raise ValueError(str(error).replace("dataset:", "aux_dataset:", 1)) from error
        return with_auxiliary(data, other)
    if name == "shapes":
        return make_dataset(name, "built in, drawn from the seed", shapes(seed), image_size=image_size)
    if name in SOURCES or name == "auto":
        return load_public(name, Path(data_dir), image_size, seed)
    if name in FOLDERS:
        directory, size, statistics = FOLDERS[name]
        path = Path(data_dir) / directory
        if not path.is_dir():
            raise ValueError(f"dataset: {name} must lie in {path}, which there is not; allowed: another --data-dir")
        data = read_folder(path, name, image_size=image_size or size, stream=stream, statistics=statistics)
        if name == "imagenet12" and len(data.classes) != 12:
            raise ValueError(f"dataset: {path} has {len(data.classes)} classes; allowed: 12")
        return data
    path = Path(name)
    try:
        local = str(path.resolve(strict=True))  # absolute, for a run is resumed from anywhere
    except OSError:
        local = None
    if local and path.is_dir():
        return read_folder(path, local, image_size=image_size, stream=stream)
    if local and path.is_file():
        return make_dataset(local, f"file {path}", read_npz(path), image_size=image_size)
    if path.suffix == ".npz" or len(path.parts) > 1:
        raise ValueError(f"dataset: there is no file or directory {shortened(name)}; allowed: the path of one")
    raise unknown("dataset", name, DATASETS, also="the path of an .npz file or of an ImageFolder directory")


def load_public(name: str, data_dir: Path, image_size: int | None, seed: int) -> Dataset:
    """A data set of `SOURCES`; for "auto" CIFAR-10, with the built-in set to fall back on."""
    wanted = "cifar10" if name == "auto" else name
    try:
        arrays, origin = fetch(wanted, data_dir)
    except Unavailable as error:
        if name != "auto":
            raise ValueError(f"dataset: {wanted} could not be had ({error})") from error
        fallback = load_dataset("shapes", image_size=image_size, seed=seed)
        return replace(fallback, origin=f"built in, because CIFAR-10 could not be had ({error})")
    source = SOURCES[wanted]
    return make_dataset(wanted, origin, arrays, image_size=image_size, statistics=(source.mean, source.std))
