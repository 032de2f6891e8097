"""Feature-space hijacking (FSHA; Pasquini, Ateniese and Bernaschi, CCS 2021): a server that trains clients for itself.

The server has a pilot, which is a client model of its own, and a decoder that turns the pilot's smashed data back into
images. Both learn together on the server's own images. A critic tells the smashed data of clients from those of the
pilot, and clients get the gradient that makes theirs look like the pilot's, instead of that of their objective. In the
end, the decoder reads what clients send.

Names of tensors end in their shape: n rows (images) of clients and as many of the server, chw the smashed data of an
image, H height and width of images.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simsfl.algorithm.wire import Wire
from simsfl.attacks import Result, pixels
from simsfl.attacks.reconstruction import draws
from simsfl.config import RunConfig
from simsfl.config.notation import Decoder
from simsfl.data import Images
from simsfl.data.views import UNIFORMS, Recipe
from simsfl.evaluation.encoding import IMAGES, Watch, embed, unwatched
from simsfl.models.layers import initialise_
from simsfl.privacy.decoders import Training, as_maps, decoder
from simsfl.rounds import evaluating
from simsfl.setup.parts import Parts
from simsfl.simulation import Simulation
from simsfl.system.randomness import Purpose, numpy_generator, torch_generator

_RATE = 1e-3
"""Learning rate of Adam for pilot and decoder, and for the critic."""
_CRITIC_STEPS = 2
"""Steps of the critic for each step of clients."""
_CRITIC_BETAS = (0.5, 0.9)
"""Decay rates of the critic's Adam, as usual for adversarial training."""
_LENGTH = 0.1
"""Norm of the gradient that clients get, as a share of that of their objective's: longer ones lead them to and fro."""
_PENALTY = 10.0
"""Weight of the critic's gradient penalty (Gulrajani et al., NeurIPS 2017)."""
_CHANNELS, _SMALLEST = 64, 4
"""Channels of the critic's convolutions, and height of the maps that they end in."""
_TARGETS, _OWN = 2, 3
"""Addresses of the random numbers that protect the target images, and from which all others are drawn."""


def hijack(
    simulation: Simulation,
    targets: Images,
    own: Images,
    *,
    spec: Decoder,
    seed: int,
    rounds: int,
    watch: Watch = unwatched,
) -> Result:
    """Train the clients of a run anew, from its beginning, with a server that hijacks them; reconstruct their images.

    All else is as in the run: cohorts, views, defences and learning rates, whose schedules end with the last round.

    Args:
        simulation: the run, which stays as it is.
        targets: the images that are reconstructed.
        own: the server's own images, of the same size, and normalised in the same way.
        spec: kind of decoder.
        seed: seed of the server's networks, and of its draws.
        rounds: rounds that clients are trained for.
        watch: what the loop over rounds goes through, to show how far it has come.

    Raises:
        FloatingPointError: the training of clients diverges.
    """
    old = simulation.parts
    trained = Simulation(
        hijacked(old.config, rounds),
        old.dataset,
        partition=old.given,
        dtype=old.dtype,
        choices=old.choices,
        start=old.start,
    )
    server = Hijacker(trained.parts, own, spec, seed)
    trained.wire = server
    rows = torch.arange(len(targets), device=old.device)
    protecting = draws(len(rows), numpy_generator(seed, Purpose.ATTACKER, _TARGETS), old.device)
    originals, curves, trains = pixels(targets), Training([], []), trained.rounds()
    for _ in watch("hijacking", range(rounds)):
        next(trains)
        sent = embed(evaluating.client(trained.parts), targets, rows, dtype=old.dtype)
        made = server.reconstructed(old.hyper.defence.protect(sent, protecting)).to(originals)
        curves.train.append(server.error())
        curves.held_out.append(F.mse_loss(made, originals).item())
    return Result.of(made, originals, curves)


def hijacked(config: RunConfig, rounds: int) -> RunConfig:
    """Return the config of a run in which the server is an attacker, who needs no evaluation and saves nothing."""
    return replace(config, rounds=rounds, loss_threshold=0.0, callback=None)


