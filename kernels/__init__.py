"""Operators on stacks of clients, one per file; each file begins with a plain PyTorch reference.

This package is installed as ``simsfl.kernels``. It does not depend on models, configs or rounds: an operator takes
tensors and returns tensors. An operator whose name ends in ``_`` changes its first argument in place. Inside
`accelerated`, operators use their fastest version.
"""

from simsfl.kernels.augment import augment
from simsfl.kernels.choice import (
    CHOICES,
    CannotRunError,
    accelerated,
    accelerating,
    are_choices,
    choosing,
    fastest,
    measuring,
    preferred,
    reason,
    try_triton,
)
from simsfl.kernels.conv2d import conv2d, standardised
from simsfl.kernels.group_norm import group_norm
from simsfl.kernels.group_norm_nhwc import group_norm_nhwc
from simsfl.kernels.info_nce import info_nce, tie_width
from simsfl.kernels.memory_format import channels_last, contiguous
from simsfl.kernels.sgd_ema import ema_, sgd_
from simsfl.kernels.view_parameters import ViewParameters

__all__ = [
    "CHOICES",
    "CannotRunError",
    "ViewParameters",
    "accelerated",
    "accelerating",
    "are_choices",
    "augment",
    "channels_last",
    "choosing",
    "contiguous",
    "conv2d",
    "ema_",
    "fastest",
    "group_norm",
    "group_norm_nhwc",
    "info_nce",
    "measuring",
    "preferred",
    "reason",
    "sgd_",
    "standardised",
    "tie_width",
    "try_triton",
]
