"""Attacker-aware training (TAResSFL, Li et al., ICLR 2023, section 4): clients that resist inversion.

A simulated attacker of each client's own learns to turn its smashed data back into its images. Where it does so better
than it should, the gradient of that is added to what the client learns from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import vmap

from simsfl.models import FlatModule
from simsfl.privacy.similarity import ssim

RATE = 1e-3
DECAY, MILESTONES = 0.2, (0.3, 0.6, 0.8)
"""By what the attackers' rate falls, and after which shares of the rounds, as published."""
BETAS, EPSILON = (0.9, 0.999), 1e-8
"""Adam's."""


@dataclass(frozen=True)
class Resistance:
    """What attackers made of a step's smashed data."""

    gradient: Tensor
    """``[N, c, h, w]`` by the smashed data, to be added to the server's."""
    before: Tensor
    """Scalar, SSIM of their reconstructions, mean over clients, as they came."""
    after: Tensor
    """The same once they had learnt from this step: what clients are held to."""


def attackers_lr(round_index: int, rounds: int) -> float:
    """The attackers' learning rate in a round counted from 0."""
    return RATE * DECAY ** sum(round_index >= max(1, int(milestone * rounds)) for milestone in MILESTONES)


def resist_(
    decoder: FlatModule,
    attackers_CA: Tensor,
    images_CB3HW: Sequence[Tensor],
    smashed_Nchw: Tensor,
    lr: Tensor,
    weight: float,
    target: float,
) -> Resistance:
    """Let each client's attacker learn from the step, and find what would make its work harder.

    Args:
        attackers_CA: a row for each client, see `simsfl.algorithm.state.Attackers`.
        images_CB3HW: ``[C', B', 3, H, H]`` in [0, 1] of each group of clients with the same batch size.
        smashed_Nchw: what was sent of them.
        lr: scalar, of the attackers.
        weight: lambda, of how far SSIM is above `target`.
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
    return Resistance(torch.cat(gradients), torch.cat(befores).mean(), torch.cat(afters).mean())


@torch.no_grad()
def adam_(parameters: Tensor, gradient: Tensor, first: Tensor, second: Tensor, steps: Tensor, lr: Tensor) -> None:
    """A step of Adam (Kingma and Ba, ICLR 2015) of each row; all but `gradient` and `lr` are changed in place."""
    steps.add_(1.0)
    for average, value, beta in ((first, gradient, BETAS[0]), (second, gradient.square(), BETAS[1])):
        average.lerp_(value, 1.0 - beta)
    first_hat, second_hat = (
        average / (1.0 - beta**steps) for average, beta in zip((first, second), BETAS, strict=True)
    )
    parameters.sub_(lr * first_hat / (second_hat.sqrt() + EPSILON))
