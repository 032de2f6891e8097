"""Optimisers: how clients and server descend, for all clients of a cohort at once.

`simsfl.config.catalogue.OPTIMIZERS` lists those that come with simsfl.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from simsfl.config import RunConfig
from simsfl.kernels import sgd_
from simsfl.models import FlatModule
from simsfl.system.answers import tensor_from

__all__ = ["SGD", "Optimiser", "take_step_"]


@dataclass(frozen=True)
class Optimiser:
    """The base class of optimisers; a subclass is a frozen dataclass, whose fields are its options.

    What it remembers of a model of P parameters is a row of R numbers, zeros at first. Leading dimensions are those of
    a cohort's clients, or none for the server's model.
    """

    replayable: ClassVar[bool] = True
    """Whether steps may be recorded as a CUDA graph and replayed, without running its Python code anew; false for
    code that counts in Python variables, or draws from `random` or NumPy."""

    @classmethod
    def of(cls, config: RunConfig) -> Optimiser:
        """Return the optimiser that a config with every rule applied means."""
        return cls(**config.options_of("optimizer", cls))

    def size(self, parameters: int) -> int:
        """Return R, how many numbers are remembered of a model of P parameters."""
        raise NotImplementedError

    def regularised(self, gradient: Tensor, weights: Tensor, received: Tensor) -> Tensor:
        """Return the gradient that clients take a step with; here it is that of their loss alone.

        This is where a client may be drawn towards what it got. The server's gradient does not come here.

        Args:
            gradient: ``[..., P]`` gradient of the loss, after the defences.
            weights: ``[..., P]`` parameters of the clients.
            received: ``[P]`` the average that they got last.
        """
        return gradient

    def step_(self, model: FlatModule, weights: Tensor, gradient: Tensor, memory: Tensor, lr: Tensor) -> None:
        """Take a step, in place; no graph is recorded.

        Args:
            model: the network, which knows what layers the parameters belong to.
            weights: ``[..., P]`` parameters, changed in place.
            gradient: ``[..., P]`` their gradient, which may be changed, too.
            memory: ``[..., R]`` what is remembered, changed in place.
            lr: learning rates ``[..., 1]``, or a scalar.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class SGD(Optimiser):
    """Stochastic gradient descent with momentum and weight decay, as `torch.optim.SGD` does it."""

    momentum: float
    """Share of the velocity that is kept."""
    weight_decay: float
    """Multiple of the weights that is added to their gradient."""

    @classmethod
    def of(cls, config: RunConfig) -> SGD:
        """Return SGD with the momentum and weight decay of a config."""
        return cls(config.momentum, config.weight_decay)

    def size(self, parameters: int) -> int:
        """Return the size of the velocity."""
        return parameters

    def step_(self, model: FlatModule, weights: Tensor, gradient: Tensor, memory: Tensor, lr: Tensor) -> None:
        """Take a step; the memory is the velocity."""
        sgd_(weights, gradient, memory, lr, self.momentum, self.weight_decay)


@torch.no_grad()
def take_step_(
    optimiser: Optimiser,
    model: FlatModule,
    weights: Tensor,
    gradient: Tensor,
    memory: Tensor,
    lr: Tensor,
    received: Tensor | None = None,
) -> None:
    """Take a step with an optimiser, in place.

    Args:
        optimiser: the optimiser; see its `step_` for the next arguments.
        model: the network.
        weights: ``[..., P]`` parameters.
        gradient: ``[..., P]`` gradient of their loss.
        memory: ``[..., R]`` what is remembered.
        lr: learning rates.
        received: ``[P]`` the average that clients got last; None for the server.

    Raises:
        ValueError: what the optimiser makes of the clients' gradient is no gradient.
    """
    if received is not None:
        own = optimiser.regularised(gradient, weights.detach(), received)
        gradient = tensor_from(own, gradient.shape, "optimizer", "regularised", optimiser)
    optimiser.step_(model, weights, gradient, memory, lr)
