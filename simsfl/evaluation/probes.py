"""Classifiers trained on frozen features: the linear probe, and the semi-supervised one with a hidden layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simsfl.evaluation.encoding import Watch, unwatched
from simsfl.models.layers import BatchNorm, initialise_


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
    """Train a classifier on cached features; return the test accuracy in percent of the last epoch, and of the best.

    Adam begins with rate 1e-3; images are not augmented. For a linear classifier the rate decays by a cosine over the
    steps; for one with a hidden layer of BatchNorm and ReLU, as in the published semi-supervised evaluation, it is
    divided by ten after 60 and after 80 % of the steps. The accuracy of the last epoch is the headline, since the best
    epoch is chosen on the test set.

    Args:
        train: ``[n, F]`` features with labels ``[n]``.
        test: ``[m, F]`` features with labels ``[m]``.
        generator: draws the initial weights and the order of batches.
        classes: number of classes.
        hidden: units of the hidden layer; None for a linear classifier.
        epochs: passes over the training features.
        batch_size: rows per step.
        watch: function that yields the epochs, and may show how far they have come.
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
    steps = epochs * -(-count // batch_size)
    schedule = (
        torch.optim.lr_scheduler.MultiStepLR(optimizer, [-(-percent * steps // 100) for percent in (60, 80)])
        if hidden
        else torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
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
