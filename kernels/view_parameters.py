"""The random parameters of a view of an image, and the constants that both versions of `kernels.augment` use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

from torch import Tensor

BLUR_RADIUS = 6
"""Pixels that the blur's kernel reaches to either side: three times the widest sigma, which is 2 pixels."""
LUMA = (0.2989, 0.587, 0.114)
"""Weights of red, green and blue in a gray image (ITU-R 601)."""

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
"""Columns of `ViewParameters.jitter`; the first three are also the operations in `ViewParameters.blends`."""


@dataclass(frozen=True)
class ViewParameters:
    """Parameters of views of images, as tensors with the same leading dimensions ``[...]``."""

    crop: Tensor
    """Top, left, height and width of the crop in pixels, ``[..., 4]`` float, all whole numbers."""
    flip: Tensor
    """Whether the view is flipped from left to right, ``[...]`` bool."""
    jitter: Tensor
    """Factors of brightness, contrast and saturation, and the hue shift in turns, ``[..., 4]`` float. They are
    1, 1, 1, 0 where no jitter is applied."""
    blends: Tensor
    """Order in which brightness (0), contrast (1) and saturation (2) are changed, ``[..., 3]`` int64."""
    hue_slot: Tensor
    """Number of the three blends that come before the hue shift, ``[...]`` int64."""
    gray: Tensor
    """Whether the view is turned into grayscale, ``[...]`` bool."""
    sigma: Tensor
    """Standard deviation of the blur in pixels, ``[...]`` float, 0 for no blur."""

    def map(self, function: Callable[[Tensor], Tensor]) -> ViewParameters:
        """Return parameters in which `function`, such as ``lambda t: t[step]``, has been applied to every tensor."""
        return replace(self, **{field.name: function(getattr(self, field.name)) for field in fields(self)})
