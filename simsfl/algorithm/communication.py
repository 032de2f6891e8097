"""Loss-driven saving of communication: clients and server exchange less while the loss hardly falls.

This is what the published program does (Li et al., ICLR 2023). A round in which the loss fell by less than a threshold
is followed by one with less communication (A, then B, then C), any other round by one with all of it (A).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

WARM_UP = 10
"""Number of rounds, from the first, that are followed by one with all communication, whatever their loss."""


class Exchange(str, enum.Enum):
    """The exchange between clients and server in a round; the values are the letters of the published program."""

    BOTH_WAYS = "A"
    """Clients send activations and get gradients back: the normal case."""
    UP_ONLY = "B"
    """Clients send activations but get no gradients, and their models stay as they are."""
    SILENT = "C"
    """Clients send nothing: the server trains on what they sent in the latest round that was not silent, shuffled."""

    @property
    def less(self) -> Exchange:
        """The exchange with the next smaller amount of communication."""
        return Exchange.UP_ONLY if self is Exchange.BOTH_WAYS else Exchange.SILENT


@dataclass(frozen=True)
class Communication:
    """What a round exchanges, and the loss that the decision about the next round depends on."""

    state: Exchange = Exchange.BOTH_WAYS
    """The exchange of this round."""
    loss: float | None = None
    """Mean loss of the round before; None in the first round."""

    def needs_sent(self, steps_done: int) -> bool:
        """Return whether the server may still train on what clients have sent, in this round or an earlier one.

        Args:
            steps_done: steps of this round that are done.
        """
        return self.state is Exchange.SILENT or (self.state is Exchange.UP_ONLY and steps_done > 0)

    def after(self, rounds: int, loss: float, threshold: float) -> Communication:
        """Return what the next round exchanges.

        Args:
            rounds: rounds that are done.
            loss: mean loss of the latest of them.
            threshold: how much the loss has to fall in a round, or else the next one exchanges less.
        """
        small = rounds > WARM_UP and self.loss is not None and max(self.loss - loss, 0.0) < threshold
        return Communication(self.state.less if small else Exchange.BOTH_WAYS, loss)
