"""Client traces: what one client does in a run, for another machine to repeat (``hw_profile/pi_bench.py --replay``).

A client trace is a zip file of ``.npy`` arrays and one ``trace.json``; nothing is pickled, and NumPy reads it without
PyTorch. It holds a visit for each round that the client takes part in. A visit is complete in itself: it has the
client's state at the beginning, its images and their view parameters, each gradient that it receives, what it sends and
receives at each averaging, its state at the end, and checksums of its smashed data.
"""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

_FORMAT = 1
"""Version of the file format, recorded in ``trace.json``."""
VIEWS = {"crop": (4,), "flip": (), "jitter": (4,), "blends": (3,), "hue_slot": (), "gray": (), "sigma": ()}
"""Parameters of views, as in `kernels.ViewParameters`, and the shape that each has for one view of an image."""
STATE = ("online", "online_statistics", "momentum", "momentum_statistics", "velocity")
"""Parts of a client's state: flat vectors ``[P]`` of P parameters, and ``[S]`` of S running statistics.

``online`` is the online model, ``momentum`` its momentum encoder, and ``velocity`` the momentum buffer of SGD."""
_PRECISIONS = ("fp32", "bf16")
"""Precisions of the runs that client traces can be recorded from."""
_SUMS = 64
"""Largest number of checksums of one view of an image."""
_ABOUT: dict[str, tuple[str, ...]] = {
    "client": (),
    "visits": (),
    "shapes": (),
    "statistic_shapes": (),
    "network": (
        "arch",
        "width",
        "cut_layer",
        "image_size",
        "norm",
        "weight_standardisation",
        "bottleneck",
        "client_residual",
    ),
    "images": ("mean", "std"),
    "optimiser": ("tau", "momentum", "weight_decay", "precision"),
    "session": ("steps", "bytes_up", "bytes_down"),
    "cost": ("flops", "memory"),
}
"""Keys that ``trace.json`` must have besides its format, and the keys that some of their values must have in turn."""

Arrays = dict[str, np.ndarray]
"""Arrays by name."""


def checksums(smashed: np.ndarray) -> np.ndarray:
    """Return checksums ``[n, k]`` float64 of the smashed data ``[n, ...]`` of n images.

    Checksum j is the mean of the numbers j, j + k, j + 2k, ... of an image, so that a number that differs changes one
    of the checksums. k is at most `_SUMS`, and divides how many numbers an image has.
    """
    count = _SUMS
    while smashed[0].size % count:
        count //= 2
    return smashed.reshape(len(smashed), -1, count).mean(axis=1, dtype=np.float64)


@dataclass(frozen=True)
class Sync:
    """An averaging that the client takes part in."""

    step: int
    """Step of the visit, counted from 0, that the averaging follows."""
    sent: Arrays
    """Parts of `STATE` that the client sends to be averaged, by name."""
    received: Arrays
    """Parts of `STATE` that the client receives after the averaging, by name, as many as it has sent."""


class Trace:
    """A client trace that is read: ``trace.json`` and all shapes at once, arrays when they are asked for.

    Args:
        path: path of the file.

    Attributes:
        about: the content of ``trace.json``.
        visits: the visits in the order of their rounds.

    Raises:
        ValueError: the file is damaged, or not a client trace.
        OSError: the file cannot be read.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            self._file = zipfile.ZipFile(self.path)
            damaged = self._file.testzip()
            self.about: dict[str, Any] = {} if damaged else json.loads(self._file.read("trace.json"))
        except (zipfile.BadZipFile, zlib.error, KeyError, UnicodeDecodeError, json.JSONDecodeError, EOFError) as error:
            raise self.wrong(f"is no trace, or damaged ({error})") from error
        if damaged:
            raise self.wrong(f"is damaged: {damaged} does not have its checksum")
        if not isinstance(self.about, dict) or self.about.get("format") != _FORMAT:
            raise self.wrong(f"has another format than {_FORMAT}")
        try:
            for key, inside in _ABOUT.items():
                if key not in self.about or not all(name in self.about[key] for name in inside):
                    raise self.wrong(f"does not say all of its {key}")
            figures = [*self.about["session"].values(), *self.about["cost"]["flops"].values()]
            figures += [*self.about["cost"]["memory"].values(), self.about["client"], self.about["visits"]]
            if not all(type(figure) is int and figure >= 0 for figure in figures):
                raise self.wrong("has figures that are no counts")
            if self.about["optimiser"]["precision"] not in _PRECISIONS:
                raise self.wrong(f"is of a precision that is not known: {self.about['optimiser']['precision']}")
            self.visits = [Visit(self, index) for index in range(self.about["visits"])]
            for visit in self.visits:
                visit.check()
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            raise self.wrong(f"is not put together as a trace is ({error})") from error

    def wrong(self, what: str) -> ValueError:
        """Return the error to raise about the file, whose message says `what` is wrong with it."""
        return ValueError(f"replay: {self.path} {what}; allowed: a file that run.py --record-trace wrote")

    def array(self, name: str) -> np.ndarray:
        """Read and return the array of this name.

        Raises:
            ValueError: the file has no array of this name.
        """
        try:
            return np.lib.format.read_array(io.BytesIO(self._file.read(f"{name}.npy")), allow_pickle=False)
        except (KeyError, ValueError) as error:
            raise self.wrong(f"lacks {name} ({error})") from error

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of the array of this name, without reading its numbers.

        Raises:
            ValueError: the file has no array of this name.
        """
        try:
            with self._file.open(f"{name}.npy") as member:
                np.lib.format.read_magic(member)
                return np.lib.format.read_array_header_1_0(member)[0]
        except (KeyError, ValueError) as error:
            raise self.wrong(f"lacks {name} ({error})") from error

    def names(self, name: str) -> list[str]:
        """Return the names of the arrays below ``name/``, without that prefix."""
        stem = f"{name}/"
        inside = (entry.removeprefix(stem) for entry in self._file.namelist() if entry.startswith(stem))
        return [entry.removesuffix(".npy") for entry in inside]

    def arrays(self, name: str) -> Arrays:
        """Read and return the arrays below ``name/``, by their names without that prefix."""
        return {own: self.array(f"{name}/{own}") for own in self.names(name)}

    @property
    def steps(self) -> int:
        """Return the number of steps of all visits together."""
        return sum(visit.steps for visit in self.visits)


