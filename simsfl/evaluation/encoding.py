"""Frozen encoders, and the features that they compute from images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simsfl.data import Images
from simsfl.models import Projection

IMAGES = 100
"""Images in a forward pass; more would not be faster, and would need more memory than training."""
_PIXELS = 32
"""Height and width that raw pixels are compared at, if images are larger."""

Encoder = Callable[[Tensor], Tensor]
"""Function from normalised images ``[n, 3, H, H]`` to features ``[n, F]``."""
Item = TypeVar("Item")


class Watch(Protocol):
    """A function that yields the items of a long loop, and may show how far the loop has come."""

    def __call__(self, title: str, items: Sequence[Item]) -> Iterable[Item]: ...


def unwatched(title: str, items: Sequence[Item]) -> Iterable[Item]:
    """Return the items: the watch that shows nothing."""
    return items


def encoder(client: nn.Module, server: nn.Module, features: str = "backbone") -> tuple[nn.Module, nn.Module]:
    """Cut a network behind the features that are evaluated; return what comes before, the encoder, and what follows.

    Args:
        client: the client model, which is changed, as the server is.
        server: the network behind it. Either of them may have the projection head.
        features: "backbone" for average-pooled features ``[N, F]``, which the head follows; "projector" for the head's
            output ``[N, D]``, which the published kNN monitor uses, and which nothing follows.

    Returns:
        Two modules in evaluation mode: from images to features, and from features to the head's output.
    """
    last = client if hasattr(client, "head") else server
    head = last.head.head if isinstance(last.head, Projection) else last.head
    last.head, rest = (nn.Identity(), head) if features == "backbone" else (head, nn.Identity())
    return nn.Sequential(client, server).eval(), rest.eval()


def raw_pixels(images: Tensor) -> Tensor:
    """Return the pixels ``[N, F]`` of images as features: an encoder that learning has to beat."""
    small = F.adaptive_avg_pool2d(images, _PIXELS) if images.shape[-1] > _PIXELS else images
    return small.flatten(1)


@torch.no_grad()
def embed(
    encode: Encoder,
    images: Images,
    rows: Tensor,
    *,
    dtype: torch.dtype = torch.float32,
    watch: Watch = unwatched,
) -> Tensor:
    """Return the features ``[n, F]`` of the images at `rows` ``[n]``, computed in `dtype`."""
    parts = rows.split(IMAGES)
    features = []
    for number, part in enumerate(watch("features", parts), start=1):
        if number < len(parts):
            images.ahead(parts[number])
        features.append(encode(images.plain(part, dtype)))
    return torch.cat(features)
