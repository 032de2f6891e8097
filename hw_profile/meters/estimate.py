"""Power estimated from the processor's utilisation, for boards that cannot measure it."""

from __future__ import annotations

from simsfl.hw_profile.meters.board import Machine, model_of

_MODELS = {"Raspberry Pi 4 Model B": (2.286, 4.534), "Raspberry Pi 5 Model B": (4.403, 3.458)}
"""Watts of the idle board, and the watts that a fully busy processor adds, by model of board.

The figures are those of the program PowerJoular (Noureddine, Intelligent Environments 2022; the Pi 5 was added
later). Its Pi 4 is revision 1.2 with a 64-bit system; a Pi 400 has other figures."""


class UtilisationModel:
    """Power estimated as a linear function of the share of time that the cores are busy.

    Raises:
        ValueError: there is no model of this board, or /proc/stat cannot be read.
    """

    name, uncertainty, estimated = "model", 0.1, True

    def __init__(self, machine: Machine):
        self._machine, board = machine, model_of(machine)
        known = next((name for name in _MODELS if board.startswith(name)), None)
        if known is None:
            raise ValueError(f"model knows {' and '.join(_MODELS)}, not {board}")
        self._idle, self._busy = _MODELS[known]
        self.source = (
            f"not measured: {self._idle} + {self._busy} u W of a {known}, u the processor's utilisation (PowerJoular's "
            "published regression; uncertainty assumed)"
        )
        try:
            self._last = _times(machine)
        except OSError as error:
            raise ValueError(f"model needs /proc/stat ({error})") from error

    def watts(self) -> float:
        """Return the estimated mean power since the last reading, in watts; see `Meter.watts`."""
        now = _times(self._machine)
        busy, total = (new - old for new, old in zip(now, self._last, strict=True))
        self._last = now
        if total <= 0:
            raise OSError("the times in /proc/stat stand still")
        return self._idle + self._busy * min(max(busy / total, 0.0), 1.0)  # the time of waiting for a disk may shrink


def _times(machine: Machine) -> tuple[int, int]:
    """Return the ticks that all cores together have been busy, and all ticks; waiting for a disk counts as idle.

    Raises:
        OSError: the system does not report them.
    """
    for line in (machine.text("proc/stat") or "").splitlines():
        if line.startswith("cpu "):
            values = line.split()[1:9]  # user nice system idle iowait irq softirq steal
            if len(values) > 4 and all(map(str.isdecimal, values)):
                ticks = [int(value) for value in values]
                return sum(ticks) - ticks[3] - ticks[4], sum(ticks)
    raise OSError("no line of it is about all processors")
