"""The next round is drawn and sent to a GPU while that works on the present one."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack

import torch

from simsfl.algorithm.plan import RoundPlan


class PlanAhead:
    """Draws the plan of the next round in a thread, so that a CUDA device need not wait for it.

    There the plan is sent over a stream of its own. On a CPU, which has other things to do, each is drawn when it is
    taken. A plan depends on the round alone, not on who draws it and when.

    Args:
        device: that the plans are for.
        rounds: of the run; none is drawn ahead behind the last.
        threaded: whether there is a thread, whatever the device.
    """

    def __init__(self, device: torch.device, rounds: int, *, threaded: bool = False):
        self._device, self._rounds = device, rounds
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="plan") if threaded or self._stream else None
        self._begun: tuple[int, Future[RoundPlan]] | None = None

    def begin(self, draw: Callable[[int], RoundPlan], round_index: int) -> None:
        """Have ``draw(round_index)`` called in the thread, unless that has been asked for already."""
        if self._thread and round_index < self._rounds and (self._begun is None or self._begun[0] != round_index):
            self._forget()
            self._begun = round_index, self._thread.submit(self._drawn, draw, round_index)

    def take(self, draw: Callable[[int], RoundPlan], round_index: int) -> RoundPlan:
        """Return the plan of a round: the one that `begin` asked for, or one drawn now if that was another round's.

        What `draw` raised in the thread is raised here.
        """
        if self._begun is None or self._begun[0] != round_index:
            self._forget()
            return draw(round_index)
        (_, future), self._begun = self._begun, None
        plan = future.result()
        if self._stream:
            here = torch.cuda.current_stream(self._device)
            here.wait_stream(self._stream)
            for tensor in plan.on_device():  # their memory is not to be reused over there while it is in use here
                tensor.record_stream(here)
        return plan

    def _forget(self) -> None:
        """Give up the plan that has been begun, if there is one."""
        if self._begun is not None:
            self._begun[1].cancel()
        self._begun = None

    def _drawn(self, draw: Callable[[int], RoundPlan], round_index: int) -> RoundPlan:
        """Return the plan of a round, which is then on its way to the device."""
        with ExitStack() as stack:
            if self._stream:
                stack.enter_context(torch.cuda.device(self._device))
                stack.enter_context(torch.cuda.stream(self._stream))
            return draw(round_index)
