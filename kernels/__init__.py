"""Operators on stacks of clients: one operator a file, plain PyTorch reference first.

Installed as ``simsfl.kernels``. Nothing in here knows of models, configs or rounds:
an operator sees tensors and returns tensors. Names ending in ``_`` change their first
argument in place.
"""

from simsfl.kernels.info_nce import info_nce
from simsfl.kernels.sgd_ema import ema_, sgd_

__all__ = ["ema_", "info_nce", "sgd_"]
