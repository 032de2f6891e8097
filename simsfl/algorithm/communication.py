"""Loss-driven saving of communication: clients and server exchange less while the loss hardly falls.

As in the published program (Li et al., ICLR 2023). A round whose loss fell by less than the threshold is followed by
one with less communication (A, then B, then C), any other round by one with all of it (A).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

WARM_UP = 10
"""Rounds that are followed by one with all communication, whatever their loss."""


class Exchange(str, enum.Enum):
    """What clients and server exchange in a round; the values are the letters of the published program."""

    BOTH_WAYS = "A"
    """Clients send activations and get gradients back: the normal case."""
    UP_ONLY = "B"
    """Clients send activations but get no gradients, and their models stay as they are."""
    SILENT = "C"
    """Clients send nothing: the server trains on what the latest round that sent anything has sent, shuffled."""

    @property
    def less(self) -> Exchange:
        """The exchange with the next smaller amount of communication."""
        return Exchange.UP_ONLY if self is Exchange.BOTH_WAYS else Exchange.SILENT


@dataclass(frozen=True)
class Communication:
    """What a round exchanges, and the loss that the decision about the next round depends on."""

    state: Exchange = Exchange.BOTH_WAYS
    loss: float | None = None
    """Mean loss of the round before; None in the first round."""

    def needs_sent(self, steps_done: int) -> bool:
        """Return whether the server may still train on what clients have sent, in this round or the one before."""
        return self.state is Exchange.SILENT or (self.state is Exchange.UP_ONLY and steps_done > 0)

    def after(self, rounds: int, loss: float, threshold: float) -> Communication:
        """Return what the next round exchanges once `rounds` rounds are done, of which the latest had mean `loss`."""
        small = rounds > WARM_UP and self.loss is not None and max(self.loss - loss, 0.0) < threshold
        return Communication(self.state.less if small else Exchange.BOTH_WAYS, loss)

    def to_dict(self) -> dict[str, str | float | None]:
        """Return the values as JSON takes them, for `from_dict`."""
        return {"state": self.state.value, "loss": self.loss}

    @classmethod
    def from_dict(cls, values: dict[str, str | float | None]) -> Communication:
        """Return what `to_dict` was called on."""
        return cls(Exchange(values["state"]), values["loss"])
