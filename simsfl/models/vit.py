"""Vision transformers (Dosovitskiy et al., ICLR 2021), which can be cut behind the embedding of patches or any block.

Tokens are kept as maps ``[N, d, h, w]``, one for each patch, so that smashed data look like those of other networks;
features are the mean over them. With a token of the class, which is the first, they are maps ``[N, d, h*w + 1, 1]``,
and features are that token behind the last block.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from simsfl.config.values import option
from simsfl.models.layers import Backbone, Style

DEPTH = 12
"""Number of blocks."""
_HEAD = 64
"""Numbers of a token that each head of attention works on."""


class _Patches(nn.Module):
    """Embedding of patches: a convolution whose stride is its size, plus what is learnt of each place.

    A token of the class, if there is one, is put before those of the patches, and has a place of its own.
    """

    def __init__(self, width: int, patch: int, places: int, *, token: bool):
        super().__init__()
        self.project = nn.Linear(3 * patch * patch, width)
        self.patch = patch
        shape = (places * places + 1, 1) if token else (places, places)
        self.position = nn.Parameter(torch.zeros(width, *shape))
        self.token = nn.Parameter(torch.zeros(width, 1, 1)) if token else None

    def initialise_(self, generator: torch.Generator) -> None:
        """Draw the position embedding from small normal numbers; the token of the class is 0, as in the paper's code.

        The projection is initialised like other layers.
        """
        nn.init.trunc_normal_(self.position, std=0.02, a=-0.04, b=0.04, generator=generator)
        if self.token is not None:
            self.token.zero_()

    def forward(self, x: Tensor) -> Tensor:
        size = self.patch
        patches = x.unflatten(3, (-1, size)).unflatten(2, (-1, size)).permute(0, 2, 4, 1, 3, 5).flatten(3)
        tokens = self.project(patches).permute(0, 3, 1, 2)
        if self.token is not None:
            first = self.token.to(tokens.dtype).expand(tokens.shape[0], -1, -1, -1)
            tokens = torch.cat([first, tokens.flatten(2).unsqueeze(3)], dim=2)
        return tokens + self.position.to(x.dtype)


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
    """Attention, then two layers on each token by itself, each added to its input, which is normalised before.

    Of the last block, all tokens are normalised in the end; with a token of the class, only that one is computed.
    """

    def __init__(self, width: int, *, last: bool, token: bool):
        super().__init__()
        self.returned = 1 if last and token else None
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = _Attention(width)
        self.perceptron = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.norm3 = nn.LayerNorm(width) if last else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        tokens = (tokens + self.attention(self.norm1(tokens)))[:, : self.returned]
        tokens = self.norm3(tokens + self.perceptron(self.norm2(tokens)))
        return tokens.transpose(1, 2).unflatten(2, (-1, x.shape[3]))


@dataclass(frozen=True)
class ViT:
    """A vision transformer.

    Calling it with a width, an image size in pixels and a style, which it has no use for, builds the network. Patches
    are an eighth of the image, or 16 pixels for images of 224 and more.
    """

    pool: str = option(
        "mean",
        "What the features are: the mean over all tokens, or a token of the class, which is learnt.",
        choices=("mean", "class"),
    )

    def __call__(self, width: int, image_size: int, style: Style) -> Backbone:
        patch = 16 if image_size >= 224 else max(1, image_size // 8)
        token = self.pool == "class"
        blocks = [_Block(width, last=index == DEPTH - 1, token=token) for index in range(DEPTH)]
        return Backbone([_Patches(width, patch, image_size // patch, token=token), *blocks], width)
