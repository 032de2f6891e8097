"""Finding the pictures of a data set that is a directory: their files, their classes, and checksums of these.

Three layouts are known: that of torchvision's ImageFolder, ``train/CLASS/*`` and ``test/CLASS/*`` (or ``val/``); the
archive of Tiny-ImageNet-200, whose validation pictures have their classes in a text file; and this archive with those
pictures moved to ``val/CLASS/*`` or ``val/images/CLASS/*``. Beside these, ``unlabelled/`` may hold pictures without
classes, at any depth.
"""

from __future__ import annotations

import errno
import hashlib
import heapq
import os
import stat
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from simsfl.data import UNLABELLED
from simsfl.data.picture import PictureError
from simsfl.system.messages import count_text
from simsfl.system.reading import open_regular

_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Ends of the names of pictures, in small letters: those of torchvision's ImageFolder."""
_OF_SYSTEMS = ("__macosx", "@eadir", "#recycle", "#snapshot", "$recycle.bin", "system volume information", "lost+found")
"""Names, in small letters, of directories that systems make, besides hidden ones, whose names begin with a dot."""
_SPLITS = ("test", "val", "test/images", "val/images")
"""Directories in which test pictures are looked for, sorted into directories of their classes, in this order."""
_ANNOTATIONS = Path("val", "val_annotations.txt")
"""Tiny-ImageNet's file with name and class of each validation picture."""
_LARGEST_ANNOTATIONS = 1 << 28
"""Most bytes of that file, which are enough for millions of pictures."""


@dataclass(frozen=True)
class Listing:
    """The files of one split of a data set, with their labels."""

    files: list[str]
    """Path of each of n pictures."""
    labels: np.ndarray
    """``[n]`` integer labels."""
    classes: tuple[str, ...]
    """Name of the class of each label."""


def list_pictures(path: Path) -> tuple[Listing, Listing]:
    """List the training and test pictures of a directory, in the order of torchvision's ImageFolder.

    Links are followed, but a class holds each directory once, and none that contains the class or is another class.
    Hidden names and those that systems make, such as ``.ipynb_checkpoints`` or ``@eaDir``, are skipped, and so are
    files whose names do not end like a picture's.

    Raises:
        ValueError: a split is missing, the classes of the two differ or have no pictures, or something is not readable.
    """
    with _reading(path):
        return _list_pictures(path)


