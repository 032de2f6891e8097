"""FedProx (Li et al., MLSys 2020): clients stay close to the average that they got last."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from simsfl.models import FlatModule
from simsfl.optimisers import Optimiser


@dataclass(frozen=True)
class Proximal(Optimiser):
    """Another optimiser, with half the squared distance to the average added to clients' losses (equation 2)."""

    around: Optimiser
    """The optimiser."""
    weight: float
    """Weight of the distance, mu."""

    @property
    def replayable(self) -> bool:
        """Return whether the optimiser's steps may be replayed."""
        return self.around.replayable

    def size(self, parameters: int) -> int:
        """Return how much the optimiser remembers."""
        return self.around.size(parameters)

    def regularised(self, gradient: Tensor, weights: Tensor, received: Tensor) -> Tensor:
        """Return the gradient with that of the distance added."""
        return self.around.regularised(gradient, weights, received) + self.weight * (weights - received)

    def step_(self, model: FlatModule, weights: Tensor, gradient: Tensor, memory: Tensor, lr: Tensor) -> None:
        """Take the optimiser's step."""
        self.around.step_(model, weights, gradient, memory, lr)
