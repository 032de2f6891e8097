"""Fleet files: which clients have which device, network and power, in TOML."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np

from simsfl.system.decoding import Range, decode
from simsfl.system.messages import unknown
from simsfl.system.randomness import Purpose, numpy_generator

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

T = TypeVar("T")
_TABLES = ("group", "server")
_Positive = Annotated[float, Range(1e-9, 1e12)]
_Watts = Annotated[float, Range(0, 1e6)]


@dataclass(frozen=True)
class Spread:
    """A number that differs between clients: log-normal, with a median and the deviation of its logarithm."""

    median: _Positive
    sigma: Annotated[float, Range(0, 5)]

    def draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Draw a number for each client, ``[count]`` float64."""
        return self.median * np.exp(self.sigma * rng.standard_normal(count))


_Rate = _Positive | Spread


@dataclass(frozen=True)
class GroupOfDevices:
    """Clients with the same kind of device and network; a table ``[[group]]`` of the file.

    Attributes:
        name: what the group is called.
        share: share of all clients that it has.
        device: name of a profile that comes with simsfl, or files of ``pi_bench.py``, relative to the fleet file.
        dtype: precision of the forward passes, where a profile has several; else None.
        slowdown: how many times as long its devices take as the measured one.
        up_mbit_s: what a client sends in a second, in Mbit/s.
        down_mbit_s: what a client receives in a second, in Mbit/s.
        latency_ms: time that a message takes besides, in ms.
        idle_watts: power of a device that waits, sends or receives; None for that of the profile.
        busy_watts: power of a device that computes; None for that of the profile.
    """

    name: str
    share: Annotated[float, Range(0, 1)]
    device: str | list[str]
    up_mbit_s: _Rate
    down_mbit_s: _Rate
    dtype: str | None = None
    slowdown: _Rate = 1.0
    latency_ms: Annotated[float, Range(0, 1e6)] = 0.0
    idle_watts: _Watts | None = None
    busy_watts: _Watts | None = None


@dataclass(frozen=True)
class ServerOfFleet:
    """The server; the table ``[server]`` of the file. It has one of the first two.

    Attributes:
        step_ms: time of a step, in ms.
        gflop_s: operations in a second, in GFLOP/s, that its time is computed from.
        up_mbit_s: what it receives in a second from all clients together, in Mbit/s; None for any amount.
        down_mbit_s: what it sends in a second to all clients together, in Mbit/s; None for any amount.
    """

    step_ms: Annotated[float, Range(0, 1e9)] | None = None
    gflop_s: _Positive | None = None
    up_mbit_s: _Positive | None = None
    down_mbit_s: _Positive | None = None


@dataclass(frozen=True)
class Fleet:
    """A fleet file.

    Attributes:
        path: the file, which paths in it are relative to.
        groups: the kinds of devices.
        server: the server.
    """

    path: Path
    groups: list[GroupOfDevices]
    server: ServerOfFleet

    def members(self, clients: int, seed: int) -> np.ndarray:
        """Return the number of each client's group, ``[clients]`` int64.

        Clients are dealt to groups at random, by an address of their own, so that groups do not depend on which images
        clients hold. A group has its share of them, rounded so that all together are all clients.
        """
        edges = np.rint(np.cumsum([group.share for group in self.groups]) * clients).astype(np.int64)
        edges[-1] = clients
        dealt = np.searchsorted(edges, np.arange(clients), side="right")
        return numpy_generator(seed, Purpose.FLEET).permutation(dealt)


def read_fleet(path: Path) -> Fleet:
    """Return the fleet in a file.

    Raises:
        ValueError: the file cannot be read, or something in it is not as `GroupOfDevices` and `ServerOfFleet` say.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"fleet: {path} cannot be read as TOML ({reason})") from error
    try:
        return _fleet(path, content)
    except ValueError as error:
        raise ValueError(f"fleet: {path}: {error}") from error


def _fleet(path: Path, content: Mapping[str, Any]) -> Fleet:
    """Return the fleet that a file describes; see `read_fleet` for the errors."""
    for name in content:
        if name not in _TABLES:
            raise unknown("table", name, _TABLES)
    groups = content.get("group", [])
    if not isinstance(groups, list) or not groups:
        raise ValueError("it has no [[group]]; allowed: one or more")
    found = [_table(GroupOfDevices, table, f"group {number}") for number, table in enumerate(groups, start=1)]
    server = _table(ServerOfFleet, content.get("server", {}), "server")
    if not math.isclose(total := sum(group.share for group in found), 1, abs_tol=1e-6):
        raise ValueError(f"the groups' shares add up to {total:g}; allowed: 1")
    if (server.step_ms is None) == (server.gflop_s is None):
        raise ValueError("server: it has to have one of step_ms and gflop_s, and not both")
    return Fleet(path, found, server)


def _table(kind: type[T], table: Any, where: str) -> T:
    """Return a table of a fleet file as a record; see `read_fleet` for the errors."""
    names = [field.name for field in fields(kind)]
    try:
        for name in table if isinstance(table, Mapping) else ():
            if name not in names:
                raise unknown("field", name, names)
        return decode(kind, table)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
