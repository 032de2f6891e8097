"""Power meters: what a board, a chip or a log says of the power that a machine takes.

A meter's figures go nowhere without its source and uncertainty. `choose` finds one, `Sampler` reads it while something
runs, `energy` makes energy of the readings.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from types import TracebackType
from typing import Any, Protocol

from simsfl.hw_profile.meters.board import Machine
from simsfl.hw_profile.meters.energy import Energy, Readings, Span, energy
from simsfl.hw_profile.meters.estimate import UtilisationModel
from simsfl.hw_profile.meters.ina import INA219, INA226
from simsfl.hw_profile.meters.log import Log
from simsfl.hw_profile.meters.pmic import Pmic
from simsfl.hw_profile.meters.rapl import Rapl
from simsfl.system.messages import unknown

__all__ = [
    "NAMES",
    "Energy",
    "Log",
    "Meter",
    "Readings",
    "Sampler",
    "Span",
    "account",
    "choose",
    "energy",
    "label",
    "present",
]

NAMES = ("pmic", "ina226", "ina219", "rapl", "model")
"""Those that may be found by themselves, the best first."""
SECONDS = 0.1
"""Between two readings."""


class Meter(Protocol):
    """Something that power is read from."""

    name: str
    source: str
    """What is measured, where and how: for people."""
    uncertainty: float
    """Of a figure, relative; as the source says where it does, else assumed."""
    estimated: bool
    """Whether the figures come from a model, and not from the machine's current."""

    def watts(self) -> float:
        """The power now, or its mean since the last call.

        Raises:
            OSError: it cannot be read just now.
        """


def choose(spec: str, machine: Machine) -> Meter | Log | None:
    """The meter that ``--meter`` asks for: a name, ``csv:FILE``, ``none``, or ``auto`` for the best that there is.

    The chips take their address and the shunt's resistance in ohm behind colons: ``ina219:0x41:0.01``.

    Raises:
        ValueError: it is not here; those that are, are named.
    """
    name, _, rest = spec.partition(":")
    if rest and name in ("none", "auto"):
        raise ValueError(f"meter: {name} takes nothing behind a colon; allowed: {name}")
    if name == "none":
        return None
    if name == "csv":
        return Log(rest)
    if name == "auto":
        return next(iter(present(machine)[0].values()), None)
    if name not in NAMES:
        raise unknown("meter", name, ["auto", *NAMES, "csv", "none"], allowed=f"auto, {', '.join(here(machine))}")
    try:
        return make(name, rest, machine)
    except ValueError as error:
        raise ValueError(f"meter: {error}; allowed here: {', '.join(here(machine))}") from error


def account(
    meter: Meter | Log, readings: Readings, spans: Sequence[Span], failures: tuple[int, str]
) -> tuple[dict[str, Any], Readings]:
    """What a meter says of some work, and the readings that it says so by: a log's are in the log.

    Args:
        spans: of the idle machine, of the work, and of the idle machine again.
        failures: how many readings failed, and why the last did.

    Raises:
        ValueError: there are not enough readings.
    """
    before, work, after = spans
    if isinstance(meter, Log):
        readings = meter.readings((before[0], after[1]))
    if failures[0] and len(readings) < 2:
        raise ValueError(f"meter: {meter.name} could not be read ({failures[1]}); allowed: another")
    found = {
        "meter": meter.name,
        "label": label(meter),
        "source": meter.source,
        "uncertainty": meter.uncertainty,
        "estimated": meter.estimated,
        "failed_readings": failures[0],
        **asdict(energy(readings, before, work, after, meter.uncertainty)),
    }
    return found, readings


def label(meter: Meter) -> str:
    """What goes with each figure that comes from a meter."""
    return f"{'estimated, ' if meter.estimated else ''}{meter.name} ±{meter.uncertainty:.0%}"


def here(machine: Machine) -> list[str]:
    """What ``--meter`` may be here, besides ``auto``."""
    return [*present(machine)[0], "csv:FILE", "none"]


def make(name: str, rest: str, machine: Machine) -> Meter:
    """One by name, with what stands behind its colon; raises a ValueError that says why it is not to be had."""
    makers: dict[str, Callable[[], Meter]] = {
        "pmic": lambda: Pmic(machine),
        "ina226": lambda: INA226(rest),
        "ina219": lambda: INA219(rest),
        "rapl": lambda: Rapl(machine),
        "model": lambda: UtilisationModel(machine),
    }
    if rest and not name.startswith("ina"):
        raise ValueError(f"{name} takes nothing behind a colon")
    return makers[name]()


def present(machine: Machine) -> tuple[dict[str, Meter], dict[str, str]]:
    """Those that can be read here, the best first; and why the others cannot."""
    found, refused = {}, {}
    for name in NAMES:
        try:
            found[name] = make(name, "", machine)
        except ValueError as error:
            refused[name] = str(error)
    return found, refused


class Sampler:
    """Reads a meter again and again, in the background, while it is entered.

    Args:
        meter: None to read nothing but `also`.
        also: called each time, such as for the temperature.

    Attributes:
        readings: unix seconds and watts.
        failures: readings that could not be had, and `last_error` why.
    """

    def __init__(self, meter: Meter | None, also: Callable[[], None] = lambda: None):
        self.meter, self._also = meter, also
        self.readings: Readings = []
        self.failures, self.last_error = 0, ""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def _read(self) -> None:
        while not self._over.wait(SECONDS):
            try:
                self._also()
                if self.meter:
                    self.readings.append((time.time(), self.meter.watts()))
            except Exception as error:  # whatever it is, the next reading may do better
                self.failures, self.last_error = self.failures + 1, str(error)

    @property
    def latest(self) -> Sequence[float]:
        """The latest readings, in watts."""
        return [watts for _, watts in self.readings[-60:]]
