"""Aggregation: how the server combines the cohort's models, with a memory of its own.

It has two parts. Models are combined into one, as in federated averaging; then the server takes a step from the model
that clients had before towards that, as in adaptive federated optimisation (Reddi et al., ICLR 2021, algorithm 1).
`simsfl.config.catalogue.AGGREGATIONS` lists those that come with simsfl.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from simsfl.config import RunConfig

__all__ = ["Aggregation", "Memory"]

Memory = dict[str, Tensor]
"""What an aggregation remembers from one averaging to the next, by name."""


@dataclass(frozen=True)
class Aggregation:
    """The plain mean of the models (McMahan et al., AISTATS 2017, with equal weights), and the base of all others.

    A subclass is a frozen dataclass, whose fields are its options. In shapes, n is the number of clients whose models
    have arrived, and P that of numbers in each.
    """

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
