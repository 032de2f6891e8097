"""Files of device profiles: of ``pi_bench.py``, of figures that others have published, and those that come along."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Protocol

import numpy as np

from simsfl.fleet.profiles import MEASURED, PHASES, PUBLISHED, Network, Profile, Work
from simsfl.system.decoding import Amount, Ordinal, Range, decode, read_json
from simsfl.system.messages import count_text, shortened, shown, unknown

FORMAT = 1
"""Version of the format of profiles' files."""
SHIPPED = Path(__file__).parent / "devices"
"""Directory of the profiles that come with simsfl: a directory for each, with its files."""


class WorkOf(Protocol):
    """Function that returns the work of a client."""

    def __call__(self, network: Mapping[str, Any], batch: int, views: int, graded: int) -> Work:
        """Return the work, given the fields of `Network`, the images of a batch, and the attributes of `Work`."""


@dataclass(frozen=True)
class _Kind:
    """How a device computed; figures of different kinds are not mixed, and None is what a file does not say."""

    device: str
    runtime: str | None = None
    dtype: str | None = None
    threads: Ordinal | None = None
    compile: bool | None = None

    def __str__(self) -> str:
        threads = count_text(self.threads, "thread") if self.threads else None
        parts = (self.device, self.runtime, self.dtype, threads, "compiled" if self.compile else None)
        return " ".join(filter(None, parts))


@dataclass(frozen=True)
class _Found:
    """What a file says of one piece of work.

    Attributes:
        file: the file.
        kind: how the device computed.
        work: the work.
        seconds: seconds of each phase that was timed.
        watts: power while the device waited, and while it worked; None if it was not measured.
    """

    file: Path
    kind: _Kind
    work: Work
    seconds: Mapping[str, float]
    watts: tuple[float, float] | None


@dataclass(frozen=True)
class _Spread:
    """Seconds of a phase: the median of several measurements, and how far these go."""

    median: Amount
    lowest: Amount
    highest: Amount


@dataclass(frozen=True)
class _Point:
    """Measured work in a profile's file."""

    network: Network
    batch_size: Ordinal
    dtype: str
    steps: Ordinal
    seconds: dict[str, _Spread]
    idle_watts: Amount | None
    busy_watts: Amount | None


@dataclass(frozen=True)
class _Measured:
    """The content of a profile's file that ``pi_bench.py --profile-out`` writes."""

    profile: int
    source: str
    device: str
    runtime: str
    threads: Ordinal
    compile: bool
    date: str
    how: str
    meter: str
    energy_failed: bool
    versions: dict[str, str | int]
    board: dict[str, str | int | float | None]
    points: list[_Point]


@dataclass(frozen=True)
class _Published:
    """The content of a profile's file with figures that others have published.

    ``how`` says where, and what they leave out. ``gflop_s`` are operations in a second, in GFLOP/s.
    """

    profile: int
    source: str
    device: str
    date: str
    how: str
    gflop_s: Annotated[float, Range(1e-9, 1e12)]
    idle_watts: Amount | None = None
    busy_watts: Amount | None = None


@dataclass(frozen=True)
class _Mean:
    """The part of a result's latency that a profile uses, in seconds."""

    mean: Amount


@dataclass(frozen=True)
class _Energy:
    """The part of a result's energy that a profile uses, in watts."""

    mean_watts: Amount
    idle_before: Amount
    idle_after: Amount


@dataclass(frozen=True)
class _Batch:
    """The part of a result's trace that is beside its network."""

    batch_size: Ordinal


def shipped() -> dict[str, list[Path]]:
    """Return the files of each profile that comes with simsfl, by the names of the profiles."""
    return {folder.name: sorted(folder.glob("*.json")) for folder in sorted(SHIPPED.iterdir()) if folder.is_dir()}


def files_of(device: str, folder: Path) -> list[Path]:
    """Return the files of a profile, given a name of `shipped`, or the path of a JSON file in a folder.

    Raises:
        ValueError: there is no such name.
    """
    if device.endswith(".json"):
        return [folder / device]
    known = shipped()
    if device not in known:
        raise unknown("name", device, known, also="a file whose name ends in .json")
    return known[device]


def about(files: Sequence[Path]) -> dict[str, str]:
    """Return ``source``, ``device``, ``date`` and ``how`` of a profile of `shipped`, given its files."""
    content = read_json(files[0])
    return {name: content[name] for name in ("source", "device", "date", "how")}


