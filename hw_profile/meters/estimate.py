"""Power estimated from how busy the processor is, for boards that cannot measure it."""

from __future__ import annotations

from simsfl.hw_profile.meters.board import Machine, model_of

MODELS = {"Raspberry Pi 4 Model B": (2.286, 4.534), "Raspberry Pi 5 Model B": (4.403, 3.458)}
"""Watts of the idle board and of a busy processor besides, from the program PowerJoular (Noureddine, Intelligent
Environments 2022; the Pi 5 came later). Its Pi 4 is revision 1.2 with 64 bits; a Pi 400 has other figures."""


class UtilisationModel:
    """A line over the share of time that the cores are busy, since the last call.

    Raises:
        ValueError: there is none for this board.
    """

    name, uncertainty, estimated = "model", 0.1, True

    def __init__(self, machine: Machine):
        self._machine, board = machine, model_of(machine)
        known = next((name for name in MODELS if board.startswith(name)), None)
        if known is None:
            raise ValueError(f"model knows {' and '.join(MODELS)}, not {board}")
        self._idle, self._busy = MODELS[known]
        self.source = (
            f"not measured: {self._idle} + {self._busy} u W of a {known}, u the processor's utilisation (PowerJoular's "
            "published regression; uncertainty assumed)"
        )
        try:
            self._last = times(machine)
        except OSError as error:
            raise ValueError(f"model needs /proc/stat ({error})") from error

    def watts(self) -> float:
        """See `Meter`."""
        now = times(self._machine)
        busy, total = (new - old for new, old in zip(now, self._last, strict=True))
        self._last = now
        return self._idle + self._busy * (busy / total if total else 0.0)


def times(machine: Machine) -> tuple[int, int]:
    """Ticks that all cores together have been busy, and all ticks; waiting for a disk is idle.

    Raises:
        OSError: the system does not say.
    """
    for line in (machine.text("proc/stat") or "").splitlines():
        if line.startswith("cpu "):
            ticks = [int(value) for value in line.split()[1:9]]  # user nice system idle iowait irq softirq steal
            return sum(ticks) - ticks[3] - ticks[4], sum(ticks)
    raise OSError("no line of it is of all processors")
