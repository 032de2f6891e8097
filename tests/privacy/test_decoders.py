"""Decoders that attackers train: the shape of their output, their sizes, and their notation."""

import numpy as np
import pytest
import torch
from torch import nn

from simsfl.config.notation import Decoder
from simsfl.privacy.decoders import decoder
from tests.conftest import generator


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("text", ["custom", "conv_normN0C8", "conv_normN2C12", "res_normN1C8", "res_normN4C64"])
@pytest.mark.parametrize(("side", "size"), [(32, 32), (16, 32), (8, 32), (4, 64), (7, 28), (5, 32), (14, 24)])
def test_decoders_make_images(text, side, size, norm):
    network = decoder(Decoder.parse(text), (6, side, side), size, norm, generator())
    made = network(torch.randn(2, 6, side, side, generator=generator()))
    assert made.shape == (2, 3, size, size)
    assert 0 <= made.min() <= made.max() <= 1
    kinds = [module for module in network.modules() if isinstance(module, nn.ConvTranspose2d)]
    assert len(kinds) == int(np.log2(size // side))


@pytest.mark.parametrize("text", ["custom", "conv_normN0C8", "res_normN1C8"])
def test_decoders_put_tokens_where_their_patches_are(text):
    """A decoder of tokens is one of maps, of which the token of the class is further channels everywhere."""
    tokens = torch.randn(2, 6, 17, 1, generator=generator())
    ours = decoder(Decoder.parse(text), (6, 17, 1), 32, "group", generator())
    theirs = decoder(Decoder.parse(text), (12, 4, 4), 32, "group", generator())
    maps = torch.empty(2, 12, 4, 4)
    for row in range(4):
        for column in range(4):
            maps[:, :6, row, column] = tokens[:, :, 1 + 4 * row + column, 0]
            maps[:, 6:, row, column] = tokens[:, :, 0, 0]
    assert torch.equal(ours(tokens), theirs(maps))


def test_a_residual_decoder_by_hand():
    """Count layers for 16 maps of 16x16: a first block, four more, a doubling of the sides, one more, and the last."""
    network = decoder(Decoder.parse("res_normN4C64"), (16, 16, 16), 32, "batch", generator())

    def block(i, o):  # the parameters of a residual block from i to o channels
        shortcut = 0 if i == o else i * o + 2 * o
        return 2 * i + (9 * i + 1) * o + 2 * o + (9 * o + 1) * o + shortcut

    expected = block(16, 64) + 5 * block(64, 64) + (9 * 64 * 64 + 64) + 2 * 64 + block(64, 3)
    assert sum(p.numel() for p in network.parameters()) == expected


@pytest.mark.parametrize("text", ["custom2", "res_normN4", "res_normN4C0", "conv_normC64", "RES_normN4C64", ""])
def test_what_is_no_decoder(text):
    with pytest.raises(ValueError, match=r"decoder: .*; allowed: custom, or such as"):
        Decoder.parse(text)