class Visit:
    """The recorded steps of one round that the client takes part in: S steps on batches of B images."""

    def __init__(self, trace: Trace, index: int):
        self._trace, self._name = trace, f"visits/{index}"

    @cached_property
    def pixels(self) -> np.ndarray:
        """Images ``[S, B, 3, H, H]`` uint8."""
        return self._trace.array(f"{self._name}/pixels")

    @cached_property
    def lr(self) -> np.ndarray:
        """Learning rate of each step, ``[S]``."""
        return self._trace.array(f"{self._name}/lr")

    @cached_property
    def checksums(self) -> np.ndarray:
        """Checksums ``[S, V, B, k]`` of the smashed data: those of queries, then those of keys if there are any."""
        return self._trace.array(f"{self._name}/checksums")

    @cached_property
    def begin(self) -> Arrays:
        """All parts of `STATE` at the beginning of the visit."""
        return self._trace.arrays(f"{self._name}/begin")

    @cached_property
    def end(self) -> Arrays:
        """All parts of `STATE` after the last step, before the averaging that follows it, if one does."""
        return self._trace.arrays(f"{self._name}/end")

    @cached_property
    def views(self) -> Arrays:
        """View parameters, one array ``[S, 2, B, ...]`` for each of `VIEWS`."""
        return self._trace.arrays(f"{self._name}/views")

    @cached_property
    def syncs(self) -> list[Sync]:
        """The averagings of the visit, in order."""
        steps = self._trace.array(f"{self._name}/syncs").tolist()
        parts = [
            {part: self._trace.arrays(f"{self._name}/sync-{step}/{part}") for part in ("sent", "received")}
            for step in steps
        ]
        return [Sync(step, **part) for step, part in zip(steps, parts, strict=True)]

    def check(self) -> None:
        """Raise a ValueError unless the shapes of the arrays fit the network and one another."""
        about = self._trace.about
        size, batch = about["network"]["image_size"], self._shape("pixels")[1]
        weights, statistics = (
            sum(prod(shape) for shape in about[name].values()) for name in ("shapes", "statistic_shapes")
        )
        expected = {
            "pixels": (self.steps, batch, 3, size, size),
            "checksums": (self.steps, *self._shape("checksums")[1:2], batch, *self._shape("checksums")[3:]),
            **{f"views/{name}": (self.steps, 2, batch, *inner) for name, inner in VIEWS.items()},
            **{
                f"{part}/{name}": (statistics if name.endswith("statistics") else weights,)
                for part in ("begin", "end")
                for name in STATE
            },
        }
        if self.learns:
            first = self._shape("gradients/0")
            expected |= {f"gradients/{step}": (batch, *first[1:]) for step in range(self.steps)}
        for step in self._trace.array(f"{self._name}/syncs").tolist():
            for part in ("sent", "received"):
                names = self._trace.names(f"{self._name}/sync-{step}/{part}")
                expected |= {f"sync-{step}/{part}/{name}": expected[f"begin/{name}"] for name in names}
        for name, shape in expected.items():
            if self._shape(name) != shape:
                raise self._trace.wrong(f"has {self._name}/{name} of shape {self._shape(name)}, not {shape}")
        if not self.steps:
            raise self._trace.wrong(f"has no steps in {self._name}")

    def _shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of the visit's array of this name."""
        return self._trace.shape(f"{self._name}/{name}")

    @property
    def batch_size(self) -> int:
        """Return the number of images in a batch, B."""
        return self._shape("pixels")[1]

    @cached_property
    def steps(self) -> int:
        """Number of steps, S."""
        return self._shape("lr")[0]

    @cached_property
    def learns(self) -> bool:
        """Whether the client receives gradients and learns in this visit."""
        return bool(self._trace.array(f"{self._name}/learns"))

    def gradient(self, step: int) -> np.ndarray:
        """Read the gradient ``[B, c, h, w]`` float32 of the query's smashed data in a step counted from 0."""
        return self._trace.array(f"{self._name}/gradients/{step}")


class TraceWriter:
    """A client trace that is written, visit by visit.

    Args:
        path: path of the file, which is complete once `close` has written ``trace.json``.

    Attributes:
        visits: number of finished visits; whoever writes one adds 1 when it is finished.
    """

    def __init__(self, path: Path):
        self._file = zipfile.ZipFile(path, "w")  # not compressed, since gradients hardly shrink
        self.visits = 0

    def put(self, name: str, array: np.ndarray) -> None:
        """Write one array of the current visit."""
        with self._file.open(f"visits/{self.visits}/{name}.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)

    def put_all(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Write several arrays of the current visit below ``name/``."""
        for own, array in arrays.items():
            self.put(f"{name}/{own}", array)

    def abandon(self) -> None:
        """Close the file as it is, whatever is missing, because it will not be kept."""
        with suppress(OSError, ValueError):
            self._file.close()

    def close(self, about: Mapping[str, Any]) -> None:
        """Write ``trace.json`` with the content `about`, the format and the number of visits; then close the file."""
        self._file.writestr("trace.json", json.dumps({"format": _FORMAT, **about, "visits": self.visits}))
        self._file.close()
