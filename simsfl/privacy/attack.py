"""An attack on a run: the images that the attacker has, and how well it reconstructs a client's from smashed data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

import numpy as np
import torch
from torch import Tensor, nn

from simsfl.config.notation import Decoder
from simsfl.data import Images
from simsfl.data.partition import Partition
from simsfl.evaluation.encoding import Watch, embed, unwatched
from simsfl.privacy import inversion, similarity
from simsfl.privacy.decoders import decoder as new_decoder
from simsfl.system.draws import Draws
from simsfl.system.randomness import Purpose, numpy_generator, torch_generator

Protect = Callable[[Tensor, Draws], Tensor]
"""Function of smashed data ``[n, c, h, w]`` and random numbers for each row that returns what is sent."""
_TARGETS = 128
"""Images that are reconstructed, at most."""


@dataclass(frozen=True)
class Result:
    """What an attack with one seed reconstructed, and how close it came."""

    mse: float
    """Mean squared error of pixels in [0, 1], averaged over the targets."""
    ssim: float
    """Structural similarity, averaged over the targets."""
    psnr: float
    """Peak signal-to-noise ratio in dB, averaged over the targets."""
    training: inversion.Training | None
    """Errors of the decoder by epoch; None where the attack descends on the images."""
    reconstructions: Tensor
    """``[n, 3, H, H]`` reconstructed images in [0, 1], on the CPU."""


def targets(partition: Partition, client: int) -> Tensor:
    """Return the rows ``[n]`` int64 of the images to reconstruct.

    These are the images of `client`, then those of the clients with the next ids, until there are `_TARGETS`. They are
    at most half of all images, so that the attacker can have others.

    >>> partition = Partition.of([np.array([4, 0]), np.array([2, 5]), np.array([1, 3])])
    >>> targets(partition, client=2)
    tensor([1, 3, 4])
    """
    count = min(_TARGETS, max(1, len(partition.indices) // 2))
    ids = [(client + offset) % len(partition) for offset in range(len(partition))]
    rows: list[int] = []
    for owner in ids:
        rows += partition[owner].tolist()
        if len(rows) >= count:
            break
    return torch.tensor(rows[:count], dtype=torch.long)


def attackers_rows(count: int, share: float, taken: Tensor, seed: int) -> Tensor:
    """Return the rows ``[k]`` int64 of the attacker's own images: a random `share` of `count`, none of them `taken`."""
    drawn = numpy_generator(seed, Purpose.ATTACKER).permutation(count)
    own = drawn[~np.isin(drawn, taken.numpy())][: max(1, round(share * count))]
    return torch.from_numpy(own.copy())


def attack(
    client: nn.Module,
    images: Images,
    target_rows: Tensor,
    own_rows: Tensor,
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
        images: the images that both kinds of rows refer to.
        target_rows: ``[n]`` int64 rows of the images that are reconstructed.
        own_rows: ``[k]`` int64 rows of the images that the decoder is trained on.
        decoder: kind of decoder; None descends on the images, which needs no `own_rows`.
        seed: seed of the decoder's weights and of its training.
        epochs: epochs that the decoder is trained for.
        protect: what clients do to smashed data before they send them, such as `simsfl.defences.Defence.protect`.
        watch: what long loops go through, to show how far they have come.

    Raises:
        ArithmeticError: the decoder's error is not finite.
    """
    device = images.mean.device
    size = images.pixels.shape[-1]

    def arriving(rows: Tensor, whose: int) -> Tensor:
        """Return what arrives at the server of the images at these rows."""
        keys = numpy_generator(seed, Purpose.ATTACKER, whose).integers(-(2**31), 2**31, (len(rows), 2), np.int32)
        return protect(embed(client, images, rows.to(device)), Draws(torch.from_numpy(keys).to(device)))

    originals, sent = pixels(images, target_rows), arriving(target_rows, 0)
    if decoder is None:
        made, training = inversion.descended(client, sent, images.normalise, size, watch=watch), None
    else:
        generator = torch_generator(seed, Purpose.DECODER)
        network = new_decoder(decoder, tuple(sent.shape[1:]), size, "batch", generator).to(device)
        known = arriving(own_rows, 1)
        training = inversion.train_decoder(
            network, known, pixels(images, own_rows), generator, epochs=epochs, watch=watch
        )
        made = inversion.decoded(network, sent)
    measured = [score(made, originals).mean().item() for score in (similarity.mse, similarity.ssim, similarity.psnr)]
    return Result(*measured, training, made.cpu())


def pixels(images: Images, rows: Tensor) -> Tensor:
    """Return the images at `rows` as float32 ``[n, 3, H, H]`` in [0, 1], on the device of `images.mean`."""
    return images.pixels[rows.to(images.mean.device)].to(torch.float32).div(255.0)


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """Return the mean and the sample standard deviation of some values; the latter is None for a single value.

    >>> spread([1.0, 3.0])
    {'mean': 2.0, 'std': 1.4142135623730951}
    """
    return {"mean": mean(values), "std": stdev(values) if len(values) > 1 else None}
