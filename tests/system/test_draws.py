"""Random numbers with an address: they stay finite at the ends of their range."""

from unittest.mock import patch

import pytest
import torch

from simsfl.system import draws
from simsfl.system.draws import Draws

ENDS = torch.tensor([-1, -256, 0, 255, 2**31 - 1, -(2**31)], dtype=torch.int32)
"""Bits that give the highest and the lowest numbers, and two in the middle."""


@pytest.mark.parametrize("kind", ["uniform", "normal", "laplace"])
def test_the_ends_of_the_range_give_finite_numbers(kind):
    """The highest bits used to give 1, whose logarithm made Laplacian noise infinite once in 33 million numbers."""
    with patch.object(draws, "_mixed_", lambda bits: ENDS.repeat(len(bits), 1) if bits.ndim == 2 else bits):
        numbers = getattr(Draws(torch.zeros(2, 2, dtype=torch.int32)), kind)(torch.empty(2, len(ENDS)))
    assert numbers.isfinite().all()
    if kind == "uniform":
        assert (numbers > 0).all()
        assert (numbers < 1).all()
        assert numbers[0, 0] == numbers[0, 1] == pytest.approx(1)
        assert numbers[0, 2] == numbers[0, 3] == pytest.approx(0, abs=1e-7)
        assert numbers[0, 4] == pytest.approx(0.5, abs=1e-6)
