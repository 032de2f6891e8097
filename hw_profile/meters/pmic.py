"""The Raspberry Pi 5's power management chip, which measures the board's supply rails."""

from __future__ import annotations

import math
import re

from simsfl.hw_profile.meters.board import Machine, model_of
from simsfl.hw_profile.meters.errors import Blocked, NotMeasuring

_BOARDS = ("Raspberry Pi 5", "Raspberry Pi Compute Module 5")
"""Beginnings of the models of board that have the chip; a Raspberry Pi 500 is one of them."""
_SLOPE, _OFFSET = 1.1451, 0.5879
"""Factor and watts that turn the sum over the rails into the power of the board.

A member of the community fitted them to a USB-C power meter on their own board (github.com/jfikar/RPi5-power). What
is supplied with 5 V directly, such as USB devices and HATs, is on no rail."""


class Pmic:
    """Current times voltage, summed over the rails and corrected for what they leave out.

    Raises:
        ValueError: this machine has no such chip.
        Blocked: the board has the chip, but it does not answer this user.
    """

    name, uncertainty, estimated = "pmic", 0.05, False
    source = (
        f"rails of the Pi 5's PMIC, corrected: {_SLOPE} x sum + {_OFFSET} W (a community fit to a power meter, "
        "jfikar/RPi5-power; without USB devices and HATs; uncertainty assumed)"
    )

    def __init__(self, machine: Machine):
        self._machine = machine
        try:
            self._names = frozenset(self._rails())
        except OSError as error:
            if not model_of(machine).startswith(_BOARDS):
                raise ValueError(f"pmic is not here (vcgencmd pmic_read_adc: {error})") from error
            if isinstance(error, (NotMeasuring, TimeoutError)):
                raise Blocked(f"pmic does not measure (vcgencmd pmic_read_adc: {error})") from error
            if isinstance(error, FileNotFoundError):
                remedy = "it comes with the package raspi-utils (sudo apt install raspi-utils)"
            else:
                remedy = "it is for members of the group video (sudo usermod -aG video $USER, then log in again)"
            raise Blocked(f"pmic cannot be asked (vcgencmd pmic_read_adc: {error}): {remedy}") from error

    def watts(self) -> float:
        """Return the present power in watts; see `Meter.watts`."""
        found = self._rails()
        if found.keys() != self._names:
            missing = ", ".join(sorted(self._names ^ found.keys()))
            raise OSError(f"the rails are not those of the first reading: {missing}")
        return _SLOPE * sum(found.values()) + _OFFSET

    def _rails(self) -> dict[str, float]:
        return _rails(self._machine.run(["vcgencmd", "pmic_read_adc"]))


def _rails(text: str) -> dict[str, float]:
    """Return the watts of each rail by name, of all those with a current.

    Args:
        text: the output of ``vcgencmd pmic_read_adc``.

    Raises:
        OSError: there is neither a current nor a voltage in the text.
        NotMeasuring: a rail has no voltage, a number is negative or malformed, or all rails are at 0 W.
    """
    read: dict[str, dict[str, float]] = {"A": {}, "V": {}}
    for name, unit, number in re.findall(r"(\w+)_([AV])\s+(?:current|volt)\(\d+\)=(\S*)", text):
        try:
            value = float(number.removesuffix(unit)) if number.endswith(unit) else math.nan  # a line that was cut
        except ValueError:
            value = math.nan
        if not 0 <= value < math.inf:
            raise NotMeasuring(f"{name}_{unit} is {number!r}")
        read[unit][name] = value
    amperes, volts = read["A"], read["V"]
    if not amperes and not volts:
        raise OSError("it does not report current and voltage of any rail")
    if not amperes or not amperes.keys() <= volts.keys():
        what = ", ".join(sorted(amperes.keys() - volts.keys())) or "any rail"
        raise NotMeasuring(f"it does not report current and voltage of {what}")
    found = {name: amperes[name] * volts[name] for name in amperes}
    if not any(found.values()):
        raise NotMeasuring("all its rails are at 0 W")
    return found
