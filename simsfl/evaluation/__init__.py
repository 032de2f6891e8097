"""What the representation is worth: kNN monitor, linear and semi-supervised probes on frozen features.

All see the averaged client model and the server's backbone as one ordinary module, without
augmentation, and touch neither training state nor any generator but their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simsfl.data import Dataset, Images
from simsfl.models import Projection
from simsfl.models.layers import BatchNorm, initialise_
from simsfl.system.randomness import Purpose, numpy_generator, torch_generator

CHUNK = 500
"""Test rows per kNN block."""
IMAGES = 100
"""Per forward pass: more are no faster, and need more memory than training."""
HIDDEN = 512
"""Units of the semi-supervised probe's hidden layer."""
MOST = 100_000
"""Images at most in the kNN bank, and that it classifies, unless more are asked for."""
PIXELS = 32
"""Height and width that raw pixels are compared at, if not smaller."""

Encoder = Callable[[Tensor], Tensor]
"""Images ``[n, 3, H, H]``, normalised, to features ``[n, F]``."""
Item = TypeVar("Item")


class Watch(Protocol):
    """Passes on the items of a long loop, and may show how far it has come."""

    def __call__(self, title: str, items: Sequence[Item]) -> Iterable[Item]: ...


def unwatched(title: str, items: Sequence[Item]) -> Iterable[Item]:
    """The watch of those who do not look."""
    return items


def encoder(client: nn.Module, server: nn.Module, features: str = "backbone") -> nn.Module:
    """A client model followed by a server, as one module in evaluation mode. Whichever has the head.

    Args:
        features: "backbone" for average-pooled features ``[N, F]``, "projector" for the head's output
            ``[N, D]``, which the published kNN monitor uses.
    """
    last = client if hasattr(client, "head") else server
    if features == "backbone":
        last.head = nn.Identity()
    elif isinstance(last.head, Projection):
        last.head = last.head.head
    return nn.Sequential(client, server).eval()


def raw_pixels(images: Tensor) -> Tensor:
    """The encoder that learning has to beat: the pixels ``[N, F]`` themselves, of `PIXELS` at most."""
    small = F.adaptive_avg_pool2d(images, PIXELS) if images.shape[-1] > PIXELS else images
    return small.flatten(1)


class Evaluation:
    """How frozen encoders are evaluated on a data set.

    Args:
        dataset: on the device.
        seed: of what is drawn.
        bank: training images in the kNN bank, None for all up to `MOST`; as `test`, which it classifies.
        dtype: that is computed in.

    Attributes:
        watch: what long loops go through, for those who want to see how far they are.
    """

    def __init__(self, dataset: Dataset, *, seed: int, bank: int | None, test: int | None, dtype: torch.dtype):
        self.dataset, self.seed, self.dtype = dataset, seed, dtype
        rng = numpy_generator(seed, Purpose.EVALUATION)
        self.bank, self.test = (
            torch.from_numpy(rng.permutation(len(labels))[: count or MOST]).to(labels.device)
            for labels, count in ((dataset.train_labels, bank), (dataset.test_labels, test))
        )
        self.watch: Watch = unwatched

    def knn(self, encode: Encoder) -> float:
        """kNN accuracy in percent."""
        data = self.dataset
        return knn_top1(
            self.features(encode, data.train, self.bank),
            data.train_labels[self.bank],
            self.features(encode, data.test, self.test),
            data.test_labels[self.test],
            watch=self.watch,
        )

    def all_features(self, encode: Encoder) -> tuple[Tensor, Tensor]:
        """Of all training and all test images ``[n, F]``, to train probes on."""
        data = self.dataset
        parts = (data.train, data.train_labels), (data.test, data.test_labels)
        return tuple(self.features(encode, images, torch.arange(len(labels))) for images, labels in parts)

    def probe(self, train: Tensor, test: Tensor, *, share: float | None = None, epochs: int) -> tuple[float, float]:
        """Train a classifier on features of `all_features`; its accuracy in percent at the end, and the best.

        Args:
            share: of the labels: the classifier is then one with a hidden layer, on so many training images, drawn at
                random; None for a linear one on all.
        """
        data = self.dataset
        rows = torch.arange(len(train), device=train.device)
        if share is not None:
            drawn = numpy_generator(self.seed, Purpose.LABELLED, round(1e6 * share)).permutation(len(train))
            rows = torch.from_numpy(drawn[: max(2, int(share * len(train)))]).to(train.device)
        return train_probe(
            train[rows],
            data.train_labels[rows],
            test,
            data.test_labels,
            torch_generator(self.seed, Purpose.PROBE),
            classes=len(data.classes),
            hidden=None if share is None else HIDDEN,
            epochs=epochs,
            watch=self.watch,
        )

    def features(self, encode: Encoder, images: Images, rows: Tensor) -> Tensor:
        """Features ``[n, F]`` of the images at `rows` ``[n]``."""
        return embed(encode, images, rows, dtype=self.dtype, watch=self.watch)


