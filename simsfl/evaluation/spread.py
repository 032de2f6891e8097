"""How much the outputs of a network differ from image to image, which shows whether it has collapsed."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor


def output_std(outputs: Iterable[Tensor]) -> float:
    """Return the standard deviation of normalised outputs over images, averaged over dimensions.

    It is 0 if all images have the same output, and at most ``1 / sqrt(D)``, which outputs come close to that are spread
    evenly over all directions (Chen and He, CVPR 2021, section 4.1).

    Args:
        outputs: parts ``[n, D]`` of the outputs of all images; each output is divided by its length (L2).

    >>> output_std([torch.tensor([[3.0, 4.0], [6.0, 8.0]])])
    0.0
    >>> output_std([torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, -2.0]])])
    0.5
    """
    count, first = 0, None
    for part in outputs:
        unit = F.normalize(part, dim=1).double()
        if first is None:
            first, total, squares = unit[0], torch.zeros_like(unit[0]), torch.zeros_like(unit[0])
        apart = unit - first  # so that equal outputs give exactly 0
        count, total, squares = count + len(part), total + apart.sum(dim=0), squares + apart.square().sum(dim=0)
    return (squares / count - (total / count).square()).clamp(min=0.0).sqrt().mean().item()
