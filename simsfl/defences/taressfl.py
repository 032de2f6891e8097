"""Attacker-aware training (TAResSFL, Li et al., ICLR 2023, section 4): clients that resist inversion.

For each client a simulated attacker learns to turn the client's smashed data back into its images. Where the SSIM of
the attacker's reconstructions is above a target, the gradient of the excess is added to the gradient that the client
learns from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import vmap

from simsfl.models import FlatModule
from simsfl.privacy.similarity import ssim

_RATE = 1e-3
"""Learning rate of the attackers at the start."""
_DECAY, _MILESTONES = 0.2, (0.3, 0.6, 0.8)
"""Factor by which the attackers' learning rate falls, and shares of the rounds after which it does, as published."""
_BETAS, _EPSILON = (0.9, 0.999), 1e-8
"""Decay rates of Adam's two averages, and the term that is added to its denominator."""


@dataclass(frozen=True)
class Outcome:
    """How well attackers reconstruct the images of a step, and the gradient against it."""

    gradient: Tensor
    """``[N, c, h, w]`` gradient with respect to the smashed data, to be added to the server's gradient."""
    before: Tensor
    """Scalar SSIM of the reconstructions before attackers learn from this step, averaged over clients."""
    after: Tensor
    """Scalar SSIM of the reconstructions after attackers have learnt from this step, averaged over clients; the
    gradient is based on the SSIM at this point."""


def attackers_lr(round_index: int, rounds: int) -> float:
    """Return the attackers' learning rate in round `round_index`, counted from 0, of `rounds` rounds."""
    return _RATE * _DECAY ** sum(round_index >= max(1, int(milestone * rounds)) for milestone in _MILESTONES)


def taressfl_(
    decoder: FlatModule,
    attackers_CA: Tensor,
    images_CB3HW: Sequence[Tensor],
    smashed_Nchw: Tensor,
    lr: Tensor,
    weight: float,
    target: float,
) -> Outcome:
    """Let each client's attacker learn from the step, then return the gradient that makes its task harder.

    Args:
        decoder: the decoder of an attacker, with R parameters.
        attackers_CA: ``[C, A]`` one attacker per client, changed in place; see `simsfl.algorithm.state.Attackers`.
        images_CB3HW: images ``[C', B', 3, H, H]`` in [0, 1] for each group of clients with the same batch size.
        smashed_Nchw: ``[N, c, h, w]`` smashed data of these images, group after group.
        lr: scalar learning rate of the attackers.
        weight: lambda, the weight of how far SSIM is above `target`.
        target: SSIM up to which reconstructions do not count.
    """
    counts = [len(images) for images in images_CB3HW]
    gradients, befores, afters = [], [], []
    smashed = smashed_Nchw.split([images.shape[:2].numel() for images in images_CB3HW])
    for rows_CA, images, sent in zip(attackers_CA.split(counts), images_CB3HW, smashed, strict=True):
        decoders_CR, first_CR, second_CR = rows_CA[:, :-1].chunk(3, dim=1)

        def similarity(decoders_CR: Tensor, sent_CBchw: Tensor, images: Tensor = images) -> Tensor:
            made = vmap(decoder.run)(decoder.named(decoders_CR), sent_CBchw)
            return ssim(made.flatten(0, 1), images.flatten(0, 1)).view(images.shape[:2]).mean(dim=1)

        sent_CBchw = sent.detach().to(decoders_CR.dtype).unflatten(0, images.shape[:2])
        learning_CR = decoders_CR.detach().clone().requires_grad_()
        before_C = similarity(learning_CR, sent_CBchw)
        (gradient_CR,) = torch.autograd.grad(-before_C.sum(), learning_CR)
        adam_(decoders_CR, gradient_CR, first_CR, second_CR, rows_CA[:, -1:], lr)

        sent_CBchw.requires_grad_()
        after_C = similarity(decoders_CR.detach(), sent_CBchw)
        excess = weight * (after_C - target).clamp(min=0.0)
        gradients.append(torch.autograd.grad(excess.sum(), sent_CBchw)[0].flatten(0, 1).to(sent.dtype))
        befores.append(before_C.detach())
        afters.append(after_C.detach())
    return Outcome(torch.cat(gradients), torch.cat(befores).mean(), torch.cat(afters).mean())


@torch.no_grad()
def adam_(parameters: Tensor, gradient: Tensor, first: Tensor, second: Tensor, steps: Tensor, lr: Tensor) -> None:
    """Take a step of Adam (Kingma and Ba, ICLR 2015) in each of C rows.

    All arguments except `gradient` and `lr` are changed in place.

    Args:
        parameters: ``[C, R]``, as are the next three.
        gradient: gradient of the parameters.
        first: moving average of the gradients.
        second: moving average of the squared gradients.
        steps: ``[C, 1]`` steps that each row has taken.
        lr: scalar learning rate.
    """
    steps.add_(1.0)
    for average, value, beta in ((first, gradient, _BETAS[0]), (second, gradient.square(), _BETAS[1])):
        average.lerp_(value, 1.0 - beta)
    first_hat, second_hat = (
        average / (1.0 - beta**steps) for average, beta in zip((first, second), _BETAS, strict=True)
    )
    parameters.sub_(lr * first_hat / (second_hat.sqrt() + _EPSILON))
