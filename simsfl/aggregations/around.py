"""What clients do with the average, and with their momentum models, around any aggregation of the online models."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from simsfl.aggregations import Aggregation, Memory
from simsfl.models import FlatModule


@dataclass(frozen=True)
class Around(Aggregation):
    """An aggregation that leaves to another one what a subclass does not do itself."""

    inner: Aggregation
    """The other one."""

    @property
    def aligns_momentum(self) -> bool:
        """Return whether momentum models are combined as well."""
        return self.inner.aligns_momentum

    @property
    def mixes(self) -> bool:
        """Return whether clients make something of their own of the average."""
        return self.inner.mixes

    def combine(self, models_nP: Tensor, images_n: Tensor) -> Tensor:
        """Return one model ``[P]`` made of those of the clients."""
        return self.inner.combine(models_nP, images_n)

    def share(self, models_nP: Tensor, images_n: Tensor, images: Tensor, clients: int) -> Tensor | None:
        """Return what some of the clients add to it, if it is a sum over clients."""
        return self.inner.share(models_nP, images_n, images, clients)

    def memory(self, size: int, device: torch.device, dtype: torch.dtype) -> Memory:
        """Return what the server remembers before the first averaging."""
        return self.inner.memory(size, device, dtype)

    def step(self, before_P: Tensor, combined_P: Tensor, memory: Memory) -> Tensor:
        """Return the average ``[P]``."""
        return self.inner.step(before_P, combined_P, memory)

    def remembered(self, size: int) -> int:
        """Return how many numbers each client remembers."""
        return self.inner.remembered(size)

    def receive(self, model: FlatModule, own_CP: Tensor, average_P: Tensor, memory_CR: Tensor) -> Tensor:
        """Return the models ``[C, P]`` that clients go on with."""
        return self.inner.receive(model, own_CP, average_P, memory_CR)


@dataclass(frozen=True)
class Aligned(Around):
    """Momentum models are averaged as well (MonAcoSFL, Przewięźlikowski et al., ECML-PKDD 2024)."""

    aligns_momentum = True


@dataclass(frozen=True)
class Mixed(Around):
    """Divergence-aware mixing of the average with clients' own models (Zhuang et al., ICLR 2022, eq. 4 and 5).

    A client keeps the share ``min(scale * divergence, 1)`` of its own model. Its scale, which it remembers, is set when
    it first differs from the average, such that it keeps the share `tau` that time.
    """

    tau: float
    """Share of its own model that a client keeps the first time."""

    mixes = True

    def remembered(self, size: int) -> int:
        """Return 1, for the scale, which is 0 until it is set."""
        return 1

    def receive(self, model: FlatModule, own_CP: Tensor, average_P: Tensor, memory_CR: Tensor) -> Tensor:
        """Return the mixtures.

        >>> model = FlatModule(torch.nn.Linear(1, 1, bias=False))
        >>> own, scale = torch.tensor([[1.0], [5.0]]), torch.tensor([[0.0], [2.0]])
        >>> Mixed(Aggregation(), tau=0.25).receive(model, own, torch.tensor([3.0]), scale), scale
        (tensor([[2.5000],
                [5.0000]]), tensor([[0.1250],
                [2.0000]]))
        """
        apart_C, scale_C = divergence(model, own_CP, average_P), memory_CR[:, 0]
        scale_C.copy_(torch.where((scale_C == 0) & (apart_C > 0), self.tau / apart_C, scale_C))
        own_share_C1 = (scale_C * apart_C).clamp(max=1.0)[:, None]
        return torch.lerp(average_P.expand_as(own_CP), own_CP, own_share_C1)


@torch.no_grad()
def divergence(model: FlatModule, own_CP: Tensor, average_P: Tensor) -> Tensor:
    """Return how far each client's model is from the average, ``[C]``.

    The distance is the sum over all parameter tensors of the L2 norm of the difference, as in the published program.

    Args:
        model: the clients' network.
        own_CP: the clients' models.
        average_P: the average.
    """
    differences = model.named(own_CP - average_P)
    return torch.stack([difference.flatten(1).norm(dim=1) for difference in differences.values()]).sum(dim=0)
