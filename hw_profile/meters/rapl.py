"""RAPL: energy counters of x86 processors, which Linux exposes as files."""

from __future__ import annotations

import time

from simsfl.hw_profile.meters.board import Machine

_DIRECTORY = "sys/class/powercap"


class Rapl:
    """Mean power of all processor packages since the last call.

    Raises:
        ValueError: the machine has no such counters, or this user may not read them.
    """

    name, uncertainty, estimated = "rapl", 0.05, False
    source = "RAPL: processor packages alone, without memory, board and power supply (uncertainty assumed)"

    def __init__(self, machine: Machine):
        zones = sorted((machine.root / _DIRECTORY).glob("intel-rapl:?"))
        names = {zone: machine.text(str(zone.relative_to(machine.root) / "name")) or "" for zone in zones}
        self._zones = [zone for zone, name in names.items() if name.startswith("package")]
        if not self._zones:
            raise ValueError("rapl is not here (no processor package in /sys/class/powercap)")
        try:
            self._last = self._counters()
            self._ranges = [int((zone / "max_energy_range_uj").read_text()) for zone in self._zones]
        except PermissionError as error:
            raise ValueError(
                f"rapl may not be read (sudo chmod a+r /{_DIRECTORY}/intel-rapl:*/energy_uj until the next boot)"
            ) from error
        except (OSError, ValueError) as error:
            raise ValueError(f"rapl is not here ({error})") from error
        self._time = time.monotonic()

    def watts(self) -> float:
        """Return the mean power since the last call, in watts; see `Meter.watts`."""
        now, counters = time.monotonic(), self._counters()
        micro = sum((new - old) % top for new, old, top in zip(counters, self._last, self._ranges, strict=True))
        seconds, self._time, self._last = now - self._time, now, counters
        return micro / 1e6 / seconds

    def _counters(self) -> list[int]:
        """Return the microjoules of each package; a counter starts over at the top of its range."""
        return [int((zone / "energy_uj").read_text()) for zone in self._zones]
