"""Carry CIFAR-10 to a machine that has no network, in two slices of 50 MB.

``python benchmarks/pack_cifar10.py pack DIR`` writes the slices; ``python benchmarks/pack_cifar10.py unpack DIR/*.zip``
puts the data set where ``run.py --dataset cifar10`` looks for it.

A slice is a zip archive of lossless WebP pictures, each a column of 500 images, which makes 100 MB of CIFAR-10's 184.
One core of an AMD EPYC packs it in 28 s and unpacks it in 3 s, starting Python included.
"""

from __future__ import annotations

import io
import json
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from simsfl.data import Arrays
from simsfl.data.sources import CIFAR10, Unavailable, check, fetch, write_cache
from simsfl.system.console import Output
from simsfl.system.files import claimed, replacing
from simsfl.system.paths import cache_directory
from simsfl.system.progress import watched
from simsfl.ui.arguments import Parser, fail, path

_SLICES = 2
COLUMN = 500
"""Number of images in a picture, one below the other; WebP allows 511 of 32 rows each."""
_QUALITY = {"method": 4, "quality": 75}
"""Effort of WebP's compression; its slowest setting (6 and 100) takes 20 times as long and makes files 1 % smaller."""
_ABOUT = "about.json"
"""Member of each slice that states its number, the number of slices, and labels and classes of the whole data set."""
_CACHED = "cifar10.safetensors"
"""Name that the data set has in the cache directory."""


def parser() -> Parser:
    """Return the parser of both actions with their flags."""
    result = Parser(prog="pack_cifar10.py", description=__doc__)
    actions = result.add_subparsers(dest="action", metavar="pack|unpack", required=True, prog=result.prog)
    packing = actions.add_parser("pack", help="write the slices")
    packing.add_argument("out", type=path, metavar="DIR", help="a new directory for the slices")
    packing.add_argument(
        "--data-dir", type=path, default=Path("data"), help="where torchvision's files are (default: data)"
    )
    unpacking = actions.add_parser("unpack", help="write the data set that the slices hold")
    unpacking.add_argument("slices", type=path, nargs="+", metavar="SLICE", help="all slices, in any order")
    unpacking.add_argument(
        "--out",
        type=path,
        default=cache_directory(),
        metavar="DIR",
        help="directory to write into; run.py then needs SIMSFL_CACHE=DIR (default: the cache that run.py uses)",
    )
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Pack or unpack; return the exit code."""
    try:
        arguments = parser().parse(argv)
        if arguments.action == "pack":
            pack(arguments.out, arguments.data_dir)
        else:
            unpack(arguments.slices, arguments.out)
    except (ValueError, OSError) as error:
        return fail(error)
    except KeyboardInterrupt:
        return 130
    return 0


def pack(out: Path, data_dir: Path) -> None:
    """Write the slices of CIFAR-10 into a new directory, all of them or none.

    Raises:
        ValueError: CIFAR-10 is not available, or `out` exists or cannot be written.
    """
    if out.exists():
        raise ValueError(f"out: {out} exists already; allowed: a directory that does not")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as temporary:
            temporary.mkdir()  # before the long work, since it may not be permitted
            arrays, origin = fetch(CIFAR10, data_dir)
            images = np.concatenate([arrays.train_x, arrays.test_x])
            starts = range(0, len(images), COLUMN)
            pictures = [_encode(images[start : start + COLUMN]) for start in watched(starts, "Packing CIFAR-10")]
            for number in range(1, _SLICES + 1):
                first, end = (len(pictures) * bound // _SLICES for bound in (number - 1, number))
                _write_slice(temporary / f"cifar10-{number}-of-{_SLICES}.zip", number, arrays, pictures[first:end])
    except Unavailable as error:
        raise ValueError(f"CIFAR-10 is not available ({error})") from error
    except OSError as error:
        raise ValueError(f"out: {out} cannot be written ({error}); allowed: a new directory") from error
    Output().say(f"CIFAR-10 from {origin}")
    for file in sorted(out.iterdir()):
        Output().say(f"{file}: {file.stat().st_size / 1e6:.1f} MB")


def _encode(images: np.ndarray) -> bytes:
    """Return ``[n, H, W, 3]`` uint8 images as one lossless WebP picture, one below the other."""
    buffer = io.BytesIO()
    column = images.reshape(-1, *images.shape[2:])
    Image.fromarray(column).save(buffer, "WEBP", lossless=True, **_QUALITY)
    return buffer.getvalue()


def _decode(picture: bytes) -> np.ndarray:
    """Return the square ``[n, W, W, 3]`` uint8 images of a picture that `_encode` made."""
    with Image.open(io.BytesIO(picture)) as column:
        pixels = np.asarray(column)
    width = pixels.shape[1]
    return pixels.reshape(-1, width, width, 3)


def _write_slice(file: Path, number: int, arrays: Arrays, pictures: Sequence[bytes]) -> None:
    """Write one slice, whose `number` counts from 1; equal content gives equal files."""
    labels = {"train_y": arrays.train_y.tolist(), "test_y": arrays.test_y.tolist()}
    about = {"slice": number, "slices": _SLICES, "classes": arrays.classes, **labels}
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(zipfile.ZipInfo(_ABOUT), json.dumps(about))  # a ZipInfo has no time of writing
        for row, picture in enumerate(pictures):
            archive.writestr(zipfile.ZipInfo(f"{row:03}.webp"), picture)


@dataclass(frozen=True)
class _Common:
    """Facts that all slices of one packing share."""

    slices: int
    """Number of slices."""
    classes: tuple[str, ...]
    train_y: tuple[int, ...]
    test_y: tuple[int, ...]


def _read_slice(file: Path) -> tuple[int, _Common, list[bytes]]:
    """Return the number of a slice, the facts that it shares with the others, and its pictures.

    Raises:
        ValueError: the file does not exist, is no slice, or is damaged, which a CRC-32 of each member shows.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            about = json.loads(archive.read(_ABOUT))
            pictures = [archive.read(name) for name in archive.namelist() if name != _ABOUT]
        labels = (tuple(map(int, about[key])) for key in ("train_y", "test_y"))
        return int(about["slice"]), _Common(int(about["slices"]), tuple(about["classes"]), *labels), pictures
    except Exception as error:  # zipfile raises many kinds of errors on damage; the reason is reported
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ValueError(
            f"slices: {file} is damaged or is no slice ({reason}); allowed: a file that pack wrote"
        ) from error


