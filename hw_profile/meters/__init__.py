"""Power meters: boards, chips and logs that power is read from.

`choose` finds a meter, `Sampler` reads it in the background while something runs, and `energy` integrates the readings.
A meter's figures are never reported without its source and its uncertainty.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
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
from simsfl.system.paths import expanded

__all__ = [
    "METERS",
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

SECONDS = 0.1
"""Seconds between two readings."""


class Meter(Protocol):
    """A device, counter or model that power is read from."""

    name: str
    """Name of the meter, such as ``rapl``."""
    source: str
    """What is measured, where and how, in words for people."""
    uncertainty: float
    """Relative uncertainty of a reading; where the source does not state one, an assumed value."""
    estimated: bool
    """Whether the readings come from a model instead of a measurement of the machine."""

    def watts(self) -> float:
        """Return the power in watts: the present one, or the mean since the last call.

        Raises:
            OSError: the meter cannot be read at the moment.
        """


def _plain(name: str, meter: Callable[[Machine], Meter], text: str, machine: Machine) -> Meter:
    """Return a meter that takes nothing behind a colon; raise a ValueError if there is something."""
    if text:
        raise ValueError(f"{name} takes nothing behind a colon")
    return meter(machine)


METERS: dict[str, Callable[[str, Machine], Meter]] = {
    "pmic": partial(_plain, "pmic", Pmic),
    "ina226": lambda text, machine: INA226(text),
    "ina219": lambda text, machine: INA219(text),
    "rapl": partial(_plain, "rapl", Rapl),
    "model": partial(_plain, "model", UtilisationModel),
}
"""Meters by name, the best first, which is the order that ``auto`` looks for them.

Each is a function of the text behind the name's colon and the machine, which returns the meter or raises a ValueError
that says why there is none.
"""


def choose(spec: str, machine: Machine) -> Meter | Log | None:
    """Return the meter that ``--meter`` asks for, or None for ``none`` and where ``auto`` finds no meter.

    Args:
        spec: one of `METERS`, ``csv:FILE``, ``none``, or ``auto`` for the best meter that is found here. For the chips,
            the address and the resistance of the shunt in ohm may follow after colons: ``ina219:0x41:0.01``.
        machine: access to the system.

    Raises:
        ValueError: the name is unknown, or the meter is not available here; the error lists those that are.
    """
    name, _, rest = spec.partition(":")
    if rest and name in ("none", "auto"):
        raise ValueError(f"meter: {name} takes nothing behind a colon; allowed: {name}")
    if name == "none":
        return None
    if name == "csv":
        return Log(expanded(rest))
    if name == "auto":
        return next(iter(present(machine)[0].values()), None)
    if name not in METERS:
        raise unknown("meter", name, ["auto", *METERS, "csv", "none"], allowed=f"auto, {', '.join(_here(machine))}")
    try:
        return METERS[name](rest, machine)
    except ValueError as error:
        raise ValueError(f"meter: {error}; allowed here: {', '.join(_here(machine))}") from error


def account(
    meter: Meter | Log, readings: Readings, spans: Sequence[Span], failures: tuple[int, str]
) -> tuple[dict[str, Any], Readings]:
    """Return the result entries about the energy of some work, and the readings that they are computed from.

    Args:
        meter: a `Log` is read only now, and its readings replace the given ones.
        readings: unix seconds and watts.
        spans: the time spans of the idle machine before, of the work, and of the idle machine after.
        failures: how many readings failed, and the error of the last failure.

    Raises:
        ValueError: there are not enough readings, or the log cannot be read.
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
    """Return the short text that goes with each figure from a meter, such as ``rapl ±5%``."""
    return f"{'estimated, ' if meter.estimated else ''}{meter.name} ±{meter.uncertainty:.0%}"


def _here(machine: Machine) -> list[str]:
    """Return the values that ``--meter`` accepts on this machine, besides ``auto``."""
    return [*present(machine)[0], "csv:FILE", "none"]


def present(machine: Machine) -> tuple[dict[str, Meter], dict[str, str]]:
    """Return the meters that can be read on this machine, the best first, and the reasons why the others cannot."""
    found, refused = {}, {}
    for name, meter in METERS.items():
        try:
            found[name] = meter("", machine)
        except ValueError as error:
            refused[name] = str(error)
    return found, refused


class Sampler:
    """Reads a meter repeatedly in a background thread while the context is entered.

    Args:
        meter: the meter to read; None to call `also` only.
        also: called before each reading, for example to read the temperature.

    Attributes:
        readings: unix seconds and watts of each reading.
        failures: number of readings that failed.
        last_error: text of the latest failure.
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
            except Exception as error:  # of any kind: the next reading may succeed
                self.failures, self.last_error = self.failures + 1, str(error)

    @property
    def latest(self) -> Sequence[float]:
        """Return the latest readings in watts, 60 at most."""
        return [watts for _, watts in self.readings[-60:]]
