"""Vision transformers (Dosovitskiy et al., ICLR 2021), which can be cut behind the embedding of patches or any block.

Tokens are kept as maps ``[N, d, h, w]``, one for each patch, so that smashed data look like those of other networks;
features are the mean over them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from simsfl.models.layers import Backbone, Style

_HEAD = 64
"""Numbers of a token that each head of attention works on."""


class _Patches(nn.Module):
    """Embedding of patches: a convolution whose stride is its size, plus what is learnt of each place."""

    def __init__(self, width: int, patch: int, places: int):
        super().__init__()
        self.project = nn.Linear(3 * patch * patch, width)
        self.patch = patch
        self.position = nn.Parameter(torch.zeros(width, places, places))

    def initialise_(self, generator: torch.Generator) -> None:
        """Draw the position embedding from small normal numbers; the projection is initialised like other layers."""
        nn.init.trunc_normal_(self.position, std=0.02, a=-0.04, b=0.04, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        size = self.patch
        patches = x.unflatten(3, (-1, size)).unflatten(2, (-1, size)).permute(0, 2, 4, 1, 3, 5).flatten(3)
        return self.project(patches).permute(0, 3, 1, 2) + self.position.to(x.dtype)


class _Attention(nn.Module):
    """Attention of each token to all tokens of its image, in several heads."""

    def __init__(self, width: int):
        super().__init__()
        self.heads = max(1, width // _HEAD)
        self.mix, self.join = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        queries, keys, values = self.mix(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        scores = (queries @ keys.transpose(2, 3)) * queries.shape[3] ** -0.5
        return self.join((scores.softmax(dim=3) @ values).transpose(1, 2).flatten(2))

    def products(self, x: Tensor) -> int:
        """Return the multiply-adds of scores and weighted values, for tokens ``[N, t, d]``."""
        return 2 * x.numel() * x.shape[1]


class _Block(nn.Module):
    """Attention, then two layers on each token by itself, each added to its input, which is normalised before."""

    def __init__(self, width: int, *, last: bool):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = _Attention(width)
        self.perceptron = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.norm3 = nn.LayerNorm(width) if last else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        tokens = tokens + self.attention(self.norm1(tokens))
        tokens = self.norm3(tokens + self.perceptron(self.norm2(tokens)))
        return tokens.transpose(1, 2).unflatten(2, x.shape[2:])


class ViT:
    """A vision transformer given by its number of blocks.

    Calling it with a width, an image size in pixels and a style, which it has no use for, builds the network. Patches
    are an eighth of the image, or 16 pixels for images of 224 and more.
    """

    def __init__(self, depth: int):
        self.depth = depth

    def __call__(self, width: int, image_size: int, style: Style) -> Backbone:
        patch = 16 if image_size >= 224 else max(1, image_size // 8)
        blocks = [_Block(width, last=index == self.depth - 1) for index in range(self.depth)]
        return Backbone([_Patches(width, patch, image_size // patch), *blocks], width)


vit = ViT(12)
