"""The Raspberry Pi 5's power management chip, which measures its rails."""

from __future__ import annotations

import re

from simsfl.hw_profile.meters.board import Machine

SLOPE, OFFSET = 1.1451, 0.5879
"""From the rails' sum to what the board takes: a fit to a USB-C power meter, by one of the community on their board
(github.com/jfikar/RPi5-power). What takes 5 V directly, such as USB devices and HATs, is on no rail."""


class Pmic:
    """Current times voltage, summed over the rails and corrected for what they leave out.

    Raises:
        ValueError: there is no such chip.
    """

    name, uncertainty, estimated = "pmic", 0.05, False
    source = (
        f"rails of the Pi 5's PMIC, corrected: {SLOPE} x sum + {OFFSET} W (a community fit to a power meter, "
        "jfikar/RPi5-power; without USB devices and HATs; uncertainty assumed)"
    )

    def __init__(self, machine: Machine):
        self._machine = machine
        try:
            self.watts()
        except OSError as error:
            raise ValueError(f"pmic is not here (vcgencmd pmic_read_adc: {error})") from error

    def watts(self) -> float:
        """See `Meter`."""
        return SLOPE * rails(self._machine.run(["vcgencmd", "pmic_read_adc"])) + OFFSET


def rails(text: str) -> float:
    """Watts of all rails of which there are both a current and a voltage.

    Raises:
        OSError: there is none.
    """
    found = re.findall(r"(\w+)_([AV])\s+(?:current|volt)\(\d+\)=([\d.]+)[AV]", text)
    amperes, volts = ({name: float(value) for name, unit, value in found if unit == kind} for kind in "AV")
    if not amperes.keys() & volts.keys():
        raise OSError("it says nothing of rails")
    return sum(amperes[name] * volts[name] for name in amperes.keys() & volts.keys())
