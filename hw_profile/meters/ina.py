"""INA219 and INA226 of Texas Instruments: I2C chips that measure a voltage and the voltage drop across a shunt.

The chips send the high byte of a register first, while a word read of SMBus takes the low byte first, so bytes are
swapped here (data sheets SBOS448 and SBOS547).
"""

from __future__ import annotations

import errno
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from simsfl.hw_profile.meters.errors import Blocked, Clipped, NotMeasuring

_BUS = 1
"""Number of the I2C bus."""
_ADDRESS, _OHM = 0x40, 0.1
"""I2C address, and resistance of the shunt in ohm, that boards with these chips usually have."""
_SETTINGS, _SHUNT, _VOLTAGE, _ALERTS = 0x00, 0x01, 0x02, 0x06
"""Numbers of registers; an INA219 has no register of alerts."""
_IDENTITIES = ((0xFE, 0xFF), (0x3E, 0x3F))
"""Registers of the maker and of the die, on an INA226 and its contemporaries, and on newer chips."""
_TEXAS_INSTRUMENTS = 0x5449
_DIES = {
    0x226: "INA226",
    0x227: "INA260",
    0x322: "INA3221",
    0x228: "INA228",
    0x237: "INA237",
    0x238: "INA238",
    0xA08: "INA236",
    0xA48: "INA234",
}
"""Chips by the number of their die; the lowest four bits of the register, a revision, are left out."""
_CONTINUOUS = 0b111
"""Mode of operation in which a chip measures both shunt and voltage again and again."""
_MODES = ("power-down", "single", "single", "single", "power-down", "shunt alone", "voltage alone")
"""The other modes of operation, by number."""
_SLOWEST = 1.0
"""Longest time in seconds that a chip may take for a reading; the spans of the idle machine are a few times as long."""


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
        ValueError: `rest` is malformed, or no such chip answers.
        Blocked: the chip does not measure, or is another one that is known, or this user may not use the bus.
    """

    name, uncertainty, estimated = "ina219", 0.02, False
    shunt_volts, bus_volts, bus_shift = 10e-6, 4e-3, 3
    """Volts per unit of the shunt and the bus register; the lowest `bus_shift` bits of the latter are flags."""
    usual_settings = 0x399F
    """Settings after power-on."""

    def __init__(self, rest: str = "", bus: Bus | None = None):
        self._address, self._ohm = _parsed(rest)
        self.source = (
            f"{self.name.upper()} at {self._address:#x}, shunt of {self._ohm:g} ohm: what flows through it, at its "
            "far end (uncertainty of chip and shunt, assumed)"
        )
        self._bus = bus or _opened(self.name)
        try:
            self._identify(self._register(_SETTINGS))
            with suppress(Clipped):  # the next readings may be within the range
                self.watts()
        except NotMeasuring as error:
            raise Blocked(f"{self.name} at {self._address:#x} does not measure: {error}") from error
        except PermissionError as error:
            raise Blocked(_no_permission()) from error
        except OSError as error:
            raise ValueError(f"no {self.name} answers at {self._address:#x} on I2C bus {_BUS} ({error})") from error

    def watts(self) -> float:
        """Return the present power in watts, negative if the current flows from VIN- to VIN+; see `Meter.watts`."""
        settings = self._register(_SETTINGS)
        self._check_settings(settings)
        drop = self._register(_SHUNT)
        drop -= (drop & 0x8000) << 1  # the register is signed, in two's complement
        word = self._register(_VOLTAGE)
        volts = self._volts(word)
        if not volts:
            raise NotMeasuring("it has no voltage, so the far end of its shunt may not be connected")
        full_scale, highest = self._ranges(settings)
        if abs(drop) >= full_scale:
            most = full_scale * self.shunt_volts
            raise Clipped(f"its shunt is at full scale, {1000 * most:g} mV or {most / self._ohm:g} A")
        if volts >= highest:
            raise Clipped(f"its voltage is at the end of its range, {highest} V")
        if self._overflows(word):
            raise Clipped("its overflow flag is set")
        return volts * drop * self.shunt_volts / self._ohm

    def _check_settings(self, settings: int) -> None:
        """Raise NotMeasuring unless the chip measures shunt and voltage all the time."""
        mode = settings & 0b111
        if mode != _CONTINUOUS:
            raise NotMeasuring(f"its mode is {mode} ({_MODES[mode]}); allowed: {_CONTINUOUS}, {self._remedy()}")

    def _remedy(self) -> str:
        """Return the command that gives the chip its usual settings."""
        swapped = int.from_bytes(self.usual_settings.to_bytes(2, "big"), "little")
        return f"as after i2cset -y {_BUS} {self._address:#x} 0 {swapped:#06x} w"

    def _ranges(self, settings: int) -> tuple[int, int]:
        """Return the ends of both ranges: in units of the shunt register, and in volts."""
        return 4000 << (settings >> 11 & 0b11), 26 if settings & 0x2000 else 16

    def _overflows(self, word: int) -> bool:
        """Return whether the flag of overflow is set, which is in the bus register of an INA219."""
        return bool(word & 1)

    def _identify(self, settings: int) -> None:
        """Raise an OSError if another chip answers, as far as an INA219, which has no identity, can be recognised.

        Bits 15 and 14 of its settings are 0, while chips with similar registers have a 1 there; a servo driver, which
        often has the same address, would show 29 V.
        """
        volts = self._volts(self._register(_VOLTAGE))
        if self._is_ina226():
            raise OSError("what answers is another chip, INA226")
        if settings & 0xC000 or not 0 < volts <= self._ranges(0x2000)[1]:
            raise OSError(
                f"what answers is another chip, or has no voltage up to 26 V to measure: settings {settings:#06x}, "
                f"{volts:.2f} V"
            )

    def _is_ina226(self) -> bool:
        """Return whether the registers of maker and die are those of an INA226; other chips may not have them.

        Raises:
            Blocked: they are those of a chip that cannot be read here.
        """
        for maker, die in _IDENTITIES:
            with suppress(OSError):  # an INA219 need not answer for registers that it lacks
                if self._register(maker) == _TEXAS_INSTRUMENTS:
                    number = self._register(die)
                    chip = _DIES.get(number >> 4, f"die {number:#06x} of the same maker")
                    if chip == "INA226":
                        return True
                    where = f"{self._address:#x} on I2C bus {_BUS}"
                    raise Blocked(
                        f"what answers at {where} is another chip, {chip}, and only INA219 and INA226 are read"
                    )
        return False

    def _volts(self, word: int) -> float:
        """Return the voltage that the bus register holds."""
        return (word >> self.bus_shift) * self.bus_volts

    def _register(self, register: int) -> int:
        word = self._bus.read_word_data(self._address, register)
        return (word & 0xFF) << 8 | word >> 8


class INA226(INA219):
    """Power that flows through the shunt of an INA226, which is more exact than an INA219."""

    name, uncertainty = "ina226", 0.01
    shunt_volts, bus_volts, bus_shift = 2.5e-6, 1.25e-3, 0
    usual_settings = 0x4127

    _AVERAGED = (1, 4, 16, 64, 128, 256, 512, 1024)
    """Numbers of conversions that are averaged, by the settings' bits 11 to 9."""
    _CONVERSION = (140e-6, 204e-6, 332e-6, 588e-6, 1.1e-3, 2.116e-3, 4.156e-3, 8.244e-3)
    """Seconds of a conversion, by the settings' bits 8 to 6 for the voltage and 5 to 3 for the shunt."""

    def _check_settings(self, settings: int) -> None:
        super()._check_settings(settings)
        averaged, voltage, shunt = (settings >> bit & 0b111 for bit in (9, 6, 3))
        seconds = self._AVERAGED[averaged] * (self._CONVERSION[voltage] + self._CONVERSION[shunt])
        if seconds > _SLOWEST:
            raise NotMeasuring(f"a reading takes {seconds:.1f} s; allowed: {_SLOWEST:g} s, {self._remedy()}")

    def _ranges(self, settings: int) -> tuple[int, int]:
        return 0x7FFF, 36

    def _overflows(self, word: int) -> bool:
        """Return whether the flag of overflow is set: bit 2 of the register of alerts.

        The flag is about the power that the chip itself computes, so no reading fails because it cannot be read.
        """
        with suppress(OSError):
            return bool(self._register(_ALERTS) & 0b100)
        return False

    def _identify(self, settings: int) -> None:
        """Raise an OSError unless the registers of maker and die are those of an INA226."""
        if not self._is_ina226():
            nameless = "perhaps one without an identity"
            if not settings & 0xC000:
                nameless += ", such as an INA219"
            raise OSError(f"what answers is another chip, {nameless}")


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
    if not (0x40 <= found[0] <= 0x4F and 0 < found[1] < float("inf")):
        raise ValueError(f"{rest!r} is no address and resistance (0x40 to 0x4f, as 0x40 or 0x40:0.1)")
    return found


def _opened(name: str) -> Bus:
    """Return the machine's I2C bus.

    Args:
        name: name of the chip, for error messages.

    Raises:
        ValueError: there is no such bus, or smbus2 is not installed.
        Blocked: there is such a bus, and smbus2 is not installed, or this user may not use the bus.
    """
    device = Path(f"/dev/i2c-{_BUS}")
    try:
        from smbus2 import SMBus  # noqa: PLC0415  (needed only with such a chip)
    except ImportError as error:
        kind = Blocked if device.exists() else ValueError
        raise kind(f"{name} needs the package smbus2 (pip install smbus2)") from error
    try:
        return SMBus(_BUS)
    except PermissionError as error:
        raise Blocked(_no_permission()) from error
    except OSError as error:
        hint = ": sudo raspi-config, Interface Options, I2C" if error.errno == errno.ENOENT else ""
        raise ValueError(f"{name} is not here (no I2C bus {device}{hint})") from error


def _no_permission() -> str:
    """Return the error text for users who may not use the bus."""
    return (
        f"no permission on /dev/i2c-{_BUS}: it is for members of the group i2c (sudo usermod -aG i2c $USER, then log "
        "in again)"
    )
