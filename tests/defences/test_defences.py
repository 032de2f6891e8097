"""Defences against their definitions, number by number."""

import math

import pytest
import torch

from simsfl.defences import Chain
from simsfl.defences.compression import Half, Int8, TopK
from simsfl.defences.noise import Clip, Gaussian, Laplacian
from simsfl.defences.nopeek import distance_correlation
from simsfl.system.draws import Draws

DRAWS = Draws(torch.randint(-(2**31), 2**31, (6, 2), generator=torch.Generator().manual_seed(0), dtype=torch.int32))


@pytest.fixture
def smashed():
    """Return smashed data of six images in float64."""
    return torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize(("defence", "deviation"), [(Gaussian(deviation=0.5), 0.5), (Laplacian(scale=0.5), 0.5**0.5)])
def test_noise_has_its_deviation_and_differs_from_row_to_row(defence, deviation):
    zeros = torch.zeros(6, 8, 32, 32)
    noise = defence.protect(zeros, DRAWS)
    assert noise.std().item() == pytest.approx(deviation, rel=0.02)
    assert noise.mean().item() == pytest.approx(0, abs=0.01)
    assert torch.equal(noise, defence.protect(zeros, DRAWS))
    assert torch.equal(noise[2:4], defence.protect(zeros[2:4], DRAWS.rows(2, 4)))
    correlation = torch.corrcoef(noise.flatten(1)) - torch.eye(6)
    assert correlation.abs().max() < 0.06


def test_a_place_is_the_only_one_that_changes(smashed):
    for where in ("smashed", "gradient", "update"):
        defence = Chain((Gaussian(where=where), Clip(norm=0.1, where=where)))
        same = {
            "smashed": torch.equal(defence.protect(smashed, DRAWS), smashed),
            "gradient": torch.equal(defence.receive(smashed, DRAWS), smashed),
            "update": torch.equal(defence.learn(smashed.flatten(1), DRAWS), smashed.flatten(1)),
        }
        assert [name for name, untouched in same.items() if not untouched] == [where]


def test_clipped_rows_have_the_norm_and_keep_their_direction(smashed):
    clipped = Clip(norm=5.0).protect(smashed, DRAWS)
    for before, after in zip(smashed, clipped, strict=True):
        length = math.sqrt(sum(x * x for x in before.flatten().tolist()))
        torch.testing.assert_close(after, before * min(1.0, 5.0 / length))
    assert torch.equal(Clip(norm=5.0).protect(torch.zeros(6, 2), DRAWS), torch.zeros(6, 2))


def test_int8_has_256_levels_of_each_image(smashed):
    rounded = Int8().protect(smashed, DRAWS)
    for before, after in zip(smashed.flatten(1).tolist(), rounded.flatten(1).tolist(), strict=True):
        low, step = min(before), (max(before) - min(before)) / 255
        assert after == pytest.approx([low + round((x - low) / step) * step for x in before])
    assert Int8().bytes_up(1000, 4) == 1008


def test_half_is_fp16_in_both_directions(smashed):
    expected = smashed.half().double()
    assert torch.equal(Half().protect(smashed, DRAWS), expected)
    assert torch.equal(Half().receive(smashed, DRAWS), expected)
    assert (Half().bytes_up(1000, 4), Half().bytes_down(1000, 4)) == (2000, 2000)


def test_top_k_sends_the_largest_numbers(smashed):
    sent = TopK(share=0.25).protect(smashed.requires_grad_(), DRAWS)
    sent.sum().backward()
    for before, after, grad in zip(smashed.detach(), sent.detach(), smashed.grad, strict=True):
        limit = sorted(abs(x) for x in before.flatten().tolist())[-12]
        expected = torch.where(before.abs() >= limit, before, torch.zeros_like(before))
        assert torch.equal(after, expected)
        assert torch.equal(grad, (expected != 0).double())
    assert TopK(share=0.25).bytes_up(1024, 4) == 256 * (4 + 10 / 8)
    assert TopK(share=0.25).bytes_down(1024, 4) == 256 * 4


def test_rounding_lets_gradients_through(smashed):
    for defence in (Int8(), Half()):
        leaf = smashed.clone().requires_grad_()
        (3.0 * defence.protect(leaf, DRAWS)).sum().backward()
        assert (leaf.grad == 3.0).all()


def test_distance_correlation_is_that_of_szekely():
    generator = torch.Generator().manual_seed(2)
    x, y = torch.randn(5, 3, generator=generator).double(), torch.randn(5, 2, generator=generator).double()

    def centred(rows):
        d = [[math.dist(a, b) for b in rows.tolist()] for a in rows.tolist()]
        n = len(d)
        line = [sum(row) / n for row in d]
        total = sum(line) / n
        return [[d[k][j] - line[k] - line[j] + total for j in range(n)] for k in range(n)]

    a, b = centred(x), centred(y)

    def covariance(one, two):
        return sum(p * q for r, s in zip(one, two, strict=True) for p, q in zip(r, s, strict=True)) / 25

    expected = math.sqrt(covariance(a, b) / math.sqrt(covariance(a, a) * covariance(b, b)))
    assert distance_correlation(x[None], y[None]).item() == pytest.approx(expected)
    assert distance_correlation(x[None], x[None]).item() == pytest.approx(1.0)
