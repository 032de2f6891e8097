"""Model inversion: images that an honest-but-curious server reconstructs from the smashed data that a client sends it.

The server uses either a decoder that it has trained on images of its own (He et al., ACSAC 2019), or gradient descent
on the images to be found, which needs no images at all.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simsfl.evaluation.encoding import Watch, unwatched
from simsfl.privacy.decoders import Training

_HELD_OUT = 0.1
"""Share of the attacker's pairs that are held out, and choose the epoch."""
_DESCENDED = 32
"""Images that the descent works on together; more take more memory."""
_DESCENT_RATE = 0.05
"""Learning rate of Adam in the descent."""
_SMOOTHNESS = 1e-3
"""Weight of the total variation per pixel and channel in the descent's loss; the other term is the mean squared error
of the smashed data, divided by their variance."""


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
    """Train a decoder on pairs of smashed data and images, with Adam and the mean squared error; return its errors.

    As in the published attack, a tenth of the pairs is held out, and the decoder ends with the weights of the epoch
    whose error on them was the smallest.

    Args:
        decoder: the decoder, on the same device as the pairs; changed in place.
        smashed: ``[n, c, h, w]`` smashed data.
        images: ``[n, 3, H, H]`` in [0, 1].
        generator: a CPU generator, for the split and the order of batches.
        lr: learning rate of Adam.
        watch: what the loop over epochs goes through, to show how far it has come.

    Raises:
        FloatingPointError: the error on the held-out pairs was not finite in any epoch.
    """
    order = torch.randperm(len(images), generator=generator).to(images.device)
    train, held = order[: (split := max(1, round((1 - _HELD_OUT) * len(order))))], order[split:]
    held = held if len(held) else train
    optimizer = torch.optim.Adam(decoder.parameters(), lr=lr)
    curves, best, lowest = Training([], []), None, float("inf")
    for _ in watch("decoder", range(epochs)):
        decoder.train()
        total, count = 0.0, 0
        shuffled = train[torch.randperm(len(train), generator=generator).to(train.device)]
        for rows in shuffled.split(batch_size):
            if len(rows) == 1 < len(train):  # BatchNorm needs more than one image
                continue
            optimizer.zero_grad()
            loss = F.mse_loss(decoder(smashed[rows]), images[rows])
            loss.backward()
            optimizer.step()
            total, count = total + loss.item() * len(rows), count + len(rows)
        curves.train.append(total / count)
        curves.held_out.append(F.mse_loss(decoded(decoder, smashed[held]), images[held]).item())
        if curves.held_out[-1] < lowest:
            lowest, best = curves.held_out[-1], copy.deepcopy(decoder.state_dict())
    if best is None:
        raise FloatingPointError("the decoder's error is not finite")
    decoder.load_state_dict(best)
    return curves


@torch.no_grad()
def decoded(decoder: nn.Module, smashed: Tensor) -> Tensor:
    """Return the images ``[n, 3, H, H]`` in [0, 1] that a decoder reconstructs from smashed data ``[n, c, h, w]``."""
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
    """Return smooth images ``[n, 3, H, H]`` in [0, 1] whose smashed data are close to those given.

    They are found by Adam on the images themselves, starting from plain gray, with a total-variation prior (Mahendran
    and Vedaldi, CVPR 2015).

    Args:
        client: the client model, in evaluation mode.
        smashed: ``[n, c, h, w]`` smashed data that the client sent.
        normalise: function that images in [0, 1] go through before the client.
        image_size: H.
        steps: steps of Adam.
        watch: what the loop over steps goes through, to show how far it has come.
    """
    parts = [_descended_part(client, part, normalise, image_size, steps, watch) for part in smashed.split(_DESCENDED)]
    return torch.cat(parts)


def _descended_part(
    client: nn.Module,
    smashed: Tensor,
    normalise: Callable[[Tensor], Tensor],
    image_size: int,
    steps: int,
    watch: Watch,
) -> Tensor:
    """Reconstruct one part of the images that `descended` splits its work into."""
    from torchmetrics.functional.image import total_variation  # noqa: PLC0415  (takes a second)

    logits = torch.zeros(len(smashed), 3, image_size, image_size, device=smashed.device, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=_DESCENT_RATE)
    variance = smashed.var().clamp(min=1e-12)
    for _ in watch("descent", range(steps)):
        optimizer.zero_grad()
        images = logits.sigmoid()
        error = F.mse_loss(client(normalise(images)), smashed) / variance
        roughness = total_variation(images, reduction="sum") / images.numel()
        (len(smashed) * (error + _SMOOTHNESS * roughness)).backward()  # summed over images: each counts by itself
        optimizer.step()
    return logits.detach().sigmoid()
