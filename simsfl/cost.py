"""What taking part costs clients: bytes on the wire and floating-point operations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch

from simsfl.models import SplitModel
from simsfl.plan import Group

WEIGHT_BYTES = 4
"""Weights travel in fp32."""


@dataclass(frozen=True)
class Traffic:
    """Bytes sent by clients and to them."""

    up: int = 0
    down: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.up + other.up, self.down + other.down)


@dataclass(frozen=True)
class ClientCost:
    """What travels for a client."""

    image_bytes: int
    """Smashed data of one view of one image; as much is the gradient that comes back."""
    sync_bytes: int
    """Weights and running statistics of the client model, each way; of its momentum model, too, if that is averaged."""
    momentum_bytes: int
    """Of them the momentum model's."""
    statistics_bytes: int
    """Its running statistics alone, which clients that do not learn average, too."""

    def round_traffic(
        self,
        groups: Sequence[Group],
        steps: int,
        syncs: int,
        *,
        communication: str = "A",
        frozen: bool = False,
        views: int = 2,
    ) -> Traffic:
        """Bytes of a whole round, of the cohort together.

        A client fetches the average at the start of a round and after each averaging but the last, whose
        result it fetches when it next takes part: as many downloads as averagings. Frozen clients get neither
        gradients nor weights, but average what running statistics they have. In state B of `simsfl.communication`
        it is the same, weights are fetched at its start unless all clients take part, and momentum models that are
        averaged are at its end; in state C nothing travels. Supervised clients send one of two `views`, and the
        label, which is not counted.
        """
        if communication == "C":
            return Traffic()
        cohort = sum(group.cohort for group in groups)
        activations = steps * self.image_bytes * sum(group.images for group in groups)
        statistics = cohort * min(syncs, steps) * self.statistics_bytes
        if frozen:
            return Traffic(views * activations + statistics, statistics)
        if communication == "B":
            everyone = cohort == sum(len(group.clients) for group in groups)
            fetched = cohort * (self.momentum_bytes if everyone else self.sync_bytes)
            return Traffic(views * activations + cohort * self.momentum_bytes + statistics, fetched + statistics)
        weights = cohort * min(syncs, steps) * self.sync_bytes
        return Traffic(views * activations + weights, activations + weights)


def client_cost(model: SplitModel, *, precision: torch.dtype, align_momentum: bool) -> ClientCost:
    """What travels for a client, from the model alone.

    Args:
        precision: dtype of activations and gradients on the wire.
        align_momentum: the momentum model is averaged, and so travels, too.
    """
    weights = (model.client.size + len(model.client.initial_statistics)) * WEIGHT_BYTES
    return ClientCost(
        image_bytes=prod(model.smashed_shape) * precision.itemsize,
        sync_bytes=weights * (2 if align_momentum else 1),
        momentum_bytes=weights if align_momentum else 0,
        statistics_bytes=len(model.client.initial_statistics) * WEIGHT_BYTES,
    )


def client_flops(model: SplitModel, *, batch_size: int, image_size: int, learns: bool = True) -> int:
    """Floating-point operations of a client's step, from the model alone; nothing is computed.

    Both forward passes and, if it `learns`, the backward pass, two per multiply-add; convolutions and matrix products
    only, as `torch.utils.flop_counter` counts them.
    """
    from torch.utils.flop_counter import FlopCounterMode  # noqa: PLC0415  (imports Triton: 80 MB)

    images = torch.empty(batch_size, 3, image_size, image_size, device="meta")
    with FlopCounterMode(display=False) as counter:
        smashed = model.client.template(images)
        with torch.no_grad():
            model.client.template(images)
        if learns:
            torch.autograd.grad(smashed.sum(), list(model.client.template.parameters()))
    return counter.get_total_flops()
