"""SGD with momentum and weight decay, and the exponential moving average, over flat stacks.

A stack is ``[C, P]``: one row of P parameters for each of C clients (or ``[P]`` for the server),
so that each update is a handful of passes over one tensor, however many layers there are; on a
CUDA device it is one pass.
"""

import torch
from torch import Tensor

from simsfl.kernels import gpu
from simsfl.kernels.choice import accelerating
from simsfl.kernels.gpu import jit, tl


@torch.no_grad()
def sgd_(
    parameters: Tensor, gradient: Tensor, velocity: Tensor, lr: Tensor, momentum: float, weight_decay: float
) -> None:
    """One SGD step in place: ``v <- momentum v + g + weight_decay p``, ``p <- p - lr v``.

    The same rule as `torch.optim.SGD` with no dampening (its first step, where v is zero,
    included). `lr` is a tensor that broadcasts against `parameters`: ``[C, 1]`` gives each client
    its own rate, and changing its value needs no new program.
    """
    if accelerating() and gpu.usable(parameters):
        triton_sgd_(parameters, gradient, velocity, lr, momentum, weight_decay)
    else:
        velocity.mul_(momentum).add_(gradient).add_(parameters, alpha=weight_decay)
        parameters.addcmul_(velocity, lr, value=-1.0)


@torch.no_grad()
def ema_(average: Tensor, parameters: Tensor, tau: float) -> None:
    """Move a momentum model towards its online model: ``m <- tau m + (1 - tau) p``."""
    average.lerp_(parameters, 1.0 - tau)


BLOCK = 1024
"""Parameters that one Triton program updates."""


def triton_sgd_(
    parameters: Tensor, gradient: Tensor, velocity: Tensor, lr: Tensor, momentum: float, weight_decay: float
) -> None:
    """Every value is read and written once."""
    count, row = parameters.numel(), parameters.shape[-1]
    own_rate = lr.numel() > 1
    grid = (gpu.cdiv(count, BLOCK),)
    assert parameters.is_contiguous()
    assert velocity.is_contiguous()
    gradient, lr = gradient.contiguous(), lr.contiguous()
    sgd_kernel[grid](parameters, gradient, velocity, lr, momentum, weight_decay, count, row, own_rate, BLOCK)


@jit
def sgd_kernel(
    parameters, gradient, velocity, lr, momentum, weight_decay, count, row, OWN: tl.constexpr, BLOCK: tl.constexpr
):
    """`BLOCK` parameters, of whatever clients; where each has a rate of its own, its row says which."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < count
    p = tl.load(parameters + at, mask=mask, other=0.0)
    g = tl.load(gradient + at, mask=mask, other=0.0)
    v = tl.load(velocity + at, mask=mask, other=0.0)
    rate = tl.load(lr + at // row, mask=mask, other=0.0) if OWN else tl.load(lr)
    v = momentum * v + g + weight_decay * p
    tl.store(velocity + at, v, mask=mask)
    tl.store(parameters + at, p - rate * v, mask=mask)
