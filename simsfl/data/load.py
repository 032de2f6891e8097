"""The entrance to every data set: a name, a file or a directory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from simsfl.config.catalogue import DATASETS, HUB
from simsfl.config.plugins import FROM_PLUGINS
from simsfl.data import Dataset, check_dataset, make_dataset, with_auxiliary
from simsfl.data.folder import read_folder
from simsfl.data.hub import read_hub
from simsfl.data.npz import read_npz
from simsfl.data.shapes import shapes
from simsfl.data.sources import CIFAR10, CIFAR100, STL10, STL10_UNLABELLED, SVHN, Source, Unavailable, fetch
from simsfl.system.messages import blaming, shortened, unknown


@dataclass(frozen=True)
class Request:
    """What a caller asks of a data set, besides its name."""

    data_dir: Path = Path("data")
    """Directory where files of public data sets are looked for."""
    image_size: int | None = None
    """Height and width that images are resized to; None keeps their own size."""
    seed: int = 0
    """Seed that the built-in shapes are drawn from."""
    stream: str = "auto"
    """When pictures in a directory are decoded: with "always" when they are needed, with "never" all at once, and with
    "auto" when they are needed if all at once would take too much memory."""


def load_dataset(
    name: str,
    *,
    data_dir: str | Path = "data",
    image_size: int | None = None,
    seed: int = 0,
    stream: str = "auto",
    auxiliary: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Dataset:
    """Load a data set onto the CPU.

    Args:
        name: one of `simsfl.config.catalogue.DATASETS`, the path of an ``.npz`` file, that of a directory in
            ImageFolder layout, or ``hf:NAME`` (`simsfl.data.hub`). "auto" is CIFAR-10, or the built-in shapes where
            CIFAR-10 is not available.
        data_dir: directory where files of public data sets are looked for.
        image_size: height and width that images are resized to; None keeps their own size.
        seed: seed that the built-in shapes are drawn from.
        stream: when the pictures of a directory are decoded; see `Request`.
        auxiliary: another data set, whose training images are appended to this one's.
        options: options of the data set, where it has any; the auxiliary one has them as usual.

    Raises:
        ValueError: there is no such data set, or it is not available, or damaged.
    """
    wanted = Request(Path(data_dir), image_size, seed, stream)
    data = _load(name, wanted, options or {})
    if auxiliary is None:
        return data
    with blaming("aux_dataset", for_="dataset"):
        return with_auxiliary(data, _load(auxiliary, wanted, {}))


def _load(name: str, wanted: Request, options: Mapping[str, Any]) -> Dataset:
    """Load one data set."""
    if name in DATASETS:
        code = DATASETS[name].code.load()
        found = (code(**options) if isinstance(code, type) else code)(wanted)
        check_dataset(found, name)
        return found if name == "auto" else replace(found, name=name)
    if name.startswith(HUB):
        arrays, name, origin = read_hub(name, wanted.image_size)
        return make_dataset(name, origin, arrays, image_size=wanted.image_size)
    path = Path(name)
    try:
        local = os.path.realpath(name, strict=True)  # absolute, so that a run can be resumed from anywhere
    except OSError as error:
        if path.suffix != ".npz" and len(path.parts) == 1:
            also = f"the path of an .npz file or ImageFolder directory, or hf:NAME, or {FROM_PLUGINS}"
            raise unknown("dataset", name, DATASETS, also=also) from error
        raise ValueError(
            f"dataset: there is no file or directory {shortened(name, 300)} ({error.strerror}); "
            "allowed: the path of one"
        ) from error
    if path.is_dir():
        return read_folder(path, local, image_size=wanted.image_size, stream=wanted.stream)
    if path.is_file():
        arrays, origin = read_npz(path)
        return make_dataset(local, origin, arrays, image_size=wanted.image_size)
    raise ValueError(f"dataset: {path} is neither a file nor a directory; allowed: an .npz file, or a directory")


def _public(source: Source, wanted: Request) -> Dataset:
    """Load a data set that torchvision knows.

    Raises:
        ValueError: the data set is not available from any source.
    """
    try:
        return _fetched(source, wanted)
    except Unavailable as error:
        raise ValueError(
            f"dataset: {source.key} is not available ({error}); allowed: another, such as shapes"
        ) from error


def _fetched(source: Source, wanted: Request) -> Dataset:
    """Load a data set that torchvision knows, or raise `Unavailable`."""
    arrays, origin = fetch(source, wanted.data_dir)
    statistics = source.mean, source.std
    return make_dataset(source.key, origin, arrays, image_size=wanted.image_size, statistics=statistics)


cifar10 = partial(_public, CIFAR10)
cifar100 = partial(_public, CIFAR100)
svhn = partial(_public, SVHN)
stl10 = partial(_public, STL10)
stl10_unlabelled = partial(_public, STL10_UNLABELLED)


def built_in(wanted: Request) -> Dataset:
    """Draw the built-in set of shapes."""
    arrays = shapes(wanted.seed)
    return make_dataset("shapes", "built in, drawn from the seed", arrays, image_size=wanted.image_size)


def automatic(wanted: Request) -> Dataset:
    """Load CIFAR-10, or the built-in shapes where CIFAR-10 is not available."""
    try:
        return _fetched(CIFAR10, wanted)
    except Unavailable as error:
        return replace(built_in(wanted), origin=f"built in, because CIFAR-10 is not available ({error})")


@dataclass(frozen=True)
class _Directory:
    """A public data set that is a directory of pictures."""

    key: str
    directory: str
    """Name of its directory in the data directory."""
    statistics: tuple[tuple[float, float, float], tuple[float, float, float]]
    """Published mean and standard deviation of each channel."""
    whole: bool = False
    """Whether it must have all of its classes."""

    def __call__(self, wanted: Request) -> Dataset:
        """Load the data set.

        Raises:
            ValueError: the directory does not exist, or is damaged.
        """
        path = wanted.data_dir / self.directory
        if not path.is_dir():
            raise ValueError(
                f"dataset: {self.key} is read from {path}, which does not exist; allowed: another --data-dir"
            )
        known = DATASETS[self.key]
        size = wanted.image_size or known.image_size
        data = read_folder(path, self.key, image_size=size, stream=wanted.stream, statistics=self.statistics)
        if self.whole and len(data.classes) != known.classes:
            raise ValueError(f"dataset: {path} has {len(data.classes)} classes; allowed: {known.classes}")
        return data


_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_TINY = ((0.5141, 0.5775, 0.3985), (0.2927, 0.2570, 0.1434))

tiny_imagenet = _Directory("tiny-imagenet", "tiny-imagenet-200", _TINY)
imagenet12 = _Directory("imagenet12", "imagenet-12", _IMAGENET, whole=True)
imagenet = _Directory("imagenet", "imagenet", _IMAGENET)
