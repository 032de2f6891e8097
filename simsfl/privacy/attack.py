"""An attack on a run: who knows what, and how well the images of a client can be told from what it sends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

import numpy as np
import torch
from torch import Tensor, nn

from simsfl.config.notation import Decoder
from simsfl.data import Images
from simsfl.data.partition import Partition
from simsfl.evaluation import Watch, embed, unwatched
from simsfl.privacy import inversion, similarity
from simsfl.privacy.decoders import decoder as new_decoder
from simsfl.system.randomness import Purpose, numpy_generator, torch_generator

TARGETS = 128
"""Images that are reconstructed."""


@dataclass(frozen=True)
class Result:
    """Of an attack with one seed."""

    mse: float
    """Mean over the targets, as are the others."""
    ssim: float
    psnr: float
    """In dB."""
    training: inversion.Training | None
    """Of the decoder; None where the attack descends on the images."""
    reconstructions: Tensor
    """``[n, 3, H, H]`` in [0, 1], on the CPU."""


def targets(partition: Partition, client: int) -> Tensor:
    """Rows of the images to reconstruct: those of the client, and of the next until there are `TARGETS`.

    Half of all images at most: the attacker has others.
    """
    count = min(TARGETS, max(1, len(partition.indices) // 2))
    ids = [(client + offset) % len(partition) for offset in range(len(partition))]
    rows: list[int] = []
    for owner in ids:
        rows += partition[owner].tolist()
        if len(rows) >= count:
            break
    return torch.tensor(rows[:count], dtype=torch.long)


def attackers_rows(count: int, share: float, taken: Tensor, seed: int) -> Tensor:
    """Rows of the images that the attacker has of its own: a random share of all `count`, but none of those `taken`."""
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
    watch: Watch = unwatched,
) -> Result:
    """Reconstruct images from what a frozen client sends of them.

    Args:
        client: its model, in evaluation mode.
        images: that both kinds of rows are of.
        target_rows: what is reconstructed.
        own_rows: what the decoder is trained on.
        decoder: of which kind; None descends on the images, with no images of its own.
        seed: of the decoder and its training.
    """
    device = images.mean.device
    size = images.pixels.shape[-1]
    originals, sent = pixels(images, target_rows), embed(client, images, target_rows.to(device))
    if decoder is None:
        made, training = inversion.descended(client, sent, images.normalise, size, watch=watch), None
    else:
        generator = torch_generator(seed, Purpose.DECODER)
        network = new_decoder(decoder, tuple(sent.shape[1:]), size, "batch", generator).to(device)
        known = embed(client, images, own_rows.to(device))
        training = inversion.train_decoder(
            network, known, pixels(images, own_rows), generator, epochs=epochs, watch=watch
        )
        made = inversion.decoded(network, sent)
    measured = [score(made, originals).mean().item() for score in (similarity.mse, similarity.ssim, similarity.psnr)]
    return Result(*measured, training, made.cpu())


def pixels(images: Images, rows: Tensor) -> Tensor:
    """Images ``[n, 3, H, H]`` in [0, 1], on the device."""
    return images.pixels[rows.to(images.mean.device)].to(torch.float32).div(255.0)


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and standard deviation, None of a single value."""
    return {"mean": mean(values), "std": stdev(values) if len(values) > 1 else None}
