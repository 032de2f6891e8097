"""RAPL: energy counters of x86 processors, which Linux exposes as files."""

from __future__ import annotations

import time
from pathlib import Path

from simsfl.hw_profile.meters.board import Machine
from simsfl.hw_profile.meters.errors import Blocked

_DIRECTORY = "sys/class/powercap"
_MOST_WATTS = 2000
"""More than any processor package takes.

A counter that would have gone further than this allows has not come to the end of its range: it was reset."""


class Rapl:
    """Mean power of all processor packages since the last reading.

    Raises:
        ValueError: the machine has no such counters.
        Blocked: this user may not read them.
    """

    name, uncertainty, estimated = "rapl", 0.05, False
    source = "RAPL: processor packages alone, without memory, board and power supply (uncertainty assumed)"

    def __init__(self, machine: Machine):
        zones = sorted((machine.root / _DIRECTORY).glob("intel-rapl:*"))
        names = {zone: machine.text(str(zone.relative_to(machine.root) / "name")) or "" for zone in zones}
        self._packages = {zone: name for zone, name in names.items() if name.startswith("package")}
        if not self._packages:
            raise ValueError("rapl is not here (no processor package in /sys/class/powercap)")
        try:
            self._last = self._counters()
            self._highest = {zone: _number(zone / "max_energy_range_uj") for zone in self._packages}
        except PermissionError as error:
            raise Blocked(
                f"rapl may not be read (sudo chmod a+r /{_DIRECTORY}/intel-rapl:*/energy_uj until the next boot)"
            ) from error
        except OSError as error:
            raise ValueError(f"rapl is not here ({error})") from error
        self._time = time.monotonic()

    def watts(self) -> float:
        """Return the mean power since the last reading, in watts; see `Meter.watts`."""
        now, counters = time.monotonic(), self._counters()
        if still := [self._packages[zone] for zone, count in counters.items() if count == self._last[zone]]:
            raise OSError(f"the counter of {', '.join(still)} stands still")
        seconds, last = now - self._time, self._last
        self._time, self._last = now, counters
        joules = {zone: self._gone(zone, last[zone], count) / 1e6 for zone, count in counters.items()}
        if odd := [self._packages[zone] for zone, own in joules.items() if not 0 < own <= _MOST_WATTS * seconds]:
            raise OSError(f"the counter of {', '.join(odd)} was reset")
        return sum(joules.values()) / seconds

    def _gone(self, zone: Path, last: int, now: int) -> int:
        """Return the microjoules between two readings of a counter, which continues at 0 after its highest value."""
        return now - last if now > last else now - last + self._highest[zone]

    def _counters(self) -> dict[Path, int]:
        """Return the counter of each package, in microjoules."""
        return {zone: _number(zone / "energy_uj") for zone in self._packages}


def _number(file: Path) -> int:
    """Return the whole number in a file; raise an OSError if there is none."""
    try:
        return int(file.read_text(encoding="ascii"))
    except ValueError as error:
        raise OSError(f"{file} holds no number") from error
