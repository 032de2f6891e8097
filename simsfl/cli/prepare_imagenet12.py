"""Make ImageNet-12, a subset of 12 classes, from a local ImageNet.

The paper does not say which classes MocoSFL's subset has; give them in a file, one WordNet id (such as n02123045) per
line.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from simsfl.data.listing import is_picture
from simsfl.system.console import Output
from simsfl.system.files import replacing
from simsfl.system.progress import watched
from simsfl.ui.arguments import Parser, fail, path

_CLASSES = 12
_SPLITS = ("train", "val")


def main(argv: Sequence[str] | None = None) -> int:
    """Make the subset; return the exit code."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--imagenet", type=path, required=True, help="directory that holds train/WNID/* and val/WNID/*")
    parser.add_argument("--classes", type=path, required=True, help="file of 12 WordNet ids, one per line")
    parser.add_argument(
        "--out", type=path, default=Path("data/imagenet-12"), help="new directory (default: data/imagenet-12)"
    )
    try:
        arguments = parser.parse(argv)
        wnids = _read_classes(arguments.classes)
        files = [file for split in _SPLITS for wnid in wnids for file in _list_class(arguments.imagenet, split, wnid)]
        if arguments.out.exists():
            raise ValueError(f"out: {arguments.out} exists already; allowed: a directory that does not")
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(arguments.out) as temporary:
            for file in watched(files, "Linking"):
                _put(file, temporary / file.relative_to(arguments.imagenet))
    except (ValueError, OSError) as error:
        return fail(error)
    Output().say(f"{arguments.out}: {len(files):,} images of {len(wnids)} classes; use it with --dataset imagenet12")
    return 0


def _read_classes(file: Path) -> list[str]:
    """Return the WordNet ids in a file.

    Raises:
        ValueError: the file cannot be read, or does not hold 12 different ids.
    """
    try:
        wnids = [line.split()[0] for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"classes: {file} cannot be read ({error}); allowed: a text file") from error
    if len(set(wnids)) != _CLASSES or len(wnids) != _CLASSES:
        raise ValueError(
            f"classes: {file} has {len(set(wnids))} different WordNet ids in {len(wnids)} lines; allowed: {_CLASSES}, "
            "such as n02123045, one per line"
        )
    return wnids


def _list_class(imagenet: Path, split: str, wnid: str) -> list[Path]:
    """Return the image files of a class, sorted.

    Raises:
        ValueError: the class has no images.
    """
    directory = imagenet / split / wnid
    files = sorted(directory.iterdir()) if directory.is_dir() else []
    files = [file for file in files if is_picture(file.name) and file.is_file()]
    if not files:
        raise ValueError(f"imagenet: {directory} holds no images; allowed: a directory of them for each class")
    return files


def _put(file: Path, target: Path) -> None:
    """Link a file to `target`, or copy it where the file system allows no link."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(file, target)
    except OSError:
        shutil.copy2(file, target)
