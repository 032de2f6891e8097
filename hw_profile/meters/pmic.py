"""The Raspberry Pi 5's power management chip, which measures the board's supply rails."""

from __future__ import annotations

import re

from simsfl.hw_profile.meters.board import Machine

_SLOPE, _OFFSET = 1.1451, 0.5879
"""Factor and watts that turn the sum over the rails into the power of the board.

A member of the community fitted them to a USB-C power meter on their own board (github.com/jfikar/RPi5-power). What
is supplied with 5 V directly, such as USB devices and HATs, is on no rail."""


class Pmic:
    """Current times voltage, summed over the rails and corrected for what they leave out.

    Raises:
        ValueError: this machine has no such chip.
    """

    name, uncertainty, estimated = "pmic", 0.05, False
    source = (
        f"rails of the Pi 5's PMIC, corrected: {_SLOPE} x sum + {_OFFSET} W (a community fit to a power meter, "
        "jfikar/RPi5-power; without USB devices and HATs; uncertainty assumed)"
    )

    def __init__(self, machine: Machine):
        self._machine = machine
        try:
            self.watts()
        except OSError as error:
            raise ValueError(f"pmic is not here (vcgencmd pmic_read_adc: {error})") from error

    def watts(self) -> float:
        """Return the present power in watts; see `Meter.watts`."""
        return _SLOPE * rails(self._machine.run(["vcgencmd", "pmic_read_adc"])) + _OFFSET


def rails(text: str) -> float:
    """Return the watts of all rails for which both a current and a voltage are printed.

    Args:
        text: the output of ``vcgencmd pmic_read_adc``.

    Raises:
        OSError: there is no such rail in the text.
    """
    found = re.findall(r"(\w+)_([AV])\s+(?:current|volt)\(\d+\)=([\d.]+)[AV]", text)
    amperes, volts = ({name: float(value) for name, unit, value in found if unit == kind} for kind in "AV")
    if not amperes.keys() & volts.keys():
        raise OSError("it says nothing of rails")
    return sum(amperes[name] * volts[name] for name in amperes.keys() & volts.keys())
