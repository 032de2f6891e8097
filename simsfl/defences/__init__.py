"""Defences: what clients do against those who would reconstruct their images from what they send.

`simsfl.config.catalogue.DEFENCES` lists those that come with simsfl, apart from TAResSFL, whose simulated attackers
learn along with the clients (`simsfl.defences.taressfl`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from simsfl.config import RunConfig
from simsfl.system.draws import Draws

__all__ = ["NONE", "Chain", "Defence", "Draws"]


@dataclass(frozen=True)
class Defence:
    """The base class of defences, which does nothing; a subclass is a frozen dataclass, whose fields are its options.

    In shapes, n is the number of rows (images) of any clients; what happens to a row depends on no other row.
    """

    @classmethod
    def of(cls, config: RunConfig) -> Defence:
        """Return the defence that a config with every rule applied means."""
        return cls(**config.options_of("defence", cls))

    def protect(self, smashed: Tensor, draws: Draws) -> Tensor:
        """Return what a client sends instead of its smashed data; its own gradient goes back through this.

        Args:
            smashed: ``[n, c, h, w]`` smashed data.
            draws: random numbers for each row.
        """
        return smashed

    def receive(self, gradient: Tensor, draws: Draws) -> Tensor:
        """Return what a client gets to see of the gradient that the server returns.

        Args:
            gradient: ``[n, c, h, w]`` gradient of what the client has sent.
            draws: random numbers for each row.
        """
        return gradient

    def add(self, images: Tensor, smashed: Tensor) -> Tensor | None:
        """Return a gradient that clients add to the one that they have received; None for none.

        Args:
            images: ``[C, B, 3, H, H]`` images in [0, 1] of clients with the same batch size.
            smashed: ``[C, B, c, h, w]`` what they have sent for these, without a graph.
        """
        return None

    def learn(self, gradient: Tensor, draws: Draws) -> Tensor:
        """Return the gradient that clients descend along.

        Args:
            gradient: ``[C, P]`` gradient of each client's parameters.
            draws: random numbers for each client.
        """
        return gradient

    def bytes_up(self, numbers: int, number_bytes: float) -> float:
        """Return the bytes that the smashed data of an image take on the wire.

        Args:
            numbers: how many numbers they are.
            number_bytes: bytes of a number.
        """
        return numbers * number_bytes

    def bytes_down(self, numbers: int, number_bytes: float) -> float:
        """Return the bytes that the gradient of an image's smashed data takes on the wire."""
        return numbers * number_bytes


@dataclass(frozen=True)
class Chain(Defence):
    """Several defences, one after another; those of the gradient in the reverse order."""

    defences: tuple[Defence, ...] = ()
    """The defences, in the order in which they are applied to smashed data."""

    def __bool__(self) -> bool:
        return bool(self.defences)

    def protect(self, smashed: Tensor, draws: Draws) -> Tensor:
        """Return what a client sends."""
        for defence in self.defences:
            smashed = defence.protect(smashed, draws)
        return smashed

    def receive(self, gradient: Tensor, draws: Draws) -> Tensor:
        """Return what a client gets to see of the gradient."""
        for defence in reversed(self.defences):
            gradient = defence.receive(gradient, draws)
        return gradient

    def add(self, images: Tensor, smashed: Tensor) -> Tensor | None:
        """Return the sum of the gradients that clients add."""
        added = [own for defence in self.defences if (own := defence.add(images, smashed)) is not None]
        return torch.stack(added).sum(dim=0) if added else None

    def learn(self, gradient: Tensor, draws: Draws) -> Tensor:
        """Return the gradient that clients descend along."""
        for defence in self.defences:
            gradient = defence.learn(gradient, draws)
        return gradient

    def bytes_up(self, numbers: int, number_bytes: float) -> float:
        """Return the bytes of the smashed data of an image, of the defence that makes them fewest."""
        return min((own.bytes_up(numbers, number_bytes) for own in self.defences), default=numbers * number_bytes)

    def bytes_down(self, numbers: int, number_bytes: float) -> float:
        """Return the bytes of their gradient, of the defence that makes them fewest."""
        return min((own.bytes_down(numbers, number_bytes) for own in self.defences), default=numbers * number_bytes)


NONE = Chain()
"""No defence."""
