"""Objectives: what a network is trained for, as a loss of its outputs and of targets, with a memory of its own.

`simsfl.config.catalogue.OBJECTIVES` lists those that come with simsfl, and says what each needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.func import vmap

from simsfl.config import RunConfig
from simsfl.config.values import option
from simsfl.kernels import tie_width
from simsfl.system.answers import kept, tensor_from
from simsfl.system.messages import kind_of, shortened

__all__ = ["Memory", "Objective", "let_remember_", "nearest", "option"]

Memory = dict[str, Tensor]
"""What an objective remembers from step to step, by name: tensors ``[G, ...]`` with a row for each group."""


@dataclass(frozen=True)
class Objective:
    """The base class of objectives; a subclass is a frozen dataclass, whose fields are its options.

    In shapes, n is the number of rows (images) that are trained together, and D the length of the network's output for
    each. On the split server these are the rows of all clients: one group. Where clients are trained apart, with queues
    or whole networks of their own, each of them is one of G groups.
    """

    replayable: ClassVar[bool] = True
    """Whether steps may be recorded as a CUDA graph and replayed, without running its Python code anew; false for
    code that counts in Python variables, or draws from `random` or NumPy."""

    @classmethod
    def of(cls, config: RunConfig) -> Objective:
        """Return the objective that a config with every rule applied means."""
        return cls(**config.options_of("objective", cls))

    def loss(self, outputs_nD: Tensor, targets_nD: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Return the loss and the accuracy of one group.

        Where clients are trained apart (federated learning, ``feature_sharing=False``), this is mapped over them by
        `torch.func.vmap`. It then has to do without `if` or `while` on values of tensors (`torch.where` instead),
        ``.item()``, and results whose shape depends on values; `simsfl.testing.check` tries it.

        Args:
            outputs_nD: outputs of the online network, which the loss is differentiated with respect to.
            targets_nD: what they are compared with, row by row: outputs of the momentum network for the other view; or
                outputs of the online network for the other view, which the loss is differentiated with respect to as
                well; or labels, int64 ``[n]``. The objective's entry in the catalogue says which.
            memory: what the group remembers of earlier steps, without the dimension G; for an objective that is
                registered with labels also "labels", the class of each row, int64 ``[n]``.

        Returns:
            Two scalars: the loss, a mean over rows, and an accuracy in percent, which needs no gradient.
        """
        raise NotImplementedError

    def losses(self, outputs_GnD: Tensor, targets_GnD: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Return the mean over all groups of what `loss` returns; objectives may have a faster way.

        Args:
            outputs_GnD: outputs of the online network.
            targets_GnD: what they are compared with.
            memory: what the groups remember.

        Raises:
            ValueError: `loss` cannot be mapped over the groups.
        """
        if len(outputs_GnD) == 1:
            return self._scalars(outputs_GnD[0], targets_GnD[0], {name: one[0] for name, one in memory.items()})
        try:
            loss_G, accuracy_G = vmap(self._scalars)(outputs_GnD, targets_GnD, memory)
        except RuntimeError as error:
            if "vmap" not in str(error):
                raise
            raise ValueError(
                f"objective: the loss of {type(self).__name__} cannot be mapped over clients that are trained apart "
                f"({shortened(' '.join(str(error).split()), 150)}); allowed: one without `if` on values of tensors or "
                ".item(), as torch.func.vmap needs it"
            ) from error
        return loss_G.mean(), accuracy_G.mean()

    def _scalars(self, outputs_nD: Tensor, targets_nD: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Return what `loss` returns; raise a ValueError if that is not two scalars."""
        answer = self.loss(outputs_nD, targets_nD, memory)
        if not isinstance(answer, tuple) or len(answer) != 2:
            what = f"{len(answer)} things" if isinstance(answer, tuple) else kind_of(answer)
            raise ValueError(
                f"objective: loss of {type(self).__name__} returns {what}; allowed: the loss and an accuracy in percent"
            )
        loss, accuracy = (tensor_from(one, (), "objective", "loss", self) for one in answer)
        if outputs_nD.requires_grad and torch.is_grad_enabled() and not loss.requires_grad:
            raise ValueError(
                f"objective: loss of {type(self).__name__} returns a loss that no gradient goes back through; allowed: "
                "one that depends on the outputs"
            )
        return loss, accuracy

    def memory(
        self, groups: int, dim: int, generator: torch.Generator, device: torch.device, dtype: torch.dtype
    ) -> Memory:
        """Return what the groups remember before the first step, which is nothing unless a subclass says otherwise.

        Args:
            groups: G, the number of groups.
            dim: D, the length of the network's output.
            generator: random numbers, on the CPU, so that they do not depend on the device.
            device: device of the result.
            dtype: dtype of the result, where it is of floating point.
        """
        return {}

    def remember_(self, memory: Memory, targets_GnD: Tensor) -> None:
        """Change the memory after a step, in place; here it stays as it is.

        Args:
            memory: what the groups remember.
            targets_GnD: what outputs were compared with in the step, without gradient; ``[G, n]`` where these are
                labels. In a symmetric loss with momentum models, this is called for each direction.
        """


def let_remember_(objective: Objective, memory: Memory, targets_GnD: Tensor) -> None:
    """Let an objective change its memory in place; raise a ValueError if it puts other tensors there."""
    with kept(memory, "objective", "remember_", objective):
        objective.remember_(memory, targets_GnD)


@torch.no_grad()
def nearest(queries: Tensor, keys: Tensor) -> Tensor:
    """Return how often a query's own key is nearer to it than all other keys, in percent; a tie is no hit.

    Args:
        queries: ``[..., n, D]`` unit rows.
        keys: ``[..., n, D]`` unit rows, the own key of each query.

    >>> nearest(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.8, 0.6], [0.6, 0.8]]))
    tensor(50.)
    """
    cosine = queries @ keys.transpose(-1, -2)
    own = cosine.diagonal(dim1=-2, dim2=-1)
    itself = torch.eye(cosine.shape[-1], dtype=torch.bool, device=cosine.device)
    rival = cosine.masked_fill(itself, -torch.inf).amax(dim=-1)
    return 100.0 * (own - rival > tie_width(keys)).to(own.dtype).mean()
