"""Signals that ask a program to stop."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stop:
    """Catches the signals of `STOPPING` while it is entered.

    Impatient, as it starts, it raises KeyboardInterrupt at once, whatever the signal, so that everything is cleaned
    up on the way out. Patient, it only takes note of the first, and raises at the second.

    Attributes:
        patient: whether the first signal is only noted.
        received: the latest signal, None before.
    """

    def __init__(self) -> None:
        self.patient = False
        self.received: signal.Signals | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Stop:
        self._previous = {number: signal.signal(number, self._note) for number in STOPPING}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        again = self.received is not None
        self.received = signal.Signals(number)
        if again or not self.patient:
            raise KeyboardInterrupt
