"""SGD with momentum and weight decay, and the exponential moving average, over flat stacks.

A stack is ``[C, P]``: one row of P parameters for each of C clients (or ``[P]`` for the server). Each update is then a
handful of passes over one tensor, however many layers a model has. An SGD step with Triton is a single pass.
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
    """Take one SGD step in place: ``v <- momentum v + g + weight_decay p``, ``p <- p - lr v``.

    This is the rule of `torch.optim.SGD` without dampening, including the first step, where v is zero.

    Args:
        parameters: p, ``[C, P]`` or ``[P]``; changed in place.
        gradient: g, in the shape of `parameters`.
        velocity: v, in the shape of `parameters`; changed in place.
        lr: Learning rate, a tensor that broadcasts against `parameters`: ``[C, 1]`` gives each client its own rate.
            Because it is a tensor, changing its value needs no new program.
        momentum: Factor of the velocity.
        weight_decay: Factor of the parameters in the update.
    """
    if accelerating() and gpu.usable(parameters):
        _triton_sgd_(parameters, gradient, velocity, lr, momentum, weight_decay)
    else:
        velocity.mul_(momentum).add_(gradient).add_(parameters, alpha=weight_decay)
        parameters.addcmul_(velocity, lr, value=-1.0)


@torch.no_grad()
def ema_(average: Tensor, parameters: Tensor, tau: float) -> None:
    """Move a momentum model towards its online model in place: ``m <- tau m + (1 - tau) p``.

    Args:
        average: m, ``[C, P]`` or ``[P]``; changed in place.
        parameters: p, in the shape of `average`.
        tau: Share of the old average in the new one.
    """
    average.lerp_(parameters, 1.0 - tau)


_BLOCK = 1024
"""Parameters that one Triton program updates."""


def _triton_sgd_(
    parameters: Tensor, gradient: Tensor, velocity: Tensor, lr: Tensor, momentum: float, weight_decay: float
) -> None:
    """Take the step of `sgd_` in one pass, which reads and writes every value once.

    `parameters` and `velocity` have to be contiguous. `lr` has one value, or one for each row of `parameters`.
    """
    count, row = parameters.numel(), parameters.shape[-1]
    own_rate = lr.numel() > 1
    grid = (gpu.cdiv(count, _BLOCK),)
    assert parameters.is_contiguous()
    assert velocity.is_contiguous()
    gradient, lr = gradient.contiguous(), lr.contiguous()
    _sgd_kernel[grid](parameters, gradient, velocity, lr, momentum, weight_decay, count, row, own_rate, _BLOCK)


@jit
def _sgd_kernel(
    parameters, gradient, velocity, lr, momentum, weight_decay, count, row, OWN: tl.constexpr, BLOCK: tl.constexpr
):
    """Update `BLOCK` parameters, whichever clients they belong to.

    If `OWN`, each client has its own learning rate, which is looked up by the parameter's row.
    """
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < count
    p = tl.load(parameters + at, mask=mask, other=0.0)
    g = tl.load(gradient + at, mask=mask, other=0.0)
    v = tl.load(velocity + at, mask=mask, other=0.0)
    rate = tl.load(lr + at // row, mask=mask, other=0.0) if OWN else tl.load(lr)
    v = momentum * v + g + weight_decay * p
    tl.store(velocity + at, v, mask=mask)
    tl.store(parameters + at, p - rate * v, mask=mask)
