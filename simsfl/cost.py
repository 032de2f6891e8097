"""What taking part costs a client: bytes on the wire and floating-point operations."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch

from simsfl.models import SplitModel

WEIGHT_BYTES = 4
"""Weights travel in fp32."""


@dataclass(frozen=True)
class ClientCost:
    """Traffic of one client in one step and in one averaging."""

    step_bytes_up: int
    """Query and key activations."""
    step_bytes_down: int
    """Gradient of the query activations."""
    sync_bytes: int
    """Weights of the client model, each way."""

    def round_bytes(self, steps: int, syncs: int) -> tuple[int, int]:
        """Bytes up and down of a whole round.

        A client fetches the average at the start of a round and after each averaging but the last, whose
        result it fetches when it next takes part: as many downloads as averagings.
        """
        syncs = min(syncs, steps)
        weights = syncs * self.sync_bytes
        return steps * self.step_bytes_up + weights, steps * self.step_bytes_down + weights


def client_cost(model: SplitModel, *, batch_size: int, precision: torch.dtype, align_momentum: bool) -> ClientCost:
    """Traffic of a client, from the model alone.

    Args:
        precision: dtype of activations and gradients on the wire.
        align_momentum: the momentum model is averaged, and so travels, too.
    """
    activations = batch_size * prod(model.smashed_shape) * precision.itemsize
    return ClientCost(
        step_bytes_up=2 * activations,
        step_bytes_down=activations,
        sync_bytes=model.client.size * WEIGHT_BYTES * (2 if align_momentum else 1),
    )


def client_flops(model: SplitModel, *, batch_size: int, image_size: int) -> int:
    """Floating-point operations of a client's step, from the model alone; nothing is computed.

    Both forward passes and the backward pass, two per multiply-add; convolutions and matrix products only, as
    `torch.utils.flop_counter` counts them.
    """
    from torch.utils.flop_counter import FlopCounterMode  # noqa: PLC0415  (imports Triton: 80 MB)

    images = torch.empty(batch_size, 3, image_size, image_size, device="meta")
    with FlopCounterMode(display=False) as counter:
        smashed = model.client.template(images)
        with torch.no_grad():
            model.client.template(images)
        torch.autograd.grad(smashed.sum(), list(model.client.template.parameters()))
    return counter.get_total_flops()
