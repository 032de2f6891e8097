"""The wire between clients and server: everything that they send each other passes through it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from simsfl.system.decoding import Amount, Count

NOBODY: frozenset[int] = frozenset()
"""Positions of absent clients where none is absent."""


@dataclass(frozen=True)
class DeviceStatus:
    """The status of a real device that is one of the clients (hw_profile/); figures are over all its connections."""

    client: Count
    """Id of the client."""
    presence: Literal["away", "here", "at work"]
    """Whether it is there, and at work in the current round."""
    steps: Count
    """Steps that the device has done."""
    bytes_up: Count
    """Bytes of whole frames that the device has sent."""
    bytes_down: Count
    """Bytes of whole frames that the device has received."""
    step_seconds: Amount | None
    """Seconds from one step of the device to the next, over its latest steps; None before there are any."""
    compute_seconds: float | None
    """Seconds per step that the device itself computes, over its latest steps; None before there are any."""
    network_seconds: float | None
    """Seconds per step from the server's message to the device's answer, less those that the device computes, over its
    latest steps; None before there are any."""


class Wire:
    """The plain wire, which carries everything unchanged; a subclass may change what is sent, or lose it.

    Positions are those of clients in the cohort. Not all clients of a cohort may be absent.
    """

    def up(self, smashed_2Nchw: Tensor) -> tuple[Tensor, Collection[int]]:
        """Carry the cohort's smashed data to the server.

        Args:
            smashed_2Nchw: smashed data of the online models, then those of the momentum models, which supervised
                training does not have.

        Returns:
            What arrives, of the same shape, and the positions of the clients from which nothing arrives. Their rows are
            not used.
        """
        return smashed_2Nchw, NOBODY

    def down(self, gradient_Nchw: Tensor) -> Tensor:
        """Carry the gradients of the online models' smashed data back to the clients; return what they receive."""
        return gradient_Nchw

    def models_up(self) -> Collection[int]:
        """Carry the cohort's models, which are in the simulation's state, to the server for averaging.

        Returns:
            The positions of the clients whose models do not arrive.
        """
        return NOBODY

    def devices(self) -> list[DeviceStatus]:
        """Return the status of each client that may be a real device; with the plain wire, none may."""
        return []