def unpack(files: Sequence[Path], out: Path) -> None:
    """Write the data set in the slices into `out`, as the file that simsfl's cache has, whole or not at all.

    Raises:
        ValueError: a slice is missing, damaged or given twice, they do not make CIFAR-10 (SHA-256), or `out` holds
            the file already or cannot be written to.
    """
    target = out / _CACHED
    if target.exists():
        raise ValueError(f"out: {target} exists already; allowed: a directory without it")
    with claimed(out, _CACHED):
        arrays = _join(files)
        try:
            check("cifar10", arrays)
        except ValueError as error:
            raise ValueError(f"slices: {error}; allowed: all slices of one packing") from error
        try:
            write_cache(target, arrays)
        except OSError as error:
            raise ValueError(
                f"out: {target} cannot be written ({error}); allowed: a directory with 185 MB free"
            ) from error
    images = f"{len(arrays.train_x):,} training and {len(arrays.test_x):,} test images"
    Output().say(f"{target}: {images}, SHA-256 as published")
    if out.resolve() != cache_directory().resolve():
        Output().say(f"use it with SIMSFL_CACHE={out} and --dataset cifar10")


def _join(files: Sequence[Path]) -> Arrays:
    """Return the arrays that slices hold together.

    Raises:
        ValueError: a slice is missing, damaged, given twice, or of another packing.
    """
    found: dict[int, tuple[Path, _Common, list[bytes]]] = {}
    for file in files:
        number, *content = _read_slice(file)
        if number in found:
            raise ValueError(f"slices: {file} is the same slice as {found[number][0]}; allowed: each slice once")
        found[number] = file, *content
    first, common, _ = next(iter(found.values()))
    for file, other, _ in found.values():
        if other != common:
            raise ValueError(f"slices: {file} and {first} were not packed together; allowed: the slices of one packing")
    missing = [str(number) for number in range(1, common.slices + 1) if number not in found]
    if missing:
        raise ValueError(f"slices: number {', '.join(missing)} of {common.slices} is missing; allowed: all of them")
    pictures = [picture for number in sorted(found) for picture in found[number][2]]
    images = np.concatenate([_decode(picture) for picture in watched(pictures, "Unpacking CIFAR-10")])
    train_y, test_y = (np.array(labels, dtype=np.int64) for labels in (common.train_y, common.test_y))
    return Arrays(images[: len(train_y)], train_y, images[len(train_y) :], test_y, common.classes)


if __name__ == "__main__":
    sys.exit(main())