class Hijacker(Wire):
    """A server that answers smashed data with gradients of its own.

    Args:
        parts: the parts of a simulation that has just begun.
        own: the server's images.
        spec: kind of decoder.
        seed: seed of its networks, and of its draws.

    Attributes:
        pilot: the client model that clients are to imitate. It starts as theirs do, with the weights that the server
            gives them; the published attack, which does not know these, starts from others.
        decoder: network that turns smashed data back into images.
        critic: network that scores how much smashed data look like the pilot's.
    """

    def __init__(self, parts: Parts, own: Images, spec: Decoder, seed: int):
        config, model, to = parts.config, parts.model, {"device": parts.device, "dtype": parts.dtype}
        generator = torch_generator(seed, Purpose.DECODER)
        start = parts.state.clients
        self.pilot = model.client.module(start.online.clone(), start.online_statistics.clone()).train()
        self.decoder = decoder(spec, model.smashed_shape, config.image_size, "batch", generator).to(**to)
        self.critic = _critic(model.smashed_shape, generator).to(**to)
        self._own, self._recipe = own, Recipe.of(config)
        self._defence, self._rng = parts.hyper.defence, numpy_generator(seed, Purpose.ATTACKER, _OWN)
        self._learners = torch.optim.Adam([*self.pilot.parameters(), *self.decoder.parameters()], lr=_RATE)
        self._judge = torch.optim.Adam(self.critic.parameters(), lr=_RATE, betas=_CRITIC_BETAS)
        self._smashed: Tensor | None = None
        self._errors: list[Tensor] = []

    def up(self, smashed_2Nchw: Tensor) -> tuple[Tensor, Collection[int]]:
        """Look at what clients send."""
        self._smashed = smashed_2Nchw
        return super().up(smashed_2Nchw)

    def down(self, gradient_Nchw: Tensor) -> Tensor:
        """Learn from what clients have sent; return the gradient by which they come closer to the pilot.

        Its size follows that of the gradient of the clients' objective. Clients that were absent, whose gradient is 0,
        stay out of it.
        """
        there_N = gradient_Nchw.flatten(1).any(dim=1)
        theirs_nchw = self._smashed[: len(there_N)][there_N].detach().to(next(self.pilot.parameters()).dtype)
        pilots_nchw = self._learn(len(theirs_nchw))
        for _ in range(_CRITIC_STEPS):
            mixed_n111 = torch.from_numpy(self._rng.random((len(theirs_nchw), 1, 1, 1))).to(theirs_nchw)
            self._judge.zero_grad()
            critic_loss(self.critic, theirs_nchw, pilots_nchw, mixed_n111).backward()
            self._judge.step()
        theirs_nchw.requires_grad_()
        (towards_nchw,) = torch.autograd.grad(-self.critic(theirs_nchw).mean(), theirs_nchw)
        result = torch.zeros_like(gradient_Nchw)
        scale = _LENGTH * gradient_Nchw.norm() / towards_nchw.norm().clamp(min=1e-30)
        result[there_N] = (towards_nchw * scale).to(gradient_Nchw.dtype)
        return result

    def _learn(self, count: int) -> Tensor:
        """Let pilot and decoder learn from views of some of the server's images; return the pilot's smashed data."""
        rows = torch.from_numpy(self._rng.integers(len(self._own), size=count)).to(self._own.mean.device)
        views = self._recipe.sample(self._rng.random((1, count, 1, UNIFORMS))).map(lambda t: t.to(rows.device))
        dtype = next(self.pilot.parameters()).dtype
        images_n3HH = self._own.augmented(self._own.pixels[rows][:, None], views, dtype)[0, :, 0]
        protecting = draws(count, self._rng, rows.device)
        pilots_nchw = self._defence.protect(self.pilot(images_n3HH), protecting)
        error = F.mse_loss(self.decoder(pilots_nchw), self._own.restore(images_n3HH))
        self._learners.zero_grad()
        error.backward()
        self._learners.step()
        self._errors.append(error.detach())
        return pilots_nchw.detach()

    def error(self) -> float:
        """Return the decoder's mean squared error on views of the server's images, averaged since the last call."""
        mean = torch.stack(self._errors).mean().item()
        self._errors.clear()
        return mean

    @torch.no_grad()
    def reconstructed(self, smashed: Tensor) -> Tensor:
        """Return the images ``[n, 3, H, H]`` in [0, 1] that the decoder reads from smashed data ``[n, c, h, w]``."""
        self.decoder.eval()
        made = torch.cat([self.decoder(part) for part in smashed.split(IMAGES)])
        self.decoder.train()
        return made


def critic_loss(critic: nn.Module, theirs: Tensor, pilots: Tensor, mixed: Tensor) -> Tensor:
    """Return what a critic minimises (Wasserstein, with a gradient penalty; Gulrajani et al., NeurIPS 2017, eq. 3).

    Args:
        critic: network that maps ``[n, c, h, w]`` to a score ``[n]``, which is to be high for the pilot's.
        theirs: ``[n, c, h, w]`` smashed data of clients.
        pilots: ``[n, c, h, w]`` smashed data of the pilot.
        mixed: ``[n, 1, 1, 1]`` share of the pilot's in the mixtures at which the gradient's norm is to be 1.
    """
    mixtures = (mixed * pilots + (1 - mixed) * theirs).requires_grad_()
    (slope,) = torch.autograd.grad(critic(mixtures).sum(), mixtures, create_graph=True)
    penalty = (slope.flatten(1).norm(dim=1) - 1).square().mean()
    return critic(theirs).mean() - critic(pilots).mean() + _PENALTY * penalty


def _critic(smashed_shape: tuple[int, int, int], generator: torch.Generator) -> nn.Module:
    """Return a critic of smashed data of this shape ``(c, h, w)``: convolutions, and a score ``[n]``."""
    with torch.device("meta"):
        layers, channels, height = as_maps(smashed_shape)
        while height > _SMALLEST:
            layers += [nn.Conv2d(channels, _CHANNELS, 3, 2, 1), nn.LeakyReLU(0.2)]
            channels, height = _CHANNELS, (height + 1) // 2
        critic = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * height * height, 1), nn.Flatten(0))
    critic = critic.to_empty(device="cpu")
    initialise_(critic, generator)
    return critic
