"""Aggregations in which the server takes a step of its own, with the difference that clients have made as gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from simsfl.aggregations import Aggregation, Memory
from simsfl.config.values import option


@dataclass(frozen=True)
class FedAvgM(Aggregation):
    """Federated averaging with momentum on the server (Hsu et al., 2019; Reddi et al., ICLR 2021)."""

    lr: float = option(1.0, "Learning rate of the server's step.", within=(0, 1e6))
    momentum: float = option(0.9, "Momentum of the server's step.", within=(0, 1))

    def memory(self, size: int, device: torch.device, dtype: torch.dtype) -> Memory:
        """Return the velocity ``[P]``."""
        return {"velocity": torch.zeros(size, device=device, dtype=dtype)}

    def step(self, before_P: Tensor, combined_P: Tensor, memory: Memory) -> Tensor:
        """Return the model that clients get, and move the velocity on."""
        velocity_P = memory["velocity"].mul_(self.momentum).add_(combined_P - before_P)
        return before_P + self.lr * velocity_P


@dataclass(frozen=True)
class FedAdam(Aggregation):
    """Adam on the server (Reddi et al., ICLR 2021, algorithm 2), without correction for the start."""

    lr: float = option(0.01, "Learning rate of the server's step.", within=(0, 1e6))
    beta1: float = option(0.9, "Share of the average of differences that is kept.", within=(0, 1))
    beta2: float = option(0.99, "Share of the average of their squares that is kept.", within=(0, 1))
    adaptivity: float = option(1e-3, "Number tau, added to the root of the squares' average.", within=(1e-12, 1e6))

    def memory(self, size: int, device: torch.device, dtype: torch.dtype) -> Memory:
        """Return both averages ``[P]``; the average of squares starts at the square of the adaptivity."""
        first = torch.zeros(size, device=device, dtype=dtype)
        return {"first": first, "second": torch.full_like(first, self.adaptivity**2)}

    def step(self, before_P: Tensor, combined_P: Tensor, memory: Memory) -> Tensor:
        """Return the model that clients get, and move the averages on."""
        difference_P = combined_P - before_P
        first_P = memory["first"].mul_(self.beta1).add_(difference_P, alpha=1 - self.beta1)
        second_P = memory["second"].mul_(self.beta2).addcmul_(difference_P, difference_P, value=1 - self.beta2)
        return before_P + self.lr * first_P / (second_P.sqrt() + self.adaptivity)
