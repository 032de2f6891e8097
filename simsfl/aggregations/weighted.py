"""Averages in which clients count differently, or in which a few of them cannot do harm."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from simsfl.aggregations import Aggregation
from simsfl.config.values import option


@dataclass(frozen=True)
class ByImages(Aggregation):
    """The mean of the models, weighted by the number of images that clients hold (FedAvg; McMahan et al., 2017)."""

    def combine(self, models_nP: Tensor, images_n: Tensor) -> Tensor:
        """Return the weighted mean ``[P]``."""
        return self.share(models_nP, images_n, images_n.sum(), len(models_nP))

    def share(self, models_nP: Tensor, images_n: Tensor, images: Tensor, clients: int) -> Tensor:
        """Return what some of the clients add to the mean ``[P]``."""
        return (images_n.to(models_nP) / images) @ models_nP


@dataclass(frozen=True)
class TrimmedMean(Aggregation):
    """The mean of each number without its highest and lowest values (Yin et al., ICML 2018, definition 2)."""

    trim: float = option(0.1, "Share of the clients that is left out at either end.", within=(0, 0.499))

    def combine(self, models_nP: Tensor, images_n: Tensor) -> Tensor:
        """Return the trimmed mean ``[P]``; with too few clients, nothing is trimmed."""
        count = int(self.trim * len(models_nP))
        return models_nP.sort(dim=0).values[count : len(models_nP) - count].mean(dim=0)


@dataclass(frozen=True)
class Median(Aggregation):
    """The median of each number (Yin et al., ICML 2018, definition 1); of an even count, the mean of the middle two."""

    def combine(self, models_nP: Tensor, images_n: Tensor) -> Tensor:
        """Return the median ``[P]``."""
        n = len(models_nP)
        return models_nP.sort(dim=0).values[(n - 1) // 2 : n // 2 + 1].mean(dim=0)
