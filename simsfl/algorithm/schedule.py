"""Learning rates of server and clients over the rounds of a run."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def decay(schedule: str, round_index: int, rounds: int, factor: float) -> float:
    """Return the share of the base learning rate that is left in a round.

    Args:
        schedule: "cosine" falls from 1 towards 0 (Loshchilov and Hutter, ICLR 2017); "step" multiplies by `factor`
            after 60 % and again after 80 % of the rounds, but never in the first round.
        round_index: counted from 0.
        rounds: rounds of the run.
        factor: used by "step" alone.

    >>> [round(decay("step", r, rounds=10, factor=0.1), 3) for r in (0, 5, 6, 8)]
    [1.0, 1.0, 0.1, 0.01]
    >>> [round(decay("cosine", r, rounds=10, factor=0.1), 3) for r in (0, 5, 9)]
    [1.0, 0.5, 0.024]
    """
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * round_index / rounds))
    return factor ** sum(round_index >= max(1, int(share * rounds)) for share in (0.6, 0.8))


def warmed_up(round_index: int, rounds: int, warmup: int) -> tuple[float, int, int]:
    """Return the share of the learning rate that warming up leaves, and the round and the number of rounds after it.

    In warming up the rate rises evenly to its full size, in the last of its rounds; then the schedule begins.

    >>> [warmed_up(r, rounds=10, warmup=4)[0] for r in range(5)]
    [0.25, 0.5, 0.75, 1.0, 1.0]

    Args:
        round_index: counted from 0.
        rounds: rounds of the run.
        warmup: rounds of warming up.
    """
    return min(1.0, (round_index + 1) / (warmup or 1)), max(0, round_index - warmup), max(1, rounds - warmup)


def server_lr(base: float, schedule: str, round_index: int, rounds: int) -> float:
    """Return the server's learning rate in a round counted from 0; "step" has the factor 0.1."""
    return base * decay(schedule, round_index, rounds, 0.1)


def client_lr(base: float, schedule: str, round_index: int, rounds: int, own_steps: Tensor) -> Tensor:
    """Return the learning rate of each client, ``[C]`` float64.

    Args:
        base: rate at the start.
        schedule: "cosine" or "step" (with the factor 0.2), as in `decay`; or "oscillating", which is what the published
            program does. Its cosine has a period counted in rounds, but advances with each of a client's own steps, so
            that the rate goes up and down.
        round_index: counted from 0.
        rounds: rounds of the run.
        own_steps: ``[C]`` int64, steps that each client has done so far.
    """
    if schedule == "oscillating":
        return base * 0.5 * (1.0 + torch.cos(math.pi * own_steps.double() / rounds))
    return torch.full_like(own_steps, base * decay(schedule, round_index, rounds, 0.2), dtype=torch.float64)
