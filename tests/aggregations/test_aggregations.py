"""Aggregations against loops over numbers, written from the papers."""

import operator
import statistics

import pytest
import torch

from simsfl.aggregations import Aggregation
from simsfl.aggregations.server_step import FedAdam, FedAvgM
from simsfl.aggregations.weighted import ByImages, Median, TrimmedMean

IMAGES = torch.tensor([10, 30, 20, 40, 50])


def models(count=5, seed=0):
    """Return models of four numbers each in float64."""
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("count", [1, 2, 4, 5])
def test_combinations_are_those_of_the_papers(count):
    stack, images = models(count), IMAGES[:count]
    columns, weights = stack.T.tolist(), images.tolist()
    expected = {
        Aggregation(): [statistics.fmean(column) for column in columns],
        ByImages(): [sum(map(operator.mul, column, weights)) / sum(weights) for column in columns],
        Median(): [statistics.median(column) for column in columns],
        TrimmedMean(trim=0.3): [
            statistics.fmean(sorted(column)[int(0.3 * count) : count - int(0.3 * count)]) for column in columns
        ],
    }
    for aggregation, numbers in expected.items():
        assert aggregation.combine(stack, images).tolist() == pytest.approx(numbers), aggregation


@pytest.mark.parametrize("aggregation", [Median(), TrimmedMean(trim=0.2)], ids=["median", "trimmed-mean"])
def test_a_client_that_lies_does_no_harm(aggregation):
    stack = models()
    stack[2] = 1e12
    assert aggregation.combine(stack, IMAGES).abs().max() < 10


def test_fedavgm_is_momentum_of_differences():
    aggregation = FedAvgM(lr=0.5, momentum=0.8)
    memory = aggregation.memory(4, torch.device("cpu"), torch.float64)
    at, velocity = models()[0], [0.0] * 4
    for step in range(3):
        combined = models(seed=step + 1)[0]
        velocity = [0.8 * v + (c - a) for v, c, a in zip(velocity, combined.tolist(), at.tolist(), strict=True)]
        expected = [a + 0.5 * v for a, v in zip(at.tolist(), velocity, strict=True)]
        at = aggregation.step(at, combined, memory)
        assert at.tolist() == pytest.approx(expected)


def test_fedadam_is_algorithm_2_of_reddi():
    aggregation = FedAdam(lr=0.3, beta1=0.9, beta2=0.99, adaptivity=0.05)
    memory = aggregation.memory(4, torch.device("cpu"), torch.float64)
    at, first, second = models()[0], [0.0] * 4, [0.05**2] * 4
    for step in range(3):
        combined = models(seed=step + 1)[0]
        difference = [c - a for c, a in zip(combined.tolist(), at.tolist(), strict=True)]
        first = [0.9 * m + 0.1 * d for m, d in zip(first, difference, strict=True)]
        second = [0.99 * v + 0.01 * d * d for v, d in zip(second, difference, strict=True)]
        expected = [a + 0.3 * m / (v**0.5 + 0.05) for a, m, v in zip(at.tolist(), first, second, strict=True)]
        at = aggregation.step(at, combined, memory)
        assert at.tolist() == pytest.approx(expected)
