"""Projection heads: functions of a backbone and the key dimension D that return a module ``[N, F] -> [N, D]``.

The first lines of their docstrings are what ``run.py --list`` prints.
"""

from __future__ import annotations

from torch import nn

from simsfl.models.layers import Backbone, BatchNorm


def linear_head(backbone: Backbone, key_dim: int) -> nn.Module:
    """MoCo v1's projection head: one linear layer."""
    return nn.Linear(backbone.features, key_dim)


def mlp_head(backbone: Backbone, key_dim: int) -> nn.Module:
    """MoCo v2's projection head: a hidden layer of `key_dim` times the backbone's expansion, as published."""
    hidden = key_dim * backbone.expansion
    return nn.Sequential(nn.Linear(backbone.features, hidden), nn.ReLU(), nn.Linear(hidden, key_dim))


def large_mlp_head(backbone: Backbone, key_dim: int) -> nn.Module:
    """The projection head of Zhuang et al. (ICLR 2022), largeV2: a hidden layer of 4,096 with BatchNorm."""
    return nn.Sequential(nn.Linear(backbone.features, 4096), BatchNorm(4096), nn.ReLU(), nn.Linear(4096, key_dim))
