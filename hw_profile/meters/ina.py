"""Texas Instruments' INA219 and INA226: chips that measure a voltage and the drop across a shunt, on I2C.

Registers are words with the high byte first, and I2C's word reads have the low byte first (data sheets SBOS448 and
SBOS547).
"""

from __future__ import annotations

import errno
from typing import Protocol

BUS = 1
ADDRESS, OHM = 0x40, 0.1
"""As the boards with these chips usually come."""
SETTINGS, SHUNT, VOLTAGE, MAKER = 0x00, 0x01, 0x02, 0xFE
TEXAS_INSTRUMENTS = 0x5449
HIGHEST_VOLTS = 26
"""That an INA219 bears."""


class Bus(Protocol):
    """An I2C bus, as smbus2 has it."""

    def read_word_data(self, address: int, register: int) -> int:
        """A word, low byte first."""


class INA219:
    """Power through the shunt.

    Args:
        rest: ``ADDRESS`` or ``ADDRESS:OHM``, such as ``0x41:0.01``; may be empty.
        bus: None to open the machine's.

    Raises:
        ValueError: there is no such chip, or no leave to ask.
    """

    name, uncertainty, estimated = "ina219", 0.02, False
    shunt_volts, bus_volts, bus_shift = 10e-6, 4e-3, 3
    """Of a step of each register; below the voltage are bits for other things."""

    def __init__(self, rest: str = "", bus: Bus | None = None):
        self._address, self._ohm = parsed(rest)
        self.source = (
            f"{self.name.upper()} at {self._address:#x}, shunt of {self._ohm:g} ohm: what flows through it, at its "
            "far end (uncertainty of chip and shunt, assumed)"
        )
        self._bus = bus or opened(self.name)
        try:
            self.check()
        except PermissionError as error:
            raise ValueError(no_leave()) from error
        except OSError as error:
            raise ValueError(f"no {self.name} answers at {self._address:#x} on I2C bus {BUS} ({error})") from error

    def check(self) -> None:
        """Raise an OSError if what answers is another chip, as far as one without an identity can be told.

        Bits 15 and 14 of its settings are 0, where an INA226 has a 1; a servo driver, which often has this address,
        would be at 29 V.
        """
        if self._register(SETTINGS) & 0xC000 or not 0 < self._volts() <= HIGHEST_VOLTS:
            raise OSError(f"what answers is another chip, or has no voltage up to {HIGHEST_VOLTS} V to measure")

    def watts(self) -> float:
        """See `Meter`."""
        drop = self._register(SHUNT)
        drop -= (drop & 0x8000) << 1  # it has a sign
        return self._volts() * drop * self.shunt_volts / self._ohm

    def _volts(self) -> float:
        return (self._register(VOLTAGE) >> self.bus_shift) * self.bus_volts

    def _register(self, register: int) -> int:
        word = self._bus.read_word_data(self._address, register)
        return (word & 0xFF) << 8 | word >> 8


class INA226(INA219):
    """The more exact one."""

    name, uncertainty = "ina226", 0.01
    shunt_volts, bus_volts, bus_shift = 2.5e-6, 1.25e-3, 0

    def check(self) -> None:
        """Raise an OSError if what answers is another chip."""
        if self._register(MAKER) != TEXAS_INSTRUMENTS:
            raise OSError("what answers is another chip")


def parsed(rest: str) -> tuple[int, float]:
    """Address and ohms."""
    address, _, ohm = rest.partition(":")
    try:
        found = int(address, 0) if address else ADDRESS, float(ohm) if ohm else OHM
    except ValueError:
        found = (0, 0.0)
    if not (0x40 <= found[0] <= 0x4F and found[1] > 0):
        raise ValueError(f"{rest!r} is no address and resistance (0x40 to 0x4f, as 0x40 or 0x40:0.1)")
    return found


def opened(name: str) -> Bus:
    """The machine's bus."""
    try:
        from smbus2 import SMBus  # noqa: PLC0415  (only those need it who have such a chip)
    except ImportError as error:
        raise ValueError(f"{name} needs the package smbus2 (pip install smbus2)") from error
    try:
        return SMBus(BUS)
    except PermissionError as error:
        raise ValueError(no_leave()) from error
    except OSError as error:
        hint = ": sudo raspi-config, Interface Options, I2C" if error.errno == errno.ENOENT else ""
        raise ValueError(f"{name} is not here (no I2C bus /dev/i2c-{BUS}{hint})") from error


def no_leave() -> str:
    """The error for those who may not use the bus."""
    return (
        f"no permission on /dev/i2c-{BUS}: it is for members of the group i2c (sudo usermod -aG i2c $USER, then log in "
        "again)"
    )
