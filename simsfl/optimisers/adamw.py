"""AdamW (Loshchilov & Hutter, ICLR 2019)."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from simsfl.config import RunConfig
from simsfl.config.values import option
from simsfl.models import FlatModule
from simsfl.optimisers import Optimiser


@dataclass(frozen=True)
class AdamW(Optimiser):
    """Adam with weight decay apart from the gradient, as `torch.optim.AdamW` does it.

    A row of memory is the average of gradients, that of their squares, and the number of steps.
    """

    beta1: float = option(0.9, "Share of the average of gradients that is kept.", within=(0, 0.999999))
    beta2: float = option(0.999, "Share of the average of squared gradients that is kept.", within=(0, 0.999999))
    epsilon: float = option(1e-8, "Added to the root of that average.", within=(0, 1))
    weight_decay: float = field(kw_only=True)
    """Share of the weights, times the learning rate, that is taken off in each step."""

    @classmethod
    def of(cls, config: RunConfig) -> AdamW:
        """Return AdamW with the weight decay of a config."""
        return cls(weight_decay=config.weight_decay, **config.options_of("optimizer", cls))

    def size(self, parameters: int) -> int:
        """Return the size of both averages and of the count."""
        return 2 * parameters + 1

    def step_(self, model: FlatModule, weights: Tensor, gradient: Tensor, memory: Tensor, lr: Tensor) -> None:
        """Take a step."""
        first, second, steps = memory.split([weights.shape[-1], weights.shape[-1], 1], dim=-1)
        steps.add_(1.0)
        first.lerp_(gradient, 1 - self.beta1)
        second.mul_(self.beta2).addcmul_(gradient, gradient, value=1 - self.beta2)
        weights.mul_(1 - lr * self.weight_decay)
        root = (second / (1 - self.beta2**steps)).sqrt_().add_(self.epsilon)
        weights.sub_(lr / (1 - self.beta1**steps) * first / root)
