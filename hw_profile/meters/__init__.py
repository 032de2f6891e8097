"""Power meters: boards, chips and logs that power is read from.

`choose` finds a meter, `Sampler` reads it in the background while something runs, and `energy` integrates the readings.
A meter's figures are never reported without its source and its uncertainty.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from simsfl.hw_profile.meters.board import Machine
from simsfl.hw_profile.meters.energy import Energy, Readings, Span, energy
from simsfl.hw_profile.meters.errors import Blocked, Clipped
from simsfl.hw_profile.meters.estimate import UtilisationModel
from simsfl.hw_profile.meters.ina import INA219, INA226
from simsfl.hw_profile.meters.log import Log
from simsfl.hw_profile.meters.pmic import Pmic
from simsfl.hw_profile.meters.rapl import Rapl
from simsfl.hw_profile.meters.sampler import Meter, Record, Sampler
from simsfl.system.messages import count_text, unknown
from simsfl.system.paths import expanded

__all__ = [
    "METERS",
    "Blocked",
    "Clipped",
    "Energy",
    "Log",
    "Meter",
    "Readings",
    "Record",
    "Sampler",
    "Span",
    "absent",
    "account",
    "choose",
    "energy",
    "label",
    "present",
]

logger = logging.getLogger(__name__)  # `log` is a module of this package

_MOST_WATTS = 1e5
"""Largest power in watts that is taken for that of a computer."""
_CLOCK_SECONDS = 0.1
"""Largest number of seconds by which this machine's time of day may be set during a measurement with a log."""


def _plain(name: str, meter: Callable[[Machine], Meter], text: str, machine: Machine) -> Meter:
    """Return a meter that takes no settings after a colon; raise a ValueError if there are some."""
    if text:
        raise ValueError(f"{name} takes nothing after a colon")
    return meter(machine)


METERS: dict[str, Callable[[str, Machine], Meter]] = {
    "pmic": partial(_plain, "pmic", Pmic),
    "ina226": lambda text, machine: INA226(text),
    "ina219": lambda text, machine: INA219(text),
    "rapl": partial(_plain, "rapl", Rapl),
    "model": partial(_plain, "model", UtilisationModel),
}
"""Meters by name, the best first, which is the order in which ``auto`` looks for them.

Each is a function of the text after the name's colon and of the machine. It returns the meter, raises `Blocked` where
the user can make it available, and another ValueError with the reason where the machine does not have it.
"""


def choose(spec: str, machine: Machine) -> Meter | Log | None:
    """Return the meter that ``--meter`` asks for, or None for ``none`` and where ``auto`` finds no meter.

    Where ``auto`` finds only an estimate, a warning names the meters that the user could make available.

    Args:
        spec: one of `METERS`, ``csv:FILE``, ``none``, or ``auto`` for the best meter that is found here. For the chips,
            the address and the resistance of the shunt in ohm may follow after colons: ``ina219:0x41:0.01``.
        machine: access to the system.

    Raises:
        ValueError: the name is unknown, or the meter is not available here; the error lists those that are.
    """
    name, _, rest = spec.partition(":")
    if rest and name in ("none", "auto"):
        raise ValueError(f"meter: {name} takes nothing after a colon; allowed: {name}")
    if name == "none":
        return None
    if name == "csv":
        return Log(expanded(rest))
    if name == "auto":
        return _best(machine)
    if name not in METERS:
        raise unknown("meter", name, ["auto", *METERS, "csv", "none"], allowed=f"auto, {', '.join(_here(machine))}")
    try:
        return METERS[name](rest, machine)
    except ValueError as error:
        raise ValueError(f"meter: {error}; allowed here: {', '.join(_here(machine))}") from error


def _best(machine: Machine) -> Meter | None:
    """Return the best meter of a machine, or None; warn if it is an estimate although a real meter may be there."""
    found, refused = present(machine)
    best = next(iter(found.values()), None)
    hindrances = _blocked(refused)
    if best is not None and best.estimated and hindrances:
        logger.warning("power is only estimated, although there may be a better meter: %s", "; ".join(hindrances))
    return best


