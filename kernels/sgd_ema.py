"""SGD with momentum and weight decay, and the exponential moving average, over flat stacks.

A stack is ``[C, P]``: one row of P parameters for each of C clients (or ``[P]`` for the server),
so that each update is a handful of passes over one tensor, however many layers there are.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def sgd_(
    parameters: Tensor, gradient: Tensor, velocity: Tensor, lr: Tensor, momentum: float, weight_decay: float
) -> None:
    """One SGD step in place: ``v <- momentum v + g + weight_decay p``, ``p <- p - lr v``.

    The same rule as `torch.optim.SGD` with no dampening (its first step, where v is zero,
    included). `lr` is a tensor that broadcasts against `parameters`: ``[C, 1]`` gives each client
    its own rate, and changing its value needs no new program.
    """
    velocity.mul_(momentum).add_(gradient).add_(parameters, alpha=weight_decay)
    parameters.addcmul_(velocity, lr, value=-1.0)


@torch.no_grad()
def ema_(average: Tensor, parameters: Tensor, tau: float) -> None:
    """Move a momentum model towards its online model: ``m <- tau m + (1 - tau) p``."""
    average.mul_(tau).add_(parameters, alpha=1.0 - tau)