@torch.no_grad()
def embed(
    encode: Encoder,
    images: Images,
    rows: Tensor,
    *,
    dtype: torch.dtype = torch.float32,
    watch: Watch = unwatched,
) -> Tensor:
    """Features ``[n, F]`` of the images at `rows` ``[n]``, computed in `dtype`."""
    parts = rows.split(IMAGES)
    features = []
    for number, part in enumerate(watch("features", parts), start=1):
        if number < len(parts):
            images.ahead(parts[number])
        features.append(encode(images.plain(part, dtype)))
    return torch.cat(features)


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


def train_probe(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    generator: torch.Generator,
    *,
    classes: int,
    hidden: int | None = None,
    epochs: int = 100,
    batch_size: int = 128,
    watch: Watch = unwatched,
) -> tuple[float, float]:
    """Train a classifier on cached features; percent of test rows right after the last epoch, and best.

    Adam at 1e-3, no augmentation. A linear one has cosine decay per step; one with a hidden layer of BatchNorm and
    ReLU, as in the published semi-supervised evaluation, a tenth of the rate from 60 and again from 80 % of the epochs.
    The last epoch's figure is the headline: the best is chosen on the test set.

    Args:
        train: ``[n, F]`` features with labels ``[n]``.
        test: ``[m, F]`` features with labels ``[m]``.
        generator: of the initial weights and the order of batches.
        hidden: units of the hidden layer; None for none.
    """
    width = train.shape[1]
    layers = [nn.Linear(width, classes)]
    if hidden:
        layers = [nn.Linear(width, hidden), BatchNorm(hidden), nn.ReLU(), nn.Linear(hidden, classes)]
    with torch.random.fork_rng(devices=[]):  # layers draw from the global generator before they are initialised
        probe = nn.Sequential(*layers)
    initialise_(probe, generator)
    probe.to(train.device, train.dtype)
    optimizer = torch.optim.Adam(probe.parameters(), lr=1e-3, fused=train.is_cuda)  # else the host is too slow
    count = len(train) - (1 if hidden and len(train) % batch_size == 1 else 0)  # BatchNorm takes no batch of one
    steps = -(-count // batch_size)
    schedule = (
        torch.optim.lr_scheduler.MultiStepLR(optimizer, [int(0.6 * epochs) * steps, int(0.8 * epochs) * steps])
        if hidden
        else torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps)
    )
    best = accuracy = 0.0
    for _ in watch("probe", range(epochs)):
        order = torch.randperm(len(train), generator=generator).to(train.device)
        for rows in order[:count].split(batch_size):
            optimizer.zero_grad()
            F.cross_entropy(probe(train[rows]), train_labels[rows]).backward()
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            accuracy = 100.0 * (probe.eval()(test).argmax(dim=1) == test_labels).double().mean().item()
        probe.train()
        best = max(best, accuracy)
    return accuracy, best