def list_unlabelled(path: Path) -> list[str]:
    """Return the paths of the training pictures of a directory that have no classes, sorted as those of a class are.

    They are those below ``unlabelled/`` (or ``unlabeled/``), found as `list_pictures` finds others; none where there is
    no such directory.

    Raises:
        ValueError: that directory has no pictures, or something in it is not readable.
    """
    top = next((path / name for name in UNLABELLED if (path / name).is_dir()), None)
    if top is None:
        return []
    with _reading(path):
        files = _pictures_below(top, os.path.realpath(top), frozenset())
    if not files:
        raise ValueError(f"dataset: {top} has no pictures; allowed: files that end in {', '.join(_SUFFIXES)}")
    return files


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Raise an OSError of the block, in which the directory `path` is read, as a ValueError of one line."""
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"dataset: {error.filename or path} cannot be read ({error.strerror}); allowed: files and directories, and "
            "links to them"
        ) from error


def _list_pictures(path: Path) -> tuple[Listing, Listing]:
    """List the pictures as `list_pictures` does; an OSError means that something cannot be read."""
    train, annotated = _classes(path / "train"), (path / _ANNOTATIONS).is_file()
    for name in _SPLITS:
        if annotated and name.startswith("test"):
            continue  # the archive of Tiny-ImageNet-200 has a test split without classes
        test = _classes(path / name)
        if {_composed(own) for own in train} & {_composed(other) for other in test}:
            for extra in test.keys() - train.keys():
                if not _pictures_below(path / name / extra, test[extra], frozenset()):
                    del test[extra]  # such as images/ of the archive, after its pictures were moved
            _check_alike(path / "train", train, path / name, test)
            return _list_split(path / "train", train), _list_split(path / name, test)
    if annotated and train:
        return _list_split(path / "train", train), _list_annotated(path, tuple(train))
    lacking = f"the latter has no class of train/, such as {_shown(min(train))}" if train else "train/ has no class"
    raise ValueError(
        f"dataset: {path} must hold the directories train/ and test/ (or val/), one per class in each; {lacking}"
    )


def _classes(split: Path) -> dict[str, str]:
    """Return the directories in a split, which are its classes: by name, sorted, the real path that each leads to.

    Raises:
        ValueError: two classes are the same directory, or their names look the same.
        OSError: the split cannot be read, or has a link to nothing.
    """
    if not split.is_dir():
        return {}
    classes: dict[str, str] = {}
    known: dict[str, str] = {}
    with os.scandir(split) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if _is_of_system(entry.name) or not _is_directory(entry):
                continue
            classes[entry.name] = os.path.realpath(entry.path)
            for key, alike in ((classes[entry.name], "are one directory"), (_composed(entry.name), "look the same")):
                if key in known:
                    raise ValueError(
                        f"dataset: classes {_shown(known[key])} and {_shown(entry.name)} of {split} {alike}; allowed: "
                        "classes that differ"
                    )
                known[key] = entry.name
    return classes


def _list_split(split: Path, classes: Mapping[str, str]) -> Listing:
    """List the pictures of one split.

    Args:
        split: its directory.
        classes: its classes, as `_classes` returns them.

    Raises:
        ValueError: a class has no pictures.
        OSError: a directory cannot be read, or has a link to nothing, or a picture that is no file.
    """
    others = frozenset(classes.values())
    listed = [_pictures_below(split / name, real, others) for name, real in classes.items()]
    if empty := [_shown(name) for name, files in zip(classes, listed, strict=True) if not files]:
        more = f", like {count_text(len(empty) - 1, 'other')}" if empty[1:] else ""
        raise ValueError(
            f"dataset: class {empty[0]} of {split} has no pictures{more}; allowed: classes with files that end in "
            f"{', '.join(_SUFFIXES)}"
        )
    labels = np.repeat(np.arange(len(listed)), [len(files) for files in listed])
    return Listing([file for files in listed for file in files], labels, tuple(classes))


def _pictures_below(top: Path, real: str, classes: Set[str]) -> list[str]:
    """Return the paths of the pictures below the directory of a class, sorted by directory, then by name.

    Args:
        top: the directory.
        real: the path that it leads to.
        classes: real paths of all classes of the split, which are not followed from here.
    """
    done = {str(parent) for parent in Path(real).parents}
    found, waiting = [], [(0, str(top), real)]
    while waiting:
        links, root, place = heapq.heappop(waiting)
        if links and (place in done or place in classes):
            continue
        done.add(place)
        files = []
        with os.scandir(root) as entries:
            for entry in entries:
                if _is_of_system(entry.name):
                    continue
                if _is_directory(entry):
                    linked = entry.is_symlink()
                    target = os.path.realpath(entry.path) if linked else f"{place}/{entry.name}"
                    heapq.heappush(waiting, (links + linked, entry.path, target))  # so the real directories come first
                elif is_picture(entry.name):
                    if not entry.is_file():
                        entry.stat()  # an OSError says more about a link to nothing
                        raise OSError(errno.EINVAL, "not a regular file", entry.path)
                    files.append(entry.path)
        found.append((root, sorted(files)))
    return [file for _, files in sorted(found) for file in files]


def is_picture(name: str) -> bool:
    """Return whether a file of this name is taken for a picture."""
    return name.lower().endswith(_SUFFIXES) and not _is_of_system(name)


def _is_directory(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a directory, or a link to one.

    Raises:
        OSError: the entry is a link to nothing, and its name is not a picture's, so it may have been a directory.
    """
    if entry.is_symlink() and not is_picture(entry.name):
        entry.stat()
    return entry.is_dir()


