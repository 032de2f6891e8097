"""Model inversion: what an honest-but-curious server makes of the smashed data that a client sends it.

With a decoder trained on images of its own (He et al., ACSAC 2019), or by descending on the image itself, which
takes no images at all.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simsfl.evaluation import Watch, unwatched

HELD_OUT = 0.1
"""Share of the attacker's pairs that choose the epoch."""
DESCENDED = 32
"""Images together, for the memory it takes."""
DESCENT_RATE = 0.05
SMOOTHNESS = 1e-3
"""Weight of the total variation per pixel, beside the squared error of the smashed data over their variance."""


@dataclass(frozen=True)
class Training:
    """How a decoder learnt, by epoch: mean squared errors."""

    train: list[float]
    held_out: list[float]


def train_decoder(
    decoder: nn.Module,
    smashed: Tensor,
    images: Tensor,
    generator: torch.Generator,
    *,
    epochs: int = 50,
    batch_size: int = 32,
    lr: float = 1e-3,
    watch: Watch = unwatched,
) -> Training:
    """Train a decoder on pairs, by mean squared error and Adam; it is left as it was at its best epoch.

    As the published attack does: a tenth of the pairs is held out and chooses the epoch.

    Args:
        decoder: on the pairs' device.
        smashed: ``[n, c, h, w]``.
        images: ``[n, 3, H, H]`` in [0, 1].
        generator: a CPU generator, of the split and the order of batches.
    """
    order = torch.randperm(len(images), generator=generator).to(images.device)
    train, held = order[: (split := max(1, round((1 - HELD_OUT) * len(order))))], order[split:]
    held = held if len(held) else train
    optimizer = torch.optim.Adam(decoder.parameters(), lr=lr)
    curves, best, lowest = Training([], []), None, float("inf")
    for _ in watch("decoder", range(epochs)):
        decoder.train()
        total = 0.0
        shuffled = train[torch.randperm(len(train), generator=generator).to(train.device)]
        for rows in shuffled.split(batch_size):
            if len(rows) == 1 < len(train):  # nothing for BatchNorm to normalise
                continue
            optimizer.zero_grad()
            loss = F.mse_loss(decoder(smashed[rows]), images[rows])
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows)
        curves.train.append(total / len(train))
        curves.held_out.append(F.mse_loss(decoded(decoder, smashed[held]), images[held]).item())
        if curves.held_out[-1] < lowest:
            lowest, best = curves.held_out[-1], copy.deepcopy(decoder.state_dict())
    if best is None:
        raise ArithmeticError("the decoder's error is not finite")
    decoder.load_state_dict(best)
    return curves


@torch.no_grad()
def decoded(decoder: nn.Module, smashed: Tensor) -> Tensor:
    """What a trained decoder makes of smashed data: images ``[n, 3, H, H]`` in [0, 1]."""
    decoder.eval()
    return torch.cat([decoder(part) for part in smashed.split(100)])


def descended(
    client: nn.Module,
    smashed: Tensor,
    normalise: Callable[[Tensor], Tensor],
    image_size: int,
    *,
    steps: int = 300,
    watch: Watch = unwatched,
) -> Tensor:
    """Images ``[n, 3, H, H]`` in [0, 1] whose smashed data come near those given, and which are smooth.

    Adam on the images themselves, from plain gray, with a total-variation prior (Mahendran and Vedaldi, CVPR 2015).

    Args:
        client: frozen.
        normalise: what images in [0, 1] go through before the client.
    """
    parts = [descended_part(client, part, normalise, image_size, steps, watch) for part in smashed.split(DESCENDED)]
    return torch.cat(parts)


def descended_part(
    client: nn.Module,
    smashed: Tensor,
    normalise: Callable[[Tensor], Tensor],
    image_size: int,
    steps: int,
    watch: Watch,
) -> Tensor:
    """Of a few images."""
    from torchmetrics.functional.image import total_variation  # noqa: PLC0415  (takes a second)

    logits = torch.zeros(len(smashed), 3, image_size, image_size, device=smashed.device, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=DESCENT_RATE)
    variance = smashed.var().clamp(min=1e-12)
    for _ in watch("descent", range(steps)):
        optimizer.zero_grad()
        images = logits.sigmoid()
        error = F.mse_loss(client(normalise(images)), smashed) / variance
        roughness = total_variation(images, reduction="sum") / images.numel()
        (len(smashed) * (error + SMOOTHNESS * roughness)).backward()  # each image by itself
        optimizer.step()
    return logits.detach().sigmoid()
