"""Data sets in the form of the Hugging Face hub, by the package ``datasets``: from the hub, or in local directories."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from simsfl.config.catalogue import HUB
from simsfl.data import UNLABELLED, Arrays
from simsfl.data.items import as_arrays, read_images
from simsfl.system.console import Output
from simsfl.system.messages import unknown

_SPLITS = {
    "train": ("train",),
    "test": ("test", "validation", "valid", "val"),
    "unlabelled": (*UNLABELLED, "unsupervised"),
}
"""Names of splits by what they are used for, in the order in which they are looked for."""
_LABELS = ("label", "labels")
"""Names of columns that may hold labels as numbers without names."""
_CLIENTS = ("client", "client_id", "writer_id", "user_id")
"""Names of columns that say whose images are."""
_CHOICES = (*_SPLITS, "image", "label", "client")
"""What may be chosen behind the question mark: splits, then columns."""


@dataclass(frozen=True)
class _Named:
    """What a name such as ``hf:NAME:SUBSET?label=COLUMN`` says."""

    place: str
    """Name on the hub, or absolute path of a directory."""
    subset: str | None
    """Name of the part of the data set, which the hub calls its configuration; None for the usual one."""
    chosen: Mapping[str, str]
    """Splits and columns by the names of `_CHOICES`."""

    @classmethod
    def parse(cls, name: str) -> _Named:
        """Return what a name says; raise a ValueError if it says nothing that is known."""
        place, _, query = name.removeprefix(HUB).partition("?")
        subset = None
        if not Path(place).exists():
            place, _, subset = place.partition(":")
        if not place:
            raise ValueError(f"dataset: {name} has no name; allowed: {HUB}NAME, or {HUB}DIRECTORY")
        if Path(place).is_dir():
            place = os.path.realpath(place)  # absolute, so that a run can be resumed from anywhere
        pairs = [part.partition("=") for part in query.split("&") if part]
        for key, _, value in pairs:
            if key not in _CHOICES or not value:
                raise unknown("dataset", f"{key}={value}", [f"{choice}=" for choice in _CHOICES])
        return cls(place, subset or None, {key: value for key, _, value in pairs})

    def __str__(self) -> str:
        """Return the name, with an absolute path."""
        subset = f":{self.subset}" if self.subset else ""
        query = "&".join(f"{key}={value}" for key, value in self.chosen.items())
        return f"{HUB}{self.place}{subset}{'?' if query else ''}{query}"

    def with_choice(self, choice: str) -> str:
        """Return the name up to the equals sign of a further choice."""
        return f"{self}{'&' if self.chosen else '?'}{choice}="


def read_hub(name: str, size: int | None) -> tuple[Arrays, str, str]:
    """Read a data set by the package ``datasets``.

    The splits are "train" and "test" (or "validation"), and if there is one, "unlabelled" for the images that clients
    hold. Images are in the one column of images, labels in the one of class labels (or that called "label"), and the
    client of each image, if that is known, in "client", "client_id", "writer_id" or "user_id". Others are chosen by
    their names, and splits also by the package's own notation.

    Args:
        name: such as ``hf:NAME``, ``hf:NAME:SUBSET``, ``hf:DIRECTORY`` or ``hf:NAME?label=COLUMN&test=train[90%:]``.
        size: height and width that images are scaled to; None keeps them as they are.

    Returns:
        The arrays, the name with an absolute path, and a description for people of where they come from.

    Raises:
        ValueError: the package is not installed, or the data set cannot be had, or is none of images with labels.
    """
    named = _Named.parse(name)
    try:
        import datasets  # noqa: PLC0415  (an extra, which takes seconds)
    except ImportError as error:
        raise ValueError(
            f"dataset: {name} needs the package datasets; allowed: after pip install 'simsfl[datasets]'"
        ) from error
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # each attempt to reach the hub is a warning
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # which speak to its programmers
        arrays = _read(datasets, named, size)
    where = f"directory {named.place}" if Path(named.place).is_absolute() else f"Hugging Face hub, {named.place}"
    return arrays, str(named), where


def _read(library: ModuleType, named: _Named, size: int | None) -> Arrays:
    """Return the arrays of a data set; see `read_hub`."""
    splits = _splits(library, named)
    train, held = splits["train"], splits.get("unlabelled", splits["train"])
    label, client = _column(library, "label", train, named), _column(library, "client", held, named)
    images = {role: _Column(split, _column(library, "image", split, named), named) for role, split in splits.items()}
    labels = {role: _labels(splits[role], label, f"{role} of {named}") for role in ("train", "test")}
    pixels = {role: read_images(own, f"{role} of {named}", size) for role, own in images.items()}
    kind = train.features[label]
    return as_arrays(
        str(named),
        (pixels["train"], labels["train"]),
        (pixels["test"], labels["test"]),
        kind.names if isinstance(kind, library.ClassLabel) else None,
        unlabelled_x=pixels.get("unlabelled"),
        owners=_owners(held, client, named) if client else None,
    )


def _splits(library: ModuleType, named: _Named) -> dict[str, Any]:
    """Return the splits of a data set by what they are used for.

    Raises:
        ValueError: the data set cannot be had, or lacks one.
    """
    if not Output(stderr=True).redraws:
        library.disable_progress_bars()

    def load(split: str | None = None) -> Any:
        try:
            return library.load_dataset(named.place, named.subset, split=split)
        except Exception as error:  # network, files and formats raise errors of many types
            raise ValueError(
                f"dataset: {named} cannot be loaded ({_reason(error)}); allowed: a name on the hub, or a directory "
                "of files that the package datasets reads"
            ) from error

    whole, found = load(), {}
    for role, names in _SPLITS.items():
        if role in named.chosen:
            found[role] = load(named.chosen[role])
        elif (split := next((one for one in names if one in whole), None)) is not None:
            found[role] = whole[split]
        elif role != "unlabelled":
            has = ", ".join(map(str, whole))
            raise ValueError(
                f"dataset: {named} has no split for {role}; it has {has}; allowed: {named.with_choice(role)}SPLIT"
            )
    return found


def _column(library: ModuleType, role: str, split: Any, named: _Named) -> str | None:
    """Return the column of a split that is chosen, or else the only one that fits; None if no column has clients.

    Args:
        library: the package.
        role: what the column is needed for: "image", "label" or "client".
        split: the split.
        named: the data set.

    Raises:
        ValueError: there is no such column, or several fit, or none.
    """
    features = split.features
    if chosen := named.chosen.get(role):
        if chosen not in features:
            pictures = {column for column, own in features.items() if isinstance(own, library.Image)}
            possible = [column for column in features if (column in pictures) == (role == "image")]
            raise unknown("dataset", f"{role}={chosen}", [f"{role}={column}" for column in possible])
        return chosen
    if role == "client":
        fitting = [column for column in _CLIENTS if column in features]
    else:
        kind = library.Image if role == "image" else library.ClassLabel
        fitting = [column for column, own in features.items() if isinstance(own, kind)]
    if role == "label" and not fitting:
        fitting = [column for column in _LABELS if column in features]
    if len(fitting) == 1 or (role == "client" and not fitting):
        return fitting[0] if fitting else None
    raise ValueError(
        f"dataset: {named} has {'several columns' if fitting else 'no column'} for {role}; allowed: "
        f"{named.with_choice(role)}COLUMN, with one of {', '.join(fitting or features)}"
    )


def _labels(split: Any, column: str, what: str) -> np.ndarray:
    """Return the labels ``[n]`` int64 in a column; raise a ValueError if they are no integers."""
    labels = np.array(split[column][:])
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise ValueError(
            f"dataset: column {column} of {what} holds no whole numbers; allowed: class labels, or integers"
        )
    return labels.astype(np.int64)


def _owners(split: Any, column: str, named: _Named) -> np.ndarray:
    """Return the values ``[n]`` in a column of clients; raise a ValueError if they are no texts or whole numbers."""
    owners = np.array(split[column][:])
    if owners.dtype.kind not in "iuU" or owners.ndim != 1:
        raise ValueError(
            f"dataset: column {column} of {named} says not whose each image is; allowed: texts, or integers"
        )
    return owners


def _reason(error: BaseException) -> str:
    """Return the first line of what caused an error of the package."""
    while error.__cause__:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class _Column:
    """The images in a column of a split, decoded when they are asked for."""

    def __init__(self, split: Any, column: str, named: _Named):
        self._rows, self._column, self._named = split.select_columns([column]), column, named

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> Any:
        try:
            return self._rows[row][self._column]
        except MemoryError:
            raise
        except Exception as error:  # a damaged picture can raise anything
            raise ValueError(
                f"dataset: image {row} of {self._named} cannot be decoded ({_reason(error)}); allowed: whole pictures"
            ) from error