def account(meter: Meter | Log, record: Record, spans: Sequence[Span]) -> tuple[dict[str, Any], Readings]:
    """Return the result entries about the energy of some work, and the readings that they are computed from.

    Args:
        meter: a `Log` is read only now, and its readings replace those of the record.
        record: what the meter has shown.
        spans: the time spans of the idle machine before, of the work, and of the idle machine after, in unix seconds.

    Raises:
        ValueError: there are not enough readings, some were beyond the range of the meter, or the log cannot be used.
    """
    before, work, after = spans
    readings = record.readings
    if isinstance(meter, Log):
        if abs(record.clock_moved) > _CLOCK_SECONDS:
            raise ValueError(
                f"meter: this machine's clock was set by {record.clock_moved:+.1f} s during the measurement, so the "
                "times of a log cannot be compared with it; allowed: another measurement"
            )
        readings = meter.readings((before[0], after[1]))
    clipped = [text for at, text in record.clipped if before[0] <= at <= after[1]]
    if clipped:
        count = count_text(len(clipped), "reading")
        raise ValueError(
            f"meter: {count} of {meter.name} beyond its range ({clipped[-1]}), so the mean is too low; allowed: a "
            "larger range, as with a smaller shunt"
        )
    odd = max((watts for _, watts in readings), key=abs, default=1.0)
    if not 0 < abs(odd) <= _MOST_WATTS:
        what = f"a reading of {odd:g} W" if odd else "no reading but 0 W"
        raise ValueError(f"meter: {meter.name} has {what}; allowed: a meter in the supply line of this computer")
    try:
        figures = energy(readings, before, work, after, meter.uncertainty)
    except ValueError as error:
        if not record.failures:
            raise
        failed = f"{count_text(record.failures, 'reading')} of {meter.name} failed ({record.last_error})"
        raise ValueError(f"meter: {failed}, which leaves {str(error).removeprefix('meter: ')}") from error
    found = {
        "meter": meter.name,
        "label": label(meter),
        "source": meter.source,
        "uncertainty": meter.uncertainty,
        "estimated": meter.estimated,
        "failed_readings": record.failures,
        "warning": _sign_warning(figures.below_zero),
        **asdict(figures),
    }
    return found, readings


def _sign_warning(below_zero: int) -> str:
    """Return what a number of readings below 0 W means, for people; an empty text if there are none."""
    if not below_zero:
        return ""
    return (
        f"{count_text(below_zero, 'reading')} below 0 W: VIN+ and VIN- may be swapped, or the meter is connected the "
        "other way round"
    )


def label(meter: Meter) -> str:
    """Return the short text that goes with each figure from a meter, such as ``rapl ±5%``."""
    return f"{'estimated, ' if meter.estimated else ''}{meter.name} ±{meter.uncertainty:.0%}"


def _here(machine: Machine) -> list[str]:
    """Return the values that ``--meter`` accepts on this machine, besides ``auto``."""
    return [*present(machine)[0], "csv:FILE", "none"]


def present(machine: Machine) -> tuple[dict[str, Meter], dict[str, ValueError]]:
    """Return the meters that can be read on this machine, the best first, and the reasons why the others cannot."""
    found, refused = {}, {}
    for name, meter in METERS.items():
        try:
            found[name] = meter("", machine)
        except ValueError as error:
            refused[name] = error
    return found, refused


def absent(machine: Machine) -> str:
    """Return that no meter is found on a machine, and what the user could do to make one available."""
    return "; ".join(["no meter found", *_blocked(present(machine)[1])])


def _blocked(refused: dict[str, ValueError]) -> list[str]:
    """Return the texts of the errors, each once, about meters that the user could make available."""
    return list(dict.fromkeys(str(error) for error in refused.values() if isinstance(error, Blocked)))
