"""Loss-driven saving of communication: when clients and server talk less, because the loss hardly falls.

As in the published program. State A is the normal one. In B clients send activations but get no gradient back, and
their models stay as they are. In C they send nothing: the server trains on the activations of the latest round that
sent any, in a fresh order. A round whose loss fell by less than the threshold leads from A to B and from B to C, any
other back to A.
"""

from __future__ import annotations

from dataclasses import dataclass

WARM_UP = 10
"""Rounds that are followed by state A, whatever their loss."""


@dataclass(frozen=True)
class Communication:
    """The state of a round, and what the next depends on."""

    state: str = "A"
    loss: float | None = None
    """Of the round before."""

    def needs_sent(self, steps_done: int) -> bool:
        """Whether the server may yet train on what clients have sent so far, this round or the round before."""
        return self.state == "C" or (self.state == "B" and steps_done > 0)

    def after(self, rounds: int, loss: float, threshold: float) -> Communication:
        """That of the next round, once `rounds` are done and the latest had `loss`."""
        small = rounds > WARM_UP and self.loss is not None and max(self.loss - loss, 0.0) < threshold
        following = {"A": "B", "B": "C", "C": "C"}[self.state] if small else "A"
        return Communication(following, loss)
