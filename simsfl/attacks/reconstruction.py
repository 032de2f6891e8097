"""Reconstruction of images from what frozen clients send, by a server that does nothing else than what it should."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from simsfl.attacks import Result, inversion, pixels
from simsfl.config.notation import Decoder
from simsfl.data import Images
from simsfl.evaluation.encoding import Watch, embed, unwatched
from simsfl.privacy.decoders import decoder as new_decoder
from simsfl.system.draws import Draws
from simsfl.system.randomness import Purpose, numpy_generator, torch_generator

__all__ = ["Protect", "attack", "draws"]

Protect = Callable[[Tensor, Draws], Tensor]
"""Function of smashed data ``[n, c, h, w]`` and random numbers for each row that returns what is sent."""
_TARGETS, _OWN = 0, 1
"""Addresses of the random numbers that protect the smashed data of either kind of images."""


def attack(
    client: nn.Module,
    targets: Images,
    own: Images | None,
    *,
    decoder: Decoder | None,
    seed: int,
    epochs: int,
    protect: Protect = lambda smashed, draws: smashed,
    watch: Watch = unwatched,
) -> Result:
    """Reconstruct images from the smashed data that a frozen client sends of them.

    The attacker knows how clients protect their smashed data, apart from the random numbers: the decoder is trained on
    smashed data that are protected in the same way. Descent compares them with those of the client model alone.

    Args:
        client: the client model, in evaluation mode.
        targets: the images that are reconstructed.
        own: the images that the decoder is trained on, of the same size, and normalised in the same way; not used
            without a decoder.
        decoder: kind of decoder; None descends on the images.
        seed: seed of the decoder's weights and of its training.
        epochs: epochs that the decoder is trained for.
        protect: what clients do to smashed data before they send them, such as `simsfl.defences.Defence.protect`.
        watch: what long loops go through, to show how far they have come.

    Raises:
        FloatingPointError: the decoder's error is not finite.
    """
    size = targets.pixels.shape[-1]

    def arriving(images: Images, whose: int) -> Tensor:
        """Return what arrives at the server of some images."""
        rows = torch.arange(len(images), device=images.mean.device)
        known = draws(len(images), numpy_generator(seed, Purpose.ATTACKER, whose), rows.device)
        return protect(embed(client, images, rows), known)

    sent = arriving(targets, _TARGETS)
    if decoder is None:
        made = inversion.descended(client, sent, targets.normalise, size, watch=watch)
        return Result.of(made, pixels(targets))
    generator = torch_generator(seed, Purpose.DECODER)
    network = new_decoder(decoder, tuple(sent.shape[1:]), size, "batch", generator).to(sent.device)
    known = arriving(own, _OWN)
    training = inversion.train_decoder(network, known, pixels(own), generator, epochs=epochs, watch=watch)
    return Result.of(inversion.decoded(network, sent), pixels(targets), training)


def draws(count: int, rng: np.random.Generator, device: torch.device) -> Draws:
    """Return random numbers for what protects the smashed data of `count` images, by keys that are drawn from `rng`."""
    keys = rng.integers(-(2**31), 2**31, (count, 2), np.int32)
    return Draws(torch.from_numpy(keys).to(device))