def _is_of_system(name: str) -> bool:
    """Return whether a name is hidden, or one that systems give to what they put beside the files of people."""
    return name.startswith(".") or name.lower() in _OF_SYSTEMS


def _composed(name: str) -> str:
    """Return a name in the Unicode form in which a letter and its accents are one character where that exists."""
    return unicodedata.normalize("NFC", name)


def _shown(name: str) -> str:
    """Return a name in quotation marks, with the code of each character that is not ASCII, since some look alike."""
    return repr(name) if name.isascii() else f"{name!r} ({name!a})"


def _check_alike(train: Path, classes: Iterable[str], test: Path, others: Iterable[str]) -> None:
    """Raise a ValueError that names the first class that only one of two splits has, if there is one."""
    odd = min(set(classes) ^ set(others), default=None)
    if odd is None:
        return
    where, elsewhere, names = (train, test, others) if odd in classes else (test, train, classes)
    twin = next((name for name in names if _composed(name) == _composed(odd)), None)
    has = f", which has {_shown(twin)}, the same text in another Unicode form" if twin else ""
    raise ValueError(
        f"dataset: class {_shown(odd)} is only in {where}, and not in {elsewhere}{has}; allowed: the same names in both"
    )


def _list_annotated(path: Path, classes: tuple[str, ...]) -> Listing:
    """List the validation pictures of Tiny-ImageNet-200, which are in one directory, with classes in a text file.

    Raises:
        ValueError: that file names no picture, or a class that does not occur in training, or is too large.
        OSError: it cannot be read.
    """
    annotations, images = path / _ANNOTATIONS, path / "val" / "images"
    label_of = {name: label for label, name in enumerate(classes)}
    files, labels = [], []
    with open_regular(annotations) as stream:
        if os.fstat(stream.fileno()).st_size > _LARGEST_ANNOTATIONS:
            raise ValueError(f"dataset: {annotations} has more than {_LARGEST_ANNOTATIONS:,} bytes; allowed: fewer")
        lines = os.fsdecode(stream.read()).split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        file, wnid, *_ = [*line.split("\t"), ""]
        if not file or file != Path(file).name or "\0" in file:
            raise ValueError(f"dataset: {annotations}, line {number}: {_shown(file)} is no name of a file")
        if wnid.strip() not in label_of:
            raise ValueError(f"dataset: {annotations}, line {number}: class {_shown(wnid)} is not in {path / 'train'}")
        files.append(str(images / file))
        labels.append(label_of[wnid.strip()])
    if not files:
        raise ValueError(f"dataset: {annotations} names no image; allowed: the file of the archive")
    return Listing(files, np.array(labels), classes)


def checksums(path: Path, files: Iterable[str]) -> tuple[str, str]:
    """Return two SHA-256 of pictures that are not read: that of names and sizes, and that of the names alone.

    The second stays the same when a damaged file is mended. Names may hold any bytes.

    Args:
        path: the directory that names are relative to.
        files: paths of the pictures.

    Raises:
        PictureError: a file is missing, or is not a regular file.
    """
    sized, named = hashlib.sha256(), hashlib.sha256()
    for file in files:
        name = os.fsencode(os.path.relpath(file, path))
        sized.update(b"%s %d\n" % (name, _size(Path(file))))
        named.update(b"%s\n" % name)
    return sized.hexdigest(), named.hexdigest()


def _size(file: Path) -> int:
    """Return the size of a picture's file in bytes; raise a PictureError if there is no such file."""
    try:
        status = file.stat()
    except OSError as error:
        raise PictureError(file, error.strerror) from error
    if not stat.S_ISREG(status.st_mode):
        raise PictureError(file, "not a regular file")
    return status.st_size
