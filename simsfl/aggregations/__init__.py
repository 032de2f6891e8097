"""Aggregation: how the server combines the cohort's models, and what clients do with the result.

It has three parts. Models are combined into one, as in federated averaging; then the server takes a step from the model
that clients had before towards that, as in adaptive federated optimisation (Reddi et al., ICLR 2021, algorithm 1); and
clients receive the model, and may make something of their own of it. `simsfl.config.catalogue.AGGREGATIONS` lists those
that come with simsfl; two more go around any of them (`simsfl.aggregations.around`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from simsfl.config import RunConfig
from simsfl.models import FlatModule

__all__ = ["Aggregation", "Memory"]

Memory = dict[str, Tensor]
"""What the server remembers from one averaging to the next, by name."""


@dataclass(frozen=True)
class Aggregation:
    """The plain mean of the models (McMahan et al., AISTATS 2017, with equal weights), and the base of all others.

    A subclass is a frozen dataclass, whose fields are its options. In shapes, n is the number of clients whose models
    have arrived, P that of numbers in each, C that of clients in the cohort, and R that of numbers that each of them
    remembers.
    """

    aligns_momentum: ClassVar[bool] = False
    """Whether the clients' momentum models are combined as well, so that all clients have the same."""
    mixes: ClassVar[bool] = False
    """Whether clients make something of their own of the average (`receive`), and keep their models for it."""

    @classmethod
    def of(cls, config: RunConfig) -> Aggregation:
        """Return the aggregation that a config with every rule applied means."""
        return cls(**config.options_of("aggregation", cls))

    def combine(self, models_nP: Tensor, images_n: Tensor) -> Tensor:
        """Return one model ``[P]`` made of those of the clients: here their mean.

        Running statistics are combined in the same way, and momentum models where these are averaged.

        Args:
            models_nP: the models, which stay as they are.
            images_n: number of images that each client holds, int64.
        """
        return models_nP.mean(dim=0)

    def share(self, models_nP: Tensor, images_n: Tensor, images: Tensor, clients: int) -> Tensor | None:
        """Return what some of the clients add to the result of `combine`, if that is a sum over clients, else None.

        Where several ranks have a part of the cohort each, such sums travel instead of models.

        Args:
            models_nP: models of these clients.
            images_n: number of images that each of them holds, int64.
            images: number of images that all clients hold whose models have arrived, scalar int64.
            clients: number of these.
        """
        return models_nP.sum(dim=0) / clients if type(self).combine is Aggregation.combine else None

    def memory(self, size: int, device: torch.device, dtype: torch.dtype) -> Memory:
        """Return what is remembered before the first averaging of models of `size` numbers: here nothing."""
        return {}

    def step(self, before_P: Tensor, combined_P: Tensor, memory: Memory) -> Tensor:
        """Return the model ``[P]`` that clients get: here what has been combined.

        Args:
            before_P: the model that clients got after the averaging before.
            combined_P: what `combine` returned.
            memory: what is remembered, which may be changed in place.
        """
        return combined_P

    def remembered(self, size: int) -> int:
        """Return R, given P: how many numbers each client that mixes remembers, zeros at first; here none."""
        return 0

    def receive(self, model: FlatModule, own_CP: Tensor, average_P: Tensor, memory_CR: Tensor) -> Tensor:
        """Return the models ``[C, P]`` that clients go on with: here the average.

        This is called where clients mix: after each averaging, and when clients come into a round, with the models that
        they had at the end of their last one.

        Args:
            model: the clients' network, which knows what layers the parameters belong to.
            own_CP: the clients' models.
            average_P: what `step` returned.
            memory_CR: what each client remembers, to be changed in place.
        """
        return average_P.expand_as(own_CP)
