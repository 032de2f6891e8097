"""Attacker-aware training (TAResSFL, Li et al., ICLR 2023, section 4): clients that resist inversion.

For each client a simulated attacker learns to turn the client's smashed data back into its images. Where the SSIM of
the attacker's reconstructions is above a target, the gradient of the excess is added to the gradient that the client
learns from.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.func import vmap

from simsfl.config import RunConfig
from simsfl.config.notation import Decoder
from simsfl.defences import Added, Defence
from simsfl.models import FlatModule
from simsfl.privacy.decoders import decoder
from simsfl.privacy.similarity import ssim

_RATE = 1e-3
"""Learning rate of the attackers at the start."""
_DECAY, _MILESTONES = 0.2, (0.3, 0.6, 0.8)
"""Factor by which the attackers' learning rate falls, and shares of the rounds after which it does, as published."""
_BETAS, _EPSILON = (0.9, 0.999), 1e-8
"""Decay rates of Adam's two averages, and the term that is added to its denominator."""


@dataclass(frozen=True)
class TAResSFL(Defence):
    """Each client makes the reconstructions of its own simulated attacker worse, which learns along with it.

    An attacker is a row of ``A = 3R + 1`` numbers: the R parameters of its decoder, Adam's averages of their gradients
    and of the squared gradients, and the number of steps that it has learnt from.
    """

    weight: float
    """Lambda, the weight of how far SSIM is above `target`."""
    target: float
    """SSIM up to which reconstructions do not count."""
    borders: str
    """What SSIM takes to be beyond the borders of images: "zeros" or "mirror"."""
    decoder: Decoder
    """Kind of the attackers' network."""
    rounds: int
    """Rounds of the run, over which the attackers' learning rate falls."""

    figures = ("attackers_ssim_before", "attackers_ssim")
    """SSIM of the reconstructions of a step before attackers learn from it, and after; the gradient is based on the
    latter."""
    learns = False
    replayable = False
    phase = "attackers"

    @classmethod
    def of(cls, config: RunConfig) -> TAResSFL:
        """Return the defence with the weight, target, borders and decoder of a config."""
        attacker = Decoder.parse(config.ressfl_decoder, "ressfl_decoder")
        return cls(config.ressfl_lambda, config.ressfl_target_ssim, config.ssim_borders, attacker, config.rounds)

    def size(self, smashed_shape: tuple[int, int, int], image_size: int) -> int:
        """Return A."""
        return 3 * attackers_network(self.decoder, smashed_shape, image_size).size + 1

    def initial(self, smashed_shape: tuple[int, int, int], image_size: int, generator: torch.Generator) -> Tensor:
        """Return an attacker ``[A]`` that has not learnt anything; all clients begin with this one."""
        parameters = _network(self.decoder, smashed_shape, image_size, generator).initial
        return torch.cat([parameters, parameters.new_zeros(2 * len(parameters) + 1)])

    def add(self, images: Tensor, smashed: Tensor, memory: Tensor, round_index: Tensor) -> Added:
        """Let each client's attacker learn from the step, then return the gradient that makes its task harder."""
        network = attackers_network(self.decoder, tuple(smashed.shape[2:]), images.shape[-1])
        decoders_CR, first_CR, second_CR = memory[:, :-1].chunk(3, dim=1)

        def similarity(decoders_CR: Tensor, sent_CBchw: Tensor) -> Tensor:
            made = vmap(network.run)(network.named(decoders_CR), sent_CBchw)
            return ssim(made.flatten(0, 1), images.flatten(0, 1), self.borders).view(images.shape[:2]).mean(dim=1)

        sent_CBchw = smashed.detach().to(memory.dtype)
        learning_CR = decoders_CR.detach().clone().requires_grad_()
        before_C = similarity(learning_CR, sent_CBchw)
        (gradient_CR,) = torch.autograd.grad(-before_C.sum(), learning_CR)
        lr = attackers_lr(round_index, self.rounds, memory.dtype)
        adam_(decoders_CR, gradient_CR, first_CR, second_CR, memory[:, -1:], lr)

        sent_CBchw.requires_grad_()
        after_C = similarity(decoders_CR.detach(), sent_CBchw)
        excess = self.weight * (after_C - self.target).clamp(min=0.0)
        (gradient_CBchw,) = torch.autograd.grad(excess.sum(), sent_CBchw)
        return Added(gradient_CBchw.to(smashed.dtype), (before_C.detach(), after_C.detach()))

    def add_alone(self, images: Tensor, smashed: Tensor, memory: Tensor, round_index: Tensor) -> Added:
        """Do the same for a single client, with an ordinary module and `torch.optim.Adam`."""
        network = attackers_network(self.decoder, tuple(smashed.shape[2:]), images.shape[-1])
        parameters, first, second = memory[0, :-1].chunk(3)
        attacker = network.module(parameters)
        lr = float(attackers_lr(round_index, self.rounds, memory.dtype))
        optimizer = torch.optim.Adam(attacker.parameters(), lr=lr, foreach=False)
        averages = (network.named(average).values() for average in (first, second))
        for parameter, one, two in zip(attacker.parameters(), *averages, strict=True):
            optimizer.state[parameter] = {"step": memory[0, -1].clone(), "exp_avg": one, "exp_avg_sq": two}
        sent = smashed[0].detach().to(memory.dtype).requires_grad_()
        before = ssim(attacker(sent.detach()), images[0], self.borders).mean()
        (-before).backward()
        optimizer.step()
        memory[0, -1] += 1
        after = ssim(attacker(sent), images[0], self.borders).mean()
        figures = before.detach()[None], after.detach()[None]
        if after <= self.target:
            return Added(torch.zeros_like(smashed), figures)
        (self.weight * (after - self.target)).backward()
        return Added(sent.grad.to(smashed.dtype)[None], figures)


@cache
def attackers_network(kind: Decoder, smashed_shape: tuple[int, int, int], image_size: int) -> FlatModule:
    """Return the decoder of attackers, with R parameters, without weights.

    Args:
        kind: kind, depth and channels of the decoder.
        smashed_shape: ``(c, h, w)``.
        image_size: H.
    """
    network = _network(kind, smashed_shape, image_size, torch.Generator())
    network.take_initial()
    return network


def _network(
    kind: Decoder, smashed_shape: tuple[int, int, int], image_size: int, generator: torch.Generator
) -> FlatModule:
    """Return the decoder of attackers with weights that are drawn from the generator."""
    return FlatModule(decoder(kind, smashed_shape, image_size, "group", generator))


def attackers_lr(round_index: Tensor, rounds: int, dtype: torch.dtype) -> Tensor:
    """Return the attackers' learning rate in a round, counted from 0, of `rounds` rounds, as a scalar."""
    lr = torch.full((), _RATE, device=round_index.device, dtype=dtype)
    for falls, milestone in enumerate(_MILESTONES, start=1):
        lr = torch.where(round_index >= max(1, int(milestone * rounds)), _RATE * _DECAY**falls, lr)
    return lr


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
