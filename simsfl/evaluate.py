"""What the representation is worth: kNN monitor and linear probe on frozen features.

Both see the averaged client model and the server's backbone as one ordinary module, without
augmentation, and touch neither training state nor any generator but their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simsfl.data import Images
from simsfl.models import SplitModel

CHUNK = 500
"""Test rows per kNN block."""
IMAGES = 100
"""Per forward pass: more are no faster, and need more memory than training."""
PIXELS = 32
"""Height and width that raw pixels are compared at, if not smaller."""

Item = TypeVar("Item")


class Watch(Protocol):
    """Passes on the items of a long loop, and may show how far it has come."""

    def __call__(self, title: str, items: Sequence[Item]) -> Iterable[Item]: ...


def unwatched(title: str, items: Sequence[Item]) -> Iterable[Item]:
    """The watch of those who do not look."""
    return items


def encoder(
    model: SplitModel, client: Tensor, server: Tensor, buffers: Mapping[str, Tensor], features: str = "backbone"
) -> nn.Module:
    """A client model ``[P]`` followed by a server ``[Q]``, as one module in evaluation mode.

    Args:
        buffers: the server's.
        features: "backbone" for average-pooled features ``[N, F]``, "projector" for the head's output
            ``[N, D]``, which the published kNN monitor uses.
    """
    rest = model.server.module(server, buffers)
    if features == "backbone":
        rest.head = nn.Identity()
    return nn.Sequential(model.client.module(client), rest).eval()


def raw_pixels(images: Tensor) -> Tensor:
    """The encoder that learning has to beat: the pixels ``[N, F]`` themselves, of `PIXELS` at most."""
    small = F.adaptive_avg_pool2d(images, PIXELS) if images.shape[-1] > PIXELS else images
    return small.flatten(1)


@torch.no_grad()
def embed(
    encode: Callable[[Tensor], Tensor],
    images: Images,
    rows: Tensor,
    *,
    dtype: torch.dtype = torch.float32,
    watch: Watch = unwatched,
) -> Tensor:
    """Features ``[n, F]`` of the images at `rows` ``[n]``, computed in `dtype`."""
    parts = watch("features", rows.to(images.pixels.device).split(IMAGES))
    return torch.cat([encode(images.plain(part, dtype)) for part in parts])


@torch.no_grad()
def knn_top1(
    bank: Tensor,
    bank_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    *,
    k: int = 200,
    temperature: float = 0.1,
    watch: Watch = unwatched,
) -> float:
    """Percent of test rows that their k nearest bank rows classify rightly.

    Each neighbour votes for its label with weight exp(cosine / temperature) (Wu et al., CVPR 2018).

    Args:
        bank: ``[n, F]`` features with labels ``[n]``.
        test: ``[m, F]`` features with labels ``[m]``; done in blocks, so memory is ``n * 500``.
    """
    bank, test = F.normalize(bank, dim=1), F.normalize(test, dim=1)
    classes = int(bank_labels.max()) + 1
    hits = torch.zeros((), dtype=torch.long, device=bank.device)
    blocks = list(zip(test.split(CHUNK), test_labels.split(CHUNK), strict=True))
    for block, labels in watch("kNN", blocks):
        cosine, nearest = (block @ bank.T).topk(min(k, len(bank)), dim=1)
        votes = cosine.new_zeros(len(block), classes)
        votes.scatter_add_(1, bank_labels[nearest], (cosine / temperature).exp())
        hits += (votes.argmax(dim=1) == labels).sum()
    return 100.0 * hits.item() / len(test)


def linear_probe(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    generator: torch.Generator,
    *,
    epochs: int = 100,
    batch_size: int = 128,
    watch: Watch = unwatched,
) -> tuple[float, float]:
    """Train one linear layer on cached features; percent of test rows right after the last epoch, and best.

    Adam at 1e-3 with cosine decay per step, no augmentation. The last epoch's figure is the headline:
    the best is chosen on the test set.

    Args:
        train: ``[n, F]`` features with labels ``[n]``.
        test: ``[m, F]`` features with labels ``[m]``.
        generator: of the initial weights and the order of batches.
    """
    classes = int(train_labels.max()) + 1
    layer = nn.utils.skip_init(nn.Linear, train.shape[1], classes)  # its own draw would be from the global generator
    nn.init.xavier_uniform_(layer.weight, generator=generator)
    nn.init.zeros_(layer.bias)
    layer = layer.to(train.device, train.dtype)
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-3)
    steps = epochs * -(-len(train) // batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    best = accuracy = 0.0
    for _ in watch("linear probe", range(epochs)):
        order = torch.randperm(len(train), generator=generator).to(train.device)
        for rows in order.split(batch_size):
            optimizer.zero_grad()
            F.cross_entropy(layer(train[rows]), train_labels[rows]).backward()
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            accuracy = 100.0 * (layer(test).argmax(dim=1) == test_labels).double().mean().item()
        best = max(best, accuracy)
    return accuracy, best
