"""Drawing ahead: the next round's plan is drawn, and sent to the GPU, while the GPU works on the current round."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack

import torch

from simsfl.algorithm.plan import RoundPlan


class PlanAhead:
    """Draws the plan of the next round in a thread, so that a CUDA device does not have to wait for it.

    The plan is sent to a CUDA device over a stream of its own. On a CPU, a thread would only compete with training, so
    each plan is drawn when it is taken. A plan depends on its round alone, not on when it is drawn and by whom.

    Args:
        device: device that the plans are sent to.
        rounds: rounds of the run; no plan is drawn beyond the last one.
        threaded: whether to use a thread even if the device is a CPU.
    """

    def __init__(self, device: torch.device, rounds: int, *, threaded: bool = False):
        self._device, self._rounds = device, rounds
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="plan") if threaded or self._stream else None
        self._begun: tuple[int, Future[RoundPlan]] | None = None

    def begin(self, draw: Callable[[int], RoundPlan], round_index: int) -> None:
        """Start ``draw(round_index)`` in the thread, if there is one, unless that has been started already."""
        if self._thread and round_index < self._rounds and (self._begun is None or self._begun[0] != round_index):
            self._forget()
            self._begun = round_index, self._thread.submit(self._drawn, draw, round_index)

    def take(self, draw: Callable[[int], RoundPlan], round_index: int) -> RoundPlan:
        """Return the plan of a round: the one that `begin` started, or one drawn now if that is another round's.

        Exceptions that `draw` raised in the thread are raised here.
        """
        if self._begun is None or self._begun[0] != round_index:
            self._forget()
            return draw(round_index)
        (_, future), self._begun = self._begun, None
        plan = future.result()
        if self._stream:
            here = torch.cuda.current_stream(self._device)
            here.wait_stream(self._stream)
            for tensor in plan.on_device():  # so that the plan's stream does not reuse their memory too early
                tensor.record_stream(here)
        return plan

    def _forget(self) -> None:
        """Discard the plan that `begin` started, if any."""
        if self._begun is not None:
            self._begun[1].cancel()
        self._begun = None

    def _drawn(self, draw: Callable[[int], RoundPlan], round_index: int) -> RoundPlan:
        """Draw the plan of a round and start sending it to the device; this runs in the thread."""
        with ExitStack() as stack:
            if self._stream:
                stack.enter_context(torch.cuda.device(self._device))
                stack.enter_context(torch.cuda.stream(self._stream))
            return draw(round_index)
