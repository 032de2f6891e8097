"""What one client did, written down so that another machine can do it again (``hw_profile/pi_bench.py --replay``).

A trace is a zip file of ``.npy`` arrays and one ``trace.json``, nothing pickled; NumPy reads it, with no PyTorch. It
holds a visit for each round that the client took part in, complete in itself: what it began with, its images and
their view parameters, each gradient that came in, what it sent and received at each averaging, what it had at the
end, and checksums of its activations.
"""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = 1
VIEWS = {"crop": (4,), "flip": (), "jitter": (4,), "blends": (3,), "hue_slot": (), "gray": (), "sigma": ()}
"""The parameters of views, as in `kernels.ViewParameters`, and what each is of an image."""
STATE = ("online", "online_statistics", "momentum", "momentum_statistics", "velocity")
"""What a client has: flat vectors ``[P]``, of running statistics ``[S]``."""
PRECISIONS = ("fp32", "bf16")
"""Of the runs that traces are of."""
SUMS = 64
"""Numbers that the activations of an image are summed up in, at most."""
ABOUT: dict[str, tuple[str, ...]] = {
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
"""What ``trace.json`` has, besides its format, and of some what is in them."""

Arrays = dict[str, np.ndarray]


def checksums(smashed: np.ndarray) -> np.ndarray:
    """``[n, k]`` float64 for activations ``[n, ...]`` of n images: the means of every k-th number, `SUMS` or fewer.

    A number that differs shows in one of them.
    """
    count = SUMS
    while smashed[0].size % count:
        count //= 2
    return smashed.reshape(len(smashed), -1, count).mean(axis=1, dtype=np.float64)


@dataclass(frozen=True)
class Sync:
    """An averaging."""

    step: int
    """After which it took place."""
    sent: Arrays
    """What the client had, of `STATE`."""
    received: Arrays
    """What it went on with; the same names."""


class Trace:
    """A trace as it is read: what it is of at once, arrays when they are asked for.

    Args:
        path: of the file.

    Attributes:
        about: the content of ``trace.json``.

    Raises:
        ValueError: it is damaged, or no trace.
        OSError: it cannot be read.
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
        if not isinstance(self.about, dict) or self.about.get("format") != FORMAT:
            raise self.wrong(f"has another format than {FORMAT}")
        try:
            for key, inside in ABOUT.items():
                if key not in self.about or not all(name in self.about[key] for name in inside):
                    raise self.wrong(f"does not say all of its {key}")
            figures = [*self.about["session"].values(), *self.about["cost"]["flops"].values()]
            figures += [*self.about["cost"]["memory"].values(), self.about["client"], self.about["visits"]]
            if not all(type(figure) is int and figure >= 0 for figure in figures):
                raise self.wrong("has figures that are no counts")
            if self.about["optimiser"]["precision"] not in PRECISIONS:
                raise self.wrong(f"is of a precision that is not known: {self.about['optimiser']['precision']}")
            self.visits = [Visit(self, index) for index in range(self.about["visits"])]
            for visit in self.visits:
                visit.check()
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            raise self.wrong(f"is not put together as a trace is ({error})") from error

    def wrong(self, what: str) -> ValueError:
        """The error for a file that is not as it should be."""
        return ValueError(f"replay: {self.path} {what}; allowed: a file that run.py --record-trace wrote")

    def array(self, name: str) -> np.ndarray:
        """One of the arrays, read now.

        Raises:
            ValueError: there is none of that name.
        """
        try:
            return np.lib.format.read_array(io.BytesIO(self._file.read(f"{name}.npy")), allow_pickle=False)
        except (KeyError, ValueError) as error:
            raise self.wrong(f"lacks {name} ({error})") from error

    def shape(self, name: str) -> tuple[int, ...]:
        """Of one of the arrays, which is not read.

        Raises:
            ValueError: there is none of that name.
        """
        try:
            with self._file.open(f"{name}.npy") as member:
                np.lib.format.read_magic(member)
                return np.lib.format.read_array_header_1_0(member)[0]
        except (KeyError, ValueError) as error:
            raise self.wrong(f"lacks {name} ({error})") from error

    def names(self, name: str) -> list[str]:
        """Of the arrays that lie under a name."""
        stem = f"{name}/"
        inside = (entry.removeprefix(stem) for entry in self._file.namelist() if entry.startswith(stem))
        return [entry.removesuffix(".npy") for entry in inside]

    def arrays(self, name: str) -> Arrays:
        """Those that lie under a name."""
        return {own: self.array(f"{name}/{own}") for own in self.names(name)}

    @property
    def steps(self) -> int:
        """Of all visits together."""
        return sum(visit.steps for visit in self.visits)


class Visit:
    """A round that the client took part in, or what of it is recorded."""

    def __init__(self, trace: Trace, index: int):
        self._trace, self._name = trace, f"visits/{index}"

    @cached_property
    def pixels(self) -> np.ndarray:
        """``[S, B, 3, H, H]`` uint8."""
        return self._trace.array(f"{self._name}/pixels")

    @cached_property
    def lr(self) -> np.ndarray:
        """``[S]``."""
        return self._trace.array(f"{self._name}/lr")

    @cached_property
    def checksums(self) -> np.ndarray:
        """``[S, V, B, k]`` of queries, and of keys if there are any."""
        return self._trace.array(f"{self._name}/checksums")

    @cached_property
    def begin(self) -> Arrays:
        """What the client has when the visit begins, of `STATE`."""
        return self._trace.arrays(f"{self._name}/begin")

    @cached_property
    def end(self) -> Arrays:
        """What it has before its last averaging, or in the end where there is none."""
        return self._trace.arrays(f"{self._name}/end")

    @cached_property
    def views(self) -> Arrays:
        """`VIEWS`, each ``[S, 2, B, ...]``."""
        return self._trace.arrays(f"{self._name}/views")

    @cached_property
    def syncs(self) -> list[Sync]:
        """The averagings, in order."""
        steps = self._trace.array(f"{self._name}/syncs").tolist()
        parts = [
            {part: self._trace.arrays(f"{self._name}/sync-{step}/{part}") for part in ("sent", "received")}
            for step in steps
        ]
        return [Sync(step, **part) for step, part in zip(steps, parts, strict=True)]

    def check(self) -> None:
        """Raise a ValueError if its arrays do not fit together, or the network; only their shapes are read."""
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
        return self._trace.shape(f"{self._name}/{name}")

    @property
    def batch_size(self) -> int:
        """B."""
        return self._shape("pixels")[1]

    @cached_property
    def steps(self) -> int:
        """S."""
        return self._shape("lr")[0]

    @cached_property
    def learns(self) -> bool:
        """Whether gradients came in."""
        return bool(self._trace.array(f"{self._name}/learns"))

    def gradient(self, step: int) -> np.ndarray:
        """``[B, c, h, w]`` float32, of the query's smashed data; read each time."""
        return self._trace.array(f"{self._name}/gradients/{step}")


class TraceWriter:
    """A trace as it is written, visit by visit.

    Args:
        path: of the file, which is complete when `close` has written ``trace.json``.
    """

    def __init__(self, path: Path):
        self._file = zipfile.ZipFile(path, "w")  # stored as it is: gradients hardly shrink
        self.visits = 0

    def put(self, name: str, array: np.ndarray) -> None:
        """Write one array of the visit under way."""
        with self._file.open(f"visits/{self.visits}/{name}.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)

    def put_all(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Write several under a name."""
        for own, array in arrays.items():
            self.put(f"{name}/{own}", array)

    def close(self, about: Mapping[str, Any]) -> None:
        """Write what it is of, and be done."""
        self._file.writestr("trace.json", json.dumps({"format": FORMAT, **about, "visits": self.visits}))
        self._file.close()
