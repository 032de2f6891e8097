"""When and how fast: learning rates over rounds."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def decay(schedule: str, round_index: int, rounds: int, factor: float) -> float:
    """The share of the base rate that is left in a round counted from 0.

    "cosine" falls towards 0 (Loshchilov and Hutter, ICLR 2017); "step" multiplies by `factor` at 60 and
    at 80 % of the rounds, but not before the second.
    """
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * round_index / rounds))
    return factor ** sum(round_index >= max(1, int(share * rounds)) for share in (0.6, 0.8))


def server_lr(base: float, schedule: str, round_index: int, rounds: int) -> float:
    """Rate of the server in a round counted from 0."""
    return base * decay(schedule, round_index, rounds, 0.1)


def client_lr(base: float, schedule: str, round_index: int, rounds: int, own_steps: Tensor) -> Tensor:
    """Rate ``[C]`` of each client, float64.

    "oscillating" is what the published program does: its cosine has a period counted in rounds but is
    stepped at each of a client's own steps (`own_steps` ``[C]`` so far), so the rate goes up and down.
    """
    if schedule == "oscillating":
        return base * 0.5 * (1.0 + torch.cos(math.pi * own_steps.double() / rounds))
    return torch.full_like(own_steps, base * decay(schedule, round_index, rounds, 0.2), dtype=torch.float64)
