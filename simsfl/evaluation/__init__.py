"""What a representation is worth: kNN monitor, spread of outputs, linear and semi-supervised probes on frozen features.

All see the averaged client model and the server's backbone as one ordinary module, without augmentation, and touch
neither training state nor any generator but their own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from simsfl.data import Dataset, Images
from simsfl.evaluation.encoding import IMAGES, Encoder, Watch, embed, unwatched
from simsfl.evaluation.knn import knn_hits
from simsfl.evaluation.probes import train_probe
from simsfl.evaluation.spread import output_std
from simsfl.system.randomness import Purpose, numpy_generator, torch_generator
from simsfl.system.world import ALONE, World

_HIDDEN = 512
"""Units of the hidden layer of the semi-supervised probe."""
_MOST = 100_000
"""Largest number of images in the kNN bank, and of images that kNN classifies, unless a larger one is given."""


class Evaluation:
    """Evaluates frozen encoders on a data set.

    >>> import numpy as np
    >>> from simsfl.data import Arrays, make_dataset
    >>> labels = np.arange(80) % 2
    >>> images = (255 * labels).astype(np.uint8).repeat(192).reshape(80, 8, 8, 3)
    >>> dataset = make_dataset("toy", "made up", Arrays(images, labels, images, labels, ("black", "white")))
    >>> evaluation = Evaluation(dataset, seed=0, bank=None, test=None, dtype=torch.float32)
    >>> evaluation.knn(lambda images: images.flatten(1))
    100.0

    Args:
        dataset: the images that are evaluated on, on the device.
        seed: the run's seed, which everything that is drawn depends on.
        bank: training images in the kNN bank; None for all up to `_MOST`.
        test: test images that kNN classifies; None for all up to `_MOST`.
        k: number of nearest images in the bank that vote.
        temperature: temperature of their votes.
        dtype: dtype that features are computed in.
        world: the ranks that share the work.

    Attributes:
        watch: function that yields the items of long loops, and may show how far they have come.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        seed: int,
        bank: int | None,
        test: int | None,
        dtype: torch.dtype,
        k: int = 200,
        temperature: float = 0.1,
        world: World = ALONE,
    ):
        self.dataset, self.seed, self.dtype = dataset, seed, dtype
        self._votes, self._world = {"k": k, "temperature": temperature}, world
        rng = numpy_generator(seed, Purpose.EVALUATION)
        self.bank, self.test = (
            torch.from_numpy(rng.permutation(len(labels))[: count or _MOST]).to(labels.device)
            for labels, count in ((dataset.train_labels, bank), (dataset.test_labels, test))
        )
        self.watch: Watch = unwatched

    def knn(self, encode: Encoder) -> float:
        """Return the kNN accuracy of an encoder in percent."""
        return percent(self._hits(*self._compared(encode)))

    @torch.no_grad()
    def monitor(self, encode: Encoder, rest: Encoder) -> tuple[Tensor, float]:
        """Return which test images kNN classifies correctly, and the spread of the network's outputs (`output_std`).

        Both are measured on the same test images, so that the spread takes hardly any time.

        Args:
            encode: maps images to features.
            rest: maps these features to the network's outputs.

        Returns:
            ``[m]`` bool for the images at the rows `test`, and the spread.
        """
        bank, test = self._compared(encode)
        return self._hits(bank, test), output_std(rest(part) for part in test.split(IMAGES))

    def _compared(self, encode: Encoder) -> tuple[Tensor, Tensor]:
        """Return the features ``[n, F]`` of the images in the kNN bank, and of those that kNN classifies."""
        return self.features(encode, self.dataset.train, self.bank), self.features(encode, self.dataset.test, self.test)

    def _hits(self, bank: Tensor, test: Tensor) -> Tensor:
        """Return ``[m]`` bool: which test images kNN classifies correctly, by the features of `_compared`."""
        bank_labels, test_labels = self.dataset.train_labels[self.bank], self.dataset.test_labels[self.test]
        mine = self._part(test)
        hits = knn_hits(bank, bank_labels, test[mine], test_labels[mine], **self._votes, watch=self.watch)
        return self._of_all(hits.to(torch.uint8), len(test)).bool()

    def all_features(self, encode: Encoder) -> tuple[Tensor, Tensor]:
        """Return the features ``[n, F]`` of all training and of all test images, to train probes on."""
        data = self.dataset
        parts = (data.train, data.train_labels), (data.test, data.test_labels)
        return tuple(self.features(encode, images, torch.arange(len(labels))) for images, labels in parts)

    def probe(self, train: Tensor, test: Tensor, *, share: float | None = None, epochs: int) -> tuple[float, float]:
        """Train a classifier on features; return its test accuracy in percent of the last epoch, and of the best.

        Args:
            train: features of all training images, from `all_features`, as `test`.
            share: share of the training images, drawn at random, that a classifier with a hidden layer is trained on;
                None for a linear classifier on all of them.
            epochs: passes over the features.
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
            hidden=None if share is None else _HIDDEN,
            epochs=epochs,
            watch=self.watch,
        )

    def features(self, encode: Encoder, images: Images, rows: Tensor) -> Tensor:
        """Return the features ``[n, F]`` of the images at `rows` ``[n]``."""
        own = embed(encode, images, rows[self._part(rows)], dtype=self.dtype, watch=self.watch)
        return self._of_all(own, len(rows))

    def _part(self, rows: Tensor) -> slice:
        """Return which of some rows this rank handles."""
        mine = self._world.part(len(rows))
        return slice(mine.start, mine.stop)

    def _of_all(self, own: Tensor, count: int) -> Tensor:
        """Return what ranks have made of `count` rows, given what this one has made of its part."""
        return self._world.gather(own, [len(part) for part in self._world.parts(count)])


def percent(hits: Tensor) -> float:
    """Return the share of ``hits [m]`` that are true, in percent."""
    return 100.0 * hits.sum().item() / len(hits)
