"""Client traces: what one client does in a run, for another machine to repeat (``hw_profile/pi_bench.py --replay``).

A client trace is a zip file of ``.npy`` arrays and one ``trace.json``; nothing is compressed or pickled, and it can be
read without PyTorch. It holds a visit for each round that the client takes part in. A visit is complete in itself: it
has the client's state at the beginning, its images and their view parameters, each gradient that it receives, what it
sends and receives at each averaging, its state at the end, and checksums of its smashed data.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from simsfl.runs.trace_about import FORMAT, read_about
from simsfl.system.array_zip import ArrayZip, Header, NotArraysError
from simsfl.system.programs import called

VIEWS = {"crop": (4,), "flip": (), "jitter": (4,), "blends": (3,), "hue_slot": (), "gray": (), "sigma": ()}
"""Parameters of views, as in `kernels.ViewParameters`, and the shape that each has for one view of an image."""
STATE = ("online", "online_statistics", "momentum", "momentum_statistics", "velocity")
"""Parts of a client's state: flat vectors ``[P]`` of P parameters, and ``[S]`` of S running statistics.

``online`` is the online model, ``momentum`` its momentum encoder, and ``velocity`` the momentum buffer of SGD."""
_SUMS = 64
"""Largest number of checksums of one view of an image."""
_LARGEST_ABOUT = 1 << 24
"""Most bytes of ``trace.json``: a network of a thousand parameters takes less than 100,000."""
_LARGEST_ARRAY = 1 << 33
"""Most bytes of an array: more than machines have that repeat client traces."""
_FLOATS, _WHOLE, _BYTES, _TRUTH = ("f4", "f8"), ("i8",), ("u1",), ("b1",)
"""Types that numbers of an array may have."""
_TYPES = {"pixels": _BYTES, "blends": _WHOLE, "hue_slot": _WHOLE, "flip": _TRUTH, "gray": _TRUTH, "gradients": ("f4",)}
"""Types of arrays by the last part of their names, or the first; of all others `_FLOATS`."""

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
            self._file = ArrayZip(self.path, compressed=False)
            self.about = read_about(self._file.content("trace.json", _LARGEST_ABOUT))
        except ValueError as error:
            raise self.wrong(str(error)) from error
        self._below: dict[str, list[str]] = {}
        for name in self._file.names:
            above, _, own = name.rpartition("/")
            self._below.setdefault(above, []).append(own)
        count = self.about["visits"]
        if count > len(self._file.names):
            raise self.wrong(f"lacks most of the {count:,} visits that it says to have")
        self.visits = [Visit(self, index) for index in range(count)]
        for visit in self.visits:
            visit.check()

    def wrong(self, what: str) -> ValueError:
        """Return the error to raise about the file, whose message says `what` is wrong with it."""
        return ValueError(f"replay: {self.path} {what}; allowed: a file that {called('run')} --record-trace wrote")

    def array(self, name: str, shape: tuple[int, ...] | None = None, types: tuple[str, ...] = ()) -> np.ndarray:
        """Read and return the array of this name.

        Args:
            name: name of the array.
            shape: shape that it must have, if that is to be checked.
            types: types that it may have, if `shape` is given.

        Raises:
            ValueError: the file has no array of this name, or it is damaged, or not as it must be.
        """

        def accept(header: Header) -> None:
            _check_size(name, header)
            if header.shape != shape or header.dtype.str[1:] not in types:
                raise NotArraysError(
                    f"has {name} of shape {header.shape} and type {header.dtype}, and shape {shape} and type "
                    f"{np.dtype(types[0])} are needed"
                )

        try:
            return self._file.array(name, accept if shape is not None else None)
        except NotArraysError as error:
            raise self.wrong(str(error)) from error
        except MemoryError as error:
            raise self.wrong(f"has {name}, which does not fit into memory") from error

    def header(self, name: str) -> Header:
        """Return shape and type of the array of this name, without reading its numbers.

        Raises:
            ValueError: the file has no array of this name, or it is larger than an array of a client trace can be.
        """
        try:
            header = self._file.header(name)
            _check_size(name, header)
        except NotArraysError as error:
            raise self.wrong(str(error)) from error
        return header

    def names(self, name: str) -> list[str]:
        """Return the names of the arrays below ``name/``, without that prefix."""
        return self._below.get(name, [])

    def arrays(self, name: str, parts: Iterable[str]) -> Arrays:
        """Read and return the arrays ``name/PART`` of the given parts, by part."""
        return {part: self.array(f"{name}/{part}") for part in parts}

    @property
    def steps(self) -> int:
        """Return the number of steps of all visits together."""
        return sum(visit.steps for visit in self.visits)


def _check_size(name: str, header: Header) -> None:
    """Raise a NotArraysError if an array is larger than one of a client trace can be."""
    if header.nbytes > _LARGEST_ARRAY:
        raise NotArraysError(f"has {name} of {header.nbytes:,} bytes, and {_LARGEST_ARRAY:,} at most are possible")


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
        return self._trace.arrays(f"{self._name}/begin", STATE)

    @cached_property
    def end(self) -> Arrays:
        """All parts of `STATE` after the last step, before the averaging that follows it, if one does."""
        return self._trace.arrays(f"{self._name}/end", STATE)

    @cached_property
    def views(self) -> Arrays:
        """View parameters, one array ``[S, 2, B, ...]`` for each of `VIEWS`."""
        return self._trace.arrays(f"{self._name}/views", VIEWS)

    @cached_property
    def syncs(self) -> list[Sync]:
        """The averagings of the visit, in order."""
        syncs = []
        for step in self._sync_steps:
            names = [f"{self._name}/sync-{step}/{part}" for part in ("sent", "received")]
            syncs.append(Sync(step, *(self._trace.arrays(name, self._trace.names(name)) for name in names)))
        return syncs

    def check(self) -> None:
        """Raise a ValueError unless the arrays fit the network and one another, and have values that are possible.

        An array is read only if it has the shape that it must have.
        """
        for name, shape in self._expected().items():
            parts = {name.partition("/")[0], name.rpartition("/")[2]}
            types = next((types for part, types in _TYPES.items() if part in parts), _FLOATS)
            array = self._trace.array(f"{self._name}/{name}", shape, types)
            if not (np.isfinite(array).all() and self._is_possible(name, array)):
                raise self._trace.wrong(f"has values in {self._name}/{name} that are not possible")

    def _expected(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes that the arrays must have, by name.

        Raises:
            ValueError: the arrays that say so have other shapes themselves, or values that are not possible.
        """
        about = self._trace.about
        size, batch = about["network"]["image_size"], self.batch_size
        views, sums = self._shape("checksums", 4)[1], self._shape("checksums", 4)[3]
        weights, statistics = (
            sum(prod(shape) for shape in about[name].values()) for name in ("shapes", "statistic_shapes")
        )
        state = {name: (statistics if name.endswith("statistics") else weights,) for name in STATE}
        expected = {
            "lr": (self.steps,),
            "pixels": (self.steps, batch, 3, size, size),
            "checksums": (self.steps, min(views, 2), batch, min(sums, _SUMS)),
            **{f"views/{name}": (self.steps, 2, batch, *inner) for name, inner in VIEWS.items()},
            **{f"{part}/{name}": shape for part in ("begin", "end") for name, shape in state.items()},
        }
        if self.learns:
            if len(self._trace.names(f"{self._name}/gradients")) != self.steps:
                raise self._trace.wrong(f"has not one of {self._name}/gradients for each of {self.steps:,} steps")
            gradient = (batch, *self._shape("gradients/0", 4)[1:])
            expected |= {f"gradients/{step}": gradient for step in range(self.steps)}
        for step in self._sync_steps:
            for part in ("sent", "received"):
                for name in self._trace.names(f"{self._name}/sync-{step}/{part}"):
                    if name not in state:
                        raise self._trace.wrong(f"has {self._name}/sync-{step}/{part}/{name}, which no state has")
                    expected[f"sync-{step}/{part}/{name}"] = state[name]
        return expected

    def _is_possible(self, name: str, array: np.ndarray) -> bool:
        """Return whether the finite values of an array are in the range that arrays of this name have."""
        if name == "views/crop":
            begin, extent, size = array[..., :2], array[..., 2:], self._trace.about["network"]["image_size"]
            return bool((begin >= 0).all() and (extent >= 1).all() and (begin + extent <= size).all())
        if name == "views/blends":
            return bool((np.sort(array, axis=-1) == np.arange(3)).all())
        if name == "views/hue_slot":
            return bool(((array >= 0) & (array <= 3)).all())
        return name not in ("lr", "views/sigma") or bool((array >= 0).all())

    def _header(self, name: str) -> Header:
        """Return shape and type of the visit's array of this name."""
        return self._trace.header(f"{self._name}/{name}")

    def _shape(self, name: str, dimensions: int) -> tuple[int, ...]:
        """Return the shape of the visit's array of this name; raise a ValueError unless it has these dimensions."""
        shape = self._header(name).shape
        if len(shape) != dimensions or 0 in shape:
            raise self._trace.wrong(f"has {self._name}/{name} of shape {shape}, and {dimensions} dimensions are needed")
        return shape

    @property
    def batch_size(self) -> int:
        """Return the number of images in a batch, B."""
        return self._shape("pixels", 5)[1]

    @cached_property
    def steps(self) -> int:
        """Number of steps, S."""
        return self._shape("lr", 1)[0]

    @cached_property
    def learns(self) -> bool:
        """Whether the client receives gradients and learns in this visit."""
        if self._header("learns") not in (Header((), np.dtype(bool)), Header((1,), np.dtype(bool))):
            raise self._trace.wrong(f"has {self._name}/learns that is not one truth value")
        return bool(self._trace.array(f"{self._name}/learns"))

    @cached_property
    def _sync_steps(self) -> list[int]:
        """Steps that an averaging follows, in order."""
        header = self._header("syncs")
        possible = header.dtype.kind == "i" and len(header.shape) == 1 and header.shape[0] <= self.steps
        steps = self._trace.array(f"{self._name}/syncs") if possible else np.array([-1])
        if not (np.diff(steps, prepend=-1) > 0).all() or (steps >= self.steps).any():
            raise self._trace.wrong(f"has {self._name}/syncs that are not steps in order")
        return steps.tolist()

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
        self._file.writestr("trace.json", json.dumps({"format": FORMAT, **about, "visits": self.visits}))
        self._file.close()
