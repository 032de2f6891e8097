"""Accuracy by class and by client: whom a representation serves well, and whom badly."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import numpy as np

from simsfl.data.partition import Partition


@dataclass(frozen=True)
class ByClient:
    """Accuracies of clients, each on the test images of the classes that it holds, in percent."""

    mean: float
    """Mean of the clients' accuracies."""
    worst_tenth: float
    """Mean of the lowest tenth of the clients' accuracies."""
    std: float
    """Standard deviation of the clients' accuracies, uncorrected."""


def by_class(hits: np.ndarray, labels: np.ndarray, classes: int) -> list[float | None]:
    """Return the accuracy in percent of each class; None for a class of which no image is tested.

    Args:
        hits: ``[m]`` bool, whether a test image is classified correctly.
        labels: ``[m]`` int64 classes of the test images.
        classes: number of classes.

    >>> by_class(np.array([True, False, True]), np.array([0, 0, 2]), 3)
    [50.0, None, 100.0]
    """
    right, tested = np.bincount(labels, hits, classes), np.bincount(labels, minlength=classes)
    return [100.0 * float(own) / int(count) if count else None for own, count in zip(right, tested, strict=True)]


def by_client(hits: np.ndarray, labels: np.ndarray, partition: Partition, train_labels: np.ndarray) -> ByClient | None:
    """Return how accuracies differ from client to client; None if no client holds a class that is tested.

    A client's accuracy is that of the test images of its classes, each class weighted by the client's share of it.

    Args:
        hits: ``[m]`` bool, whether a test image is classified correctly.
        labels: ``[m]`` int64 classes of the test images.
        partition: which images clients hold.
        train_labels: ``[n]`` int64 classes of all training images.

    >>> partition = Partition.of([np.array([0, 1]), np.array([2])])
    >>> by_client(np.array([True, False, True]), np.array([0, 0, 1]), partition, np.array([0, 1, 1]))
    ByClient(mean=87.5, worst_tenth=75.0, std=12.5)
    """
    classes = 1 + max(int(labels.max()), int(train_labels.max()))
    right, tested = np.bincount(labels, hits, classes), np.bincount(labels, minlength=classes)
    held = train_labels[partition.indices]
    client, known = np.repeat(np.arange(len(partition)), partition.sizes), tested[held] > 0
    share = np.bincount(client[known], right[held[known]] / tested[held[known]], len(partition))
    count = np.bincount(client[known], minlength=len(partition))
    accuracies = np.sort(100.0 * share[count > 0] / count[count > 0])
    if not len(accuracies):
        return None
    lowest = accuracies[: ceil(len(accuracies) / 10)]
    return ByClient(float(accuracies.mean()), float(lowest.mean()), float(accuracies.std()))
