"""Validation images: some of the training images are held out, and take the place of the test images.

Settings that are chosen by what they reach on them are chosen without a look at the test images.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from simsfl.data import Dataset

_SEED = 0
"""Seed of the draw, which is the same in all runs, whatever their seed, so that these can be compared."""


def held_out(images: int, share: float) -> int:
    """Return how many of some labelled training images are held out."""
    return round(share * images)


def with_validation(data: Dataset, share: float) -> Dataset:
    """Return a data set whose test images are some of the labelled training images, which nobody trains on then.

    Args:
        data: the data set. One that has come from here with the same share is returned as it is.
        share: share of the labelled training images, drawn at random; 0 for none.

    Raises:
        ValueError: the pictures are decoded when they are needed, or too few images are left on either side.
    """
    if data.validation == share:
        return data
    pixels, labelled = data.train.pixels, len(data.train_labels)
    if not isinstance(pixels, Tensor):
        raise ValueError(f"validation: {data.name} is too large to be read whole; allowed: 0, or --stream never")
    count = held_out(labelled, share)
    if not 0 < count < labelled:
        raise ValueError(
            f"validation: {share:g} of the {labelled:,} training images are {count:,}; allowed: a share that leaves "
            "images to train and to validate on"
        )
    order = torch.randperm(labelled, generator=torch.Generator().manual_seed(_SEED))
    out, kept = order[:count].sort().values, order[count:].sort().values
    rest = torch.arange(labelled, len(pixels))  # images without labels, and auxiliary ones
    owners = data.train_client
    if owners is not None and not data.unlabelled:
        owners = np.unique(owners[kept.numpy()], return_inverse=True)[1]
    return replace(
        data,
        origin=f"{data.origin}; {count:,} of its training images are held out, and evaluated instead of test images",
        checksum=hashlib.sha256(f"{data.checksum} {count} held out".encode()).hexdigest(),
        train=replace(data.train, pixels=pixels[torch.cat([kept, rest])]),
        train_labels=data.train_labels[kept],
        test=replace(data.test, pixels=pixels[out]),
        test_labels=data.train_labels[out],
        train_client=owners,
        validation=share,
    )
