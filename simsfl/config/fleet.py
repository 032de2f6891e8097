"""Fleet files: which clients have which device, network, battery and times of day, in TOML."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, TypeVar

from simsfl.system.decoding import Count, Ordinal, Range, decode
from simsfl.system.messages import unknown
from simsfl.system.reading import text_of

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

T = TypeVar("T")
_TABLES = ("group", "server")
_Positive = Annotated[float, Range(1e-9, 1e12)]
_Watts = Annotated[float, Range(0, 1e6)]
_Share = Annotated[float, Range(0, 1)]
_Hour = Annotated[float, Range(0, 24)]
_DAY = 24


@dataclass(frozen=True)
class Spread:
    """A number that differs between clients: log-normal, with a median and the deviation of its logarithm."""

    median: _Positive
    sigma: Annotated[float, Range(0, 5)]


@dataclass(frozen=True)
class Traced:
    """A rate that changes with time, as it was measured on a link."""

    trace: str
    """File of lines with two numbers, such as ``0.0 12.5``: seconds, and Mbit/s from then on; it repeats at its end."""


@dataclass(frozen=True)
class Hourly:
    """When clients are available: a probability for each hour of the day."""

    hours: list[_Share]
    """24 probabilities that a client is available, for the hours from midnight; each client's is drawn every hour."""


@dataclass(frozen=True)
class Timed:
    """When clients are available: the times in a file."""

    file: str
    """File of times, as the sampler "availability" has it, with a line for each client."""


@dataclass(frozen=True)
class Battery:
    """The batteries of a group.

    Attributes:
        wh: what a full one holds, in Wh.
        begins_at: charge at the beginning, 1 if it is full; or the lowest and the highest, between which it is drawn.
        stops_below: charge below which a client takes part in no round.
        charge_watts: power with which it is charged.
        charge_hours: hours of the day at which charging begins and ends; all day if left out.
    """

    wh: _Positive
    begins_at: _Share | list[_Share] = 1.0
    stops_below: _Share = 0.2
    charge_watts: _Watts = 0.0
    charge_hours: list[_Hour] | None = None


_Rate = _Positive | Spread | Traced


@dataclass(frozen=True, kw_only=True)
class GroupOfDevices:
    """Clients with the same kind of device and network; a table ``[[group]]`` of the file. It has a share, or ids.

    Attributes:
        name: what the group is called.
        share: share that it has of all clients that are in no group by their ids; None if its own are.
        ids: its clients, counted from 0; None if it has a share.
        device: name of a profile that comes with simsfl, or files of ``pi_bench.py``, relative to the fleet file.
        dtype: precision of the forward passes, where a profile has several; else None.
        slowdown: how many times as long its devices take as the measured one.
        up_mbit_s: what a client sends in a second, in Mbit/s.
        down_mbit_s: what a client receives in a second, in Mbit/s.
        latency_ms: time that a message takes besides, in ms.
        idle_watts: power of a device that waits, sends or receives; None for that of the profile.
        busy_watts: power of a device that computes; None for that of the profile.
        available: when its clients are available; None for always.
        battery: their batteries; None if they have mains power.
    """

    name: str
    share: _Share | None = None
    ids: list[Count] | None = None
    device: str | list[str]
    up_mbit_s: _Rate
    down_mbit_s: _Rate
    dtype: str | None = None
    slowdown: _Positive | Spread = 1.0
    latency_ms: Annotated[float, Range(0, 1e6)] = 0.0
    idle_watts: _Watts | None = None
    busy_watts: _Watts | None = None
    available: Hourly | Timed | None = None
    battery: Battery | None = None

    def __post_init__(self) -> None:
        if (self.share is None) == (self.ids is None):
            raise ValueError("it has to have one of share and ids, and not both")
        if isinstance(self.available, Hourly) and len(self.available.hours) != _DAY:
            raise ValueError(f"available: hours: {len(self.available.hours)} of them; allowed: {_DAY} probabilities")
        for name in ("begins_at", "charge_hours"):
            value = getattr(self.battery, name, None)
            if isinstance(value, list) and len(value) != 2:
                raise ValueError(f"battery: {name}: {value}; allowed: two numbers")

    @property
    def files(self) -> list[str]:
        """Return the files that the table names."""
        devices = [self.device] if isinstance(self.device, str) else self.device
        traces = [rate.trace for rate in (self.up_mbit_s, self.down_mbit_s) if isinstance(rate, Traced)]
        return [*devices, *traces, *([self.available.file] if isinstance(self.available, Timed) else [])]


@dataclass(frozen=True)
class ServerOfFleet:
    """The server; the table ``[server]`` of the file. It has one of the first two.

    Attributes:
        step_ms: time of a step, in ms.
        gflop_s: operations in a second, in GFLOP/s, that its time is computed from.
        up_mbit_s: what it receives in a second from all clients together, in Mbit/s; None for any amount.
        down_mbit_s: what it sends in a second to all clients together, in Mbit/s; None for any amount.
        idle_watts: its power while it waits; None if it is not known.
        busy_watts: its power while it computes; None if it is not known.
        begins_at_hour: hour of the day at which the run begins.
        waits_for: clients that have to be available before a round begins.
    """

    step_ms: Annotated[float, Range(0, 1e9)] | None = None
    gflop_s: _Positive | None = None
    up_mbit_s: _Positive | None = None
    down_mbit_s: _Positive | None = None
    idle_watts: _Watts | None = None
    busy_watts: _Watts | None = None
    begins_at_hour: _Hour = 0.0
    waits_for: Ordinal = 1


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

    @property
    def files(self) -> dict[str, Path]:
        """Return the files that the fleet is described by, itself among them, by what they are called in it."""
        named = {file for group in self.groups for file in group.files}
        return {"fleet": self.path} | {f"fleet: {file}": self.path.parent / file for file in sorted(named)}


def read_fleet(path: Path) -> Fleet:
    """Return the fleet in a file.

    Raises:
        ValueError: the file cannot be read, or something in it is not as `GroupOfDevices` and `ServerOfFleet` say.
    """
    try:
        content = tomllib.loads(text_of(path))
    except OSError as error:
        raise ValueError(f"fleet: {path} cannot be read ({error.strerror}); allowed: a TOML file of devices") from error
    except (ValueError, RecursionError) as error:  # the latter where it is nested without end
        raise ValueError(f"fleet: {path} cannot be read as TOML ({error})") from error
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
    names = [group.name for group in found]
    for number, name in enumerate(names, start=1):
        if name in names[: number - 1]:
            raise ValueError(f"group {number}: name: {name!r} is that of another group, too; allowed: one of its own")
    server = _table(ServerOfFleet, content.get("server", {}), "server")
    shares = [group.share for group in found if group.share is not None]
    if shares and not math.isclose(total := sum(shares), 1, abs_tol=1e-6):
        raise ValueError(f"the groups' shares add up to {total:g}; allowed: 1")
    ids = sorted(client for group in found for client in group.ids or ())
    if twice := [client for client, after in pairwise(ids) if client == after]:
        raise ValueError(f"ids: {twice[0]} is there twice; allowed: each client once")
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