def network_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of some values that are fields of `Network`; raise a ValueError if they are not as it says."""
    return vars(decode(Network, _some(values, Network)))


def read_profile(paths: Sequence[Path], work_of: WorkOf, dtype: str | None = None) -> Profile:
    """Return what is known of a device, from files of ``pi_bench.py``, or from one of published figures.

    Args:
        paths: results (``result.json``) and profiles (``--profile-out``).
        work_of: returns the work of a client.
        dtype: precision of the forward passes whose figures are used; None if there is just one.

    Raises:
        ValueError: a file is neither, or they are of different devices, runtimes, numbers of threads or precisions.
    """
    found: list[_Found] = []
    for path in paths:
        content = read_json(path)
        try:
            if not isinstance(content, Mapping):
                raise ValueError(f"{shown(content)} is not an object")
            if content.get("source") == PUBLISHED:
                return _published(content, alone=len(paths) == 1)
            found += (_of_profile if "profile" in content else _of_result)(path, content, work_of)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else shortened(str(error))
            raise ValueError(f"{path} is no result or profile of pi_bench.py ({reason})") from error
    if not found:
        raise ValueError("no file is named; allowed: one or more")
    known = dict.fromkeys(one.kind.dtype or "unknown" for one in found)
    if dtype not in (None, *known):
        raise unknown("dtype", dtype, known)
    chosen = [one for one in found if dtype in (None, one.kind.dtype)]
    kinds = {one.kind: one.file for one in chosen}
    if len(kinds) > 1:
        mixed = " and ".join(f"{kind} ({file})" for kind, file in kinds.items())
        alone = "one device, runtime and number of threads, and one precision, which dtype chooses"
        raise ValueError(f"these are figures of {mixed}; allowed: {alone}")
    points = [(one.work, {phase: one.seconds.get(phase, 0.0) for phase in PHASES}) for one in chosen]
    watts = [one.watts for one in chosen if one.watts]
    return Profile(chosen[0].kind.device, points, *(np.mean(watts, axis=0).tolist() if watts else (None, None)))


def _published(content: Mapping[str, Any], *, alone: bool) -> Profile:
    """Return a profile of published figures, of which there is only one speed; see `read_profile` for the errors."""
    own = decode(_Published, content)
    _check_format(own.profile)
    if not alone:
        raise ValueError("published figures stand alone")
    return Profile(own.device, [], own.idle_watts, own.busy_watts, 1e9 * own.gflop_s)


def _of_profile(path: Path, content: Mapping[str, Any], work_of: WorkOf) -> Iterator[_Found]:
    """Yield what a profile's file says; see `read_profile` for the errors."""
    own = decode(_Measured, content)
    _check_format(own.profile)
    if own.source != MEASURED:
        raise ValueError(f"source: {own.source} is neither {MEASURED} nor {PUBLISHED}")
    if not own.points:
        raise ValueError("it has no points")
    for point in own.points:
        kind = _Kind(own.device, own.runtime, point.dtype, own.threads, own.compile)
        seconds = {phase: spread.median for phase, spread in point.seconds.items()}
        watts = None if point.idle_watts is None or point.busy_watts is None else (point.idle_watts, point.busy_watts)
        yield _Found(path, kind, _work(vars(point.network), point.batch_size, seconds, work_of), seconds, watts)


def _of_result(path: Path, content: Mapping[str, Any], work_of: WorkOf) -> Iterator[_Found]:
    """Yield what a ``result.json`` says; see `read_profile` for the errors."""
    latency = {phase: _some(own, _Mean) for phase, own in content["latency"].items() if phase in PHASES}
    seconds = {phase: own.mean for phase, own in decode(dict[str, _Mean], latency).items()}
    energy = content["energy"] and decode(_Energy, _some(content["energy"], _Energy))
    watts = ((energy.idle_before + energy.idle_after) / 2, energy.mean_watts) if energy else None
    kind = decode(_Kind, {"device": content["board"]["model"]} | _some(content, _Kind))
    batch = decode(_Batch, _some(content["trace"], _Batch)).batch_size
    yield _Found(path, kind, _work(network_of(content["trace"]), batch, seconds, work_of), seconds, watts)


def _work(network: Mapping[str, Any], batch: int, seconds: Mapping[str, float], work_of: WorkOf) -> Work:
    """Return the work that was measured, given its network, and the seconds of the phases that it had.

    Raises:
        ValueError: the network cannot be built, or its passes took no time.
    """
    if not seconds.get("query"):
        raise ValueError("query: it took no time; allowed: more than 0 seconds")
    return work_of(network, batch, views=1 + ("key" in seconds), graded=int("backward" in seconds))


def _check_format(version: int) -> None:
    """Raise a ValueError unless a file's format is that of this version of simsfl."""
    if version != FORMAT:
        raise ValueError(f"profile: {version} is another format; allowed: {FORMAT}")


def _some(values: Mapping[str, Any], kind: type) -> dict[str, Any]:
    """Return those of some values that are fields of a record."""
    names = {field.name for field in fields(kind)}
    return {name: value for name, value in values.items() if name in names}
