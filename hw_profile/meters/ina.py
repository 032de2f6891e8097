"""INA219 and INA226 of Texas Instruments: I2C chips that measure a voltage and the voltage drop across a shunt.

The chips send the high byte of a register first, while a word read of SMBus takes the low byte first, so bytes are
swapped here (data sheets SBOS448 and SBOS547).
"""

from __future__ import annotations

import errno
from typing import Protocol

_BUS = 1
"""Number of the I2C bus."""
_ADDRESS, _OHM = 0x40, 0.1
"""I2C address, and resistance of the shunt in ohm, that boards with these chips usually have."""
_SETTINGS, _SHUNT, _VOLTAGE, _MAKER = 0x00, 0x01, 0x02, 0xFE
_TEXAS_INSTRUMENTS = 0x5449
_HIGHEST_VOLTS = 26
"""Highest voltage that an INA219 may be connected to."""


class Bus(Protocol):
    """An I2C bus with the interface of smbus2."""

    def read_word_data(self, address: int, register: int) -> int:
        """Return a word that is read with its low byte first."""


class INA219:
    """Power that flows through the shunt of an INA219.

    Args:
        rest: ``ADDRESS`` or ``ADDRESS:OHM``, such as ``0x41:0.01``; may be empty for 0x40 and 0.1 ohm.
        bus: the I2C bus; None to open the machine's own.

    Raises:
        ValueError: `rest` is malformed, no such chip answers, or this user may not use the bus.
    """

    name, uncertainty, estimated = "ina219", 0.02, False
    shunt_volts, bus_volts, bus_shift = 10e-6, 4e-3, 3
    """Volts per unit of the shunt and the bus register; the lowest `bus_shift` bits of the latter are flags."""

    def __init__(self, rest: str = "", bus: Bus | None = None):
        self._address, self._ohm = _parsed(rest)
        self.source = (
            f"{self.name.upper()} at {self._address:#x}, shunt of {self._ohm:g} ohm: what flows through it, at its "
            "far end (uncertainty of chip and shunt, assumed)"
        )
        self._bus = bus or _opened(self.name)
        try:
            self._check()
        except PermissionError as error:
            raise ValueError(_no_permission()) from error
        except OSError as error:
            raise ValueError(f"no {self.name} answers at {self._address:#x} on I2C bus {_BUS} ({error})") from error

    def _check(self) -> None:
        """Raise an OSError if another chip answers, as far as a chip without an identity register can be recognised.

        Bits 15 and 14 of an INA219's settings are 0, while an INA226 has a 1 there; a servo driver, which often has the
        same address, would show 29 V.
        """
        if self._register(_SETTINGS) & 0xC000 or not 0 < self._volts() <= _HIGHEST_VOLTS:
            raise OSError(f"what answers is another chip, or has no voltage up to {_HIGHEST_VOLTS} V to measure")

    def watts(self) -> float:
        """Return the present power in watts; see `Meter.watts`."""
        drop = self._register(_SHUNT)
        drop -= (drop & 0x8000) << 1  # the register is signed, in two's complement
        return self._volts() * drop * self.shunt_volts / self._ohm

    def _volts(self) -> float:
        return (self._register(_VOLTAGE) >> self.bus_shift) * self.bus_volts

    def _register(self, register: int) -> int:
        word = self._bus.read_word_data(self._address, register)
        return (word & 0xFF) << 8 | word >> 8


class INA226(INA219):
    """Power that flows through the shunt of an INA226, which is more exact than an INA219."""

    name, uncertainty = "ina226", 0.01
    shunt_volts, bus_volts, bus_shift = 2.5e-6, 1.25e-3, 0

    def _check(self) -> None:
        """Raise an OSError if the maker's register does not name Texas Instruments."""
        if self._register(_MAKER) != _TEXAS_INSTRUMENTS:
            raise OSError("what answers is another chip")


def _parsed(rest: str) -> tuple[int, float]:
    """Return the I2C address and the ohms of the shunt in ``ADDRESS:OHM``; what is missing has its usual value.

    Raises:
        ValueError: the text is not an address and a positive resistance.
    """
    address, _, ohm = rest.partition(":")
    try:
        found = int(address, 0) if address else _ADDRESS, float(ohm) if ohm else _OHM
    except ValueError:
        found = (0, 0.0)
    if not (0x40 <= found[0] <= 0x4F and found[1] > 0):
        raise ValueError(f"{rest!r} is no address and resistance (0x40 to 0x4f, as 0x40 or 0x40:0.1)")
    return found


def _opened(name: str) -> Bus:
    """Return the machine's I2C bus.

    Args:
        name: name of the chip, for error messages.

    Raises:
        ValueError: smbus2 is not installed, there is no such bus, or this user may not use it.
    """
    try:
        from smbus2 import SMBus  # noqa: PLC0415  (needed only with such a chip)
    except ImportError as error:
        raise ValueError(f"{name} needs the package smbus2 (pip install smbus2)") from error
    try:
        return SMBus(_BUS)
    except PermissionError as error:
        raise ValueError(_no_permission()) from error
    except OSError as error:
        hint = ": sudo raspi-config, Interface Options, I2C" if error.errno == errno.ENOENT else ""
        raise ValueError(f"{name} is not here (no I2C bus /dev/i2c-{_BUS}{hint})") from error


def _no_permission() -> str:
    """Return the error text for users who may not use the bus."""
    return (
        f"no permission on /dev/i2c-{_BUS}: it is for members of the group i2c (sudo usermod -aG i2c $USER, then log "
        "in again)"
    )
