"""Handling of the signals that ask a program to stop."""

from __future__ import annotations

import signal
import time
from types import FrameType, TracebackType

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stop:
    """A context that catches SIGINT, SIGTERM and SIGHUP, but those that were ignored when the program was started.

    ``nohup`` has a program ignore SIGHUP, and a shell script has its background jobs ignore SIGINT.

    Unless `patient` is set, the first signal raises KeyboardInterrupt at once, whichever signal it is, so that
    everything is cleaned up on the way out. If it is set, the first signal is only noted in `received`, and the second
    raises.

    Attributes:
        patient: whether the first signal is only noted; False at first.
        received: the latest signal, None before the first.
        grace_seconds: seconds after the first signal in which others count as the same one; 0 at first.
    """

    def __init__(self) -> None:
        self.patient = False
        self.received: signal.Signals | None = None
        self.grace_seconds, self._first = 0.0, 0.0
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Stop:
        caught = [number for number in _STOPPING if signal.getsignal(number) != signal.SIG_IGN]
        self._previous = {number: signal.signal(number, self._note) for number in caught}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        again = self.received is not None
        if not again:
            self._first = time.monotonic()
        elif time.monotonic() - self._first < self.grace_seconds:
            return
        self.received = signal.Signals(number)
        if again or not self.patient:
            raise KeyboardInterrupt
