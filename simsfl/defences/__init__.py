"""Defences: what clients do against those who would reconstruct their images from what they send.

`simsfl.config.catalogue.DEFENCES` lists those that come with simsfl.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from simsfl.config import RunConfig
from simsfl.system.answers import amount_from, count_from, tensor_from
from simsfl.system.draws import Draws
from simsfl.system.messages import count_text, kind_of

__all__ = ["NONE", "Added", "Chain", "Defence", "Draws"]


@dataclass(frozen=True)
class Added:
    """What clients add to the gradient that they have received, and what they report of it."""

    gradient: Tensor
    """``[C, B, c, h, w]`` gradient with respect to the smashed data."""
    figures: tuple[Tensor, ...] = ()
    """A figure ``[C]`` of each client for each of the names in `Defence.figures`, without a graph."""


@dataclass(frozen=True)
class Defence:
    """The base class of defences, which does nothing; a subclass is a frozen dataclass, whose fields are its options.

    In shapes, n is the number of rows (images) of any clients; what happens to a row depends on no other row. C is a
    number of clients, B that of the images of each, and A that of what is remembered of each (`size`).
    """

    figures: ClassVar[tuple[str, ...]] = ()
    """Names of the figures that `add` reports. The record of a round has the mean of each over clients and steps."""
    learns: ClassVar[bool] = True
    """Whether `learn` may change gradients. If no defence does, clients descend in the loop as real devices do, to the
    bit."""
    replayable: ClassVar[bool] = True
    """Whether steps may be recorded as a CUDA graph and replayed, without running its Python code anew; false for
    code that counts in Python variables, or draws from `random` or NumPy."""
    phase: ClassVar[str] = "client backward"
    """The phase that the time of `receive` and `add` counts towards (`simsfl.system.clock.PHASES`)."""

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

    def size(self, smashed_shape: tuple[int, int, int], image_size: int) -> int:
        """Return A, the number of numbers that are remembered of each client from step to step: here none.

        Args:
            smashed_shape: ``(c, h, w)`` shape of an image's smashed data.
            image_size: H, height and width of images in pixels.
        """
        return 0

    def initial(self, smashed_shape: tuple[int, int, int], image_size: int, generator: torch.Generator) -> Tensor:
        """Return what is remembered ``[A]`` of a client that has not taken part yet: zeros.

        Args:
            smashed_shape: ``(c, h, w)`` shape of an image's smashed data.
            image_size: H, height and width of images in pixels.
            generator: random numbers, on the CPU.
        """
        return torch.zeros(self.size(smashed_shape, image_size))

    def add(self, images: Tensor, smashed: Tensor, memory: Tensor, round_index: Tensor) -> Added | None:
        """Return a gradient that clients add to the one that they have received; None for none, and no figures.

        Where clients learn from both views of their images, this is called for the first view and then the second.

        Args:
            images: ``[C, B, 3, H, H]`` images in [0, 1] of clients with the same batch size.
            smashed: ``[C, B, c, h, w]`` what they have sent for these, without a graph.
            memory: ``[C, A]`` what is remembered of each of them, to be changed in place.
            round_index: scalar int64, the round, counted from 0.
        """
        return None

    def add_alone(self, images: Tensor, smashed: Tensor, memory: Tensor, round_index: Tensor) -> Added | None:
        """Return what `add` does for a single client, C = 1: the loop's way, which should be the plainest there is.

        A defence that computes the clients of `add` in some clever way may say here what it means.
        """
        return self.add(images, smashed, memory, round_index)

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

    @property
    def figures(self) -> tuple[str, ...]:  # type: ignore[override]  # the base class has a value
        """Return the names of the figures of all defences."""
        return tuple(name for own in self.defences for name in own.figures)

    @property
    def learns(self) -> bool:  # type: ignore[override]  # the base class has a value
        """Return whether one of the defences may change the gradients that clients descend along."""
        return any(own.learns for own in self.defences)

    @property
    def phase(self) -> str:  # type: ignore[override]  # the base class has a value
        """Return the phase of the first defence that has one of its own, else the usual one."""
        return next((own.phase for own in self.defences if own.phase != Defence.phase), Defence.phase)

    def protect(self, smashed: Tensor, draws: Draws) -> Tensor:
        """Return what a client sends."""
        for own in self.defences:
            sent = tensor_from(own.protect(smashed, draws), smashed.shape, "defence", "protect", own)
            if smashed.requires_grad and not sent.requires_grad:
                raise ValueError(
                    f"defence: protect of {type(own).__name__} returns a tensor that no gradient goes back through; "
                    "allowed: one that does, such as smashed + (sent - smashed).detach()"
                )
            smashed = sent
        return smashed

    def receive(self, gradient: Tensor, draws: Draws) -> Tensor:
        """Return what a client gets to see of the gradient."""
        for own in reversed(self.defences):
            gradient = tensor_from(own.receive(gradient, draws), gradient.shape, "defence", "receive", own)
        return gradient

    def size(self, smashed_shape: tuple[int, int, int], image_size: int) -> int:
        """Return the number of numbers that all defences together remember of a client."""
        return sum(self._sizes(smashed_shape, image_size))

    def initial(self, smashed_shape: tuple[int, int, int], image_size: int, generator: torch.Generator) -> Tensor:
        """Return what the defences remember of a client that has not taken part yet, one after another."""
        parts = []
        for own, size in zip(self.defences, self._sizes(smashed_shape, image_size), strict=True):
            initial_A = own.initial(smashed_shape, image_size, generator)
            parts.append(tensor_from(initial_A, (size,), "defence", "initial", own))
        return torch.cat(parts)

    def add(self, images: Tensor, smashed: Tensor, memory: Tensor, round_index: Tensor) -> Added | None:
        """Return the sum of the gradients that clients add, and all figures."""
        return self._sum([own.add for own in self.defences], images, smashed, memory, round_index)

    def add_alone(self, images: Tensor, smashed: Tensor, memory: Tensor, round_index: Tensor) -> Added | None:
        """Return the same for a single client, in the loop's way."""
        return self._sum([own.add_alone for own in self.defences], images, smashed, memory, round_index)

    def _sum(
        self,
        adds: Sequence[Callable[..., Added | None]],
        images: Tensor,
        smashed: Tensor,
        memory: Tensor,
        round_index: Tensor,
    ) -> Added | None:
        """Return the sum of what the functions `adds` of the defences return, each with its part of the memory."""
        *_, channels, height, width = smashed.shape
        memories = memory.split(self._sizes((channels, height, width), images.shape[-1]), dim=1)
        added = []
        for defence, add, own in zip(self.defences, adds, memories, strict=True):
            one = add(images, smashed, own, round_index)
            if one is not None:
                _check_added(one, smashed, defence)
                added.append(one)
        if not added:
            return None
        gradient = torch.stack([one.gradient for one in added]).sum(dim=0)
        return Added(gradient, tuple(figure for one in added for figure in one.figures))

    def _sizes(self, smashed_shape: tuple[int, int, int], image_size: int) -> list[int]:
        """Return the number of numbers that each defence remembers of a client."""
        return [count_from(own.size(smashed_shape, image_size), "defence", "size", own) for own in self.defences]

    def learn(self, gradient: Tensor, draws: Draws) -> Tensor:
        """Return the gradient that clients descend along."""
        for own in self.defences:
            gradient = tensor_from(own.learn(gradient, draws), gradient.shape, "defence", "learn", own)
        return gradient

    def bytes_up(self, numbers: int, number_bytes: float) -> float:
        """Return the bytes of the smashed data of an image, of the defence that makes them fewest."""
        return self._fewest("bytes_up", numbers, number_bytes)

    def bytes_down(self, numbers: int, number_bytes: float) -> float:
        """Return the bytes of their gradient, of the defence that makes them fewest."""
        return self._fewest("bytes_down", numbers, number_bytes)

    def _fewest(self, method: str, numbers: int, number_bytes: float) -> float:
        """Return the least of what this method of the defences returns, and the usual bytes without defences."""
        found = (
            amount_from(getattr(own, method)(numbers, number_bytes), "defence", method, own) for own in self.defences
        )
        return min(found, default=numbers * number_bytes)


def _check_added(added: object, smashed: Tensor, defence: Defence) -> None:
    """Raise a ValueError unless a defence adds a gradient of the smashed data ``[C, B, c, h, w]``, and its figures."""
    if not isinstance(added, Added):
        what = kind_of(added)
    elif len(added.figures) != len(defence.figures):
        what = count_text(len(added.figures), "figure")
    else:
        tensor_from(added.gradient, smashed.shape, "defence", "add", defence)
        for figure in added.figures:
            tensor_from(figure, smashed.shape[:1], "defence", "add", defence)
        return
    figures = count_text(len(defence.figures), "figure")
    raise ValueError(f"defence: add of {type(defence).__name__} returns {what}; allowed: None, or Added with {figures}")


NONE = Chain()
"""No defence."""
