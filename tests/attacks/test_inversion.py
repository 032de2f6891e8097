"""Training of a decoder on smashed data."""

import numpy as np
import torch

from simsfl.attacks import inversion
from simsfl.config.notation import Decoder
from simsfl.privacy.decoders import decoder
from tests.conftest import generator


def test_the_best_epoch_is_kept():
    """The result is the same as that of training only up to the epoch whose error on held-out images was least."""
    smashed = torch.randn(40, 4, 8, 8, generator=generator())
    images = torch.rand(40, 3, 8, 8, generator=generator(1))

    def train(epochs):
        network = decoder(Decoder.parse("conv_normN0C8"), (4, 8, 8), 8, "batch", generator(2))
        return network, inversion.train_decoder(network, smashed, images, generator(3), epochs=epochs, lr=0.03)

    network, curves = train(30)
    best = int(np.argmin(curves.held_out))
    assert best < 29  # as random images are memorised from some epoch on
    other, _ = train(best + 1)
    for one, two in zip(network.state_dict().values(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(one, two)
