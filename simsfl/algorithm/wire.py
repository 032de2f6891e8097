"""What lies between the clients and the server."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from torch import Tensor

NOBODY: frozenset[int] = frozenset()


@dataclass(frozen=True)
class DeviceStatus:
    """How a real device fares that is one of the clients (hw_profile/)."""

    client: int
    presence: str
    """"away", "here", or "at work" in the round under way."""
    steps: int
    """Steps that the device has done over all its connections, as all other figures here."""
    bytes_up: int
    """Bytes of whole frames that the device has sent."""
    bytes_down: int
    """Bytes of whole frames that the device has received."""
    step_seconds: float | None
    """Seconds from one of its steps to the next, of the latest steps; None before there are any."""
    compute_seconds: float | None
    """Seconds of a step that the device itself computed, of the latest steps."""
    network_seconds: float | None
    """Seconds from the server's message to the device's answer less those it computed, of the latest steps."""


class Wire:
    """Carries everything unchanged; a wire of another class may change what is sent, or lose it.

    Positions are those of clients in the cohort. Not all clients of a cohort may be absent.
    """

    def up(self, smashed_2Nchw: Tensor) -> tuple[Tensor, Collection[int]]:
        """Carry what the cohort sends to the server.

        Args:
            smashed_2Nchw: activations of the online models, then, if there are keys, of the momentum models.

        Returns:
            What arrives, of the same shape, and the positions of clients of whom nothing arrives, whose rows are
            not used.
        """
        return smashed_2Nchw, NOBODY

    def down(self, gradient_Nchw: Tensor) -> Tensor:
        """Carry the gradients of what the cohort has sent back to it; return what the clients get."""
        return gradient_Nchw

    def models_up(self) -> Collection[int]:
        """Carry the models of the cohort, which are in its state, to the server, which averages them.

        Returns:
            The positions of clients whose models do not arrive.
        """
        return NOBODY

    def devices(self) -> list[DeviceStatus]:
        """Return how each real device fares, by client."""
        return []
