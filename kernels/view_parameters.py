"""What is drawn for a view of an image, and the constants that both versions of `kernels.augment` go by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

from torch import Tensor

BLUR_RADIUS = 6
"""Pixels to either side: three of the widest sigma (2)."""
LUMA = (0.2989, 0.587, 0.114)
"""Red, green and blue in a gray image (ITU-R 601)."""

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
"""Columns of `ViewParameters.jitter`, and the operations in `ViewParameters.blends`."""


@dataclass(frozen=True)
class ViewParameters:
    """Parameters of views, all with the same leading dimensions ``[...]``."""

    crop: Tensor
    """``[..., 4]`` float: top, left, height, width in pixels, all whole numbers."""
    flip: Tensor
    """``[...]`` bool."""
    jitter: Tensor
    """``[..., 4]`` float: brightness, contrast and saturation factors, hue shift in turns. Where the
    jitter is not applied: 1, 1, 1, 0."""
    blends: Tensor
    """``[..., 3]`` int64: brightness (0), contrast (1) and saturation (2) in the order applied."""
    hue_slot: Tensor
    """``[...]`` int64: how many of the three blends come before the hue shift."""
    gray: Tensor
    """``[...]`` bool."""
    sigma: Tensor
    """``[...]`` float: standard deviation of the blur in pixels, 0 for none."""

    def map(self, function: Callable[[Tensor], Tensor]) -> ViewParameters:
        """Apply `function` to every tensor, such as ``lambda t: t[step]``."""
        return replace(self, **{field.name: function(getattr(self, field.name)) for field in fields(self)})
