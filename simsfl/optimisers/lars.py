"""LARS (You et al., 2017): SGD whose rate follows the size of each layer's weights."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from simsfl.config import RunConfig
from simsfl.config.values import option
from simsfl.kernels import sgd_
from simsfl.models import FlatModule
from simsfl.optimisers import Optimiser


@dataclass(frozen=True)
class LARS(Optimiser):
    """SGD with momentum, in which the step of a layer is in proportion to the norm of its weights.

    As in SimCLR and Barlow Twins, biases and the parameters of normalisation, which have one dimension, take plain
    steps of SGD without weight decay.
    """

    trust: float = option(0.001, "Size of a layer's step, relative to its weights, at a rate of 1.", within=(0, 1e6))
    momentum: float = field(kw_only=True)
    """Share of the velocity that is kept."""
    weight_decay: float = field(kw_only=True)
    """Multiple of the weights that is added to their gradient."""

    @classmethod
    def of(cls, config: RunConfig) -> LARS:
        """Return LARS with the momentum and weight decay of a config."""
        options = config.options_of("optimizer", cls)
        return cls(momentum=config.momentum, weight_decay=config.weight_decay, **options)

    def size(self, parameters: int) -> int:
        """Return the size of the velocity."""
        return parameters

    def step_(self, model: FlatModule, weights: Tensor, gradient: Tensor, memory: Tensor, lr: Tensor) -> None:
        """Take a step; the memory is the velocity."""
        scaled = []
        for (name, own), grad in zip(model.named(weights).items(), model.named(gradient).values(), strict=True):
            size, flat = weights.shape[:-1], grad.reshape(*weights.shape[:-1], -1)
            if len(model.shapes[name]) > 1:
                flat = flat + self.weight_decay * own.reshape(*size, -1)
                length, slope = (one.reshape(*size, -1).norm(dim=-1, keepdim=True) for one in (own, flat))
                usable = (length > 0) & (slope > 0)
                flat = flat * torch.where(usable, self.trust * length / slope, torch.ones_like(slope))
            scaled.append(flat)
        sgd_(weights, torch.cat(scaled, dim=-1), memory, lr, self.momentum, 0.0)
