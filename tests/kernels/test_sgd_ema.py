"""The flat updates against torch.optim.SGD and against the formula."""

import pytest
import torch

from simsfl.kernels import ema_, sgd_


@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.9, 5e-4), (0.0, 0.0), (0.5, 0.1)])
def test_sgd_is_torchs_with_a_rate_per_client(momentum, weight_decay):
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(3, 7, generator=generator, dtype=torch.float64)
    lr = torch.tensor([[0.1], [0.01], [0.0]], dtype=torch.float64)
    ours, velocity = start.clone(), torch.zeros_like(start)
    theirs = [row.clone().requires_grad_() for row in start]
    optimizers = [
        torch.optim.SGD([row], lr=float(rate), momentum=momentum, weight_decay=weight_decay)
        for row, rate in zip(theirs, lr, strict=True)
    ]
    for _ in range(4):
        gradient = torch.randn(3, 7, generator=generator, dtype=torch.float64)
        sgd_(ours, gradient, velocity, lr, momentum, weight_decay)
        for row, optimizer, g in zip(theirs, optimizers, gradient, strict=True):
            row.grad = g
            optimizer.step()
    torch.testing.assert_close(ours, torch.stack(theirs).detach(), rtol=0, atol=1e-14)


def test_ema():
    average, online = torch.tensor([1.0, 2.0]), torch.tensor([3.0, -2.0])
    ema_(average, online, 0.75)
    assert average.tolist() == [1.5, 1.0]
    assert online.tolist() == [3.0, -2.0]


def test_updates_are_in_place_and_leave_no_graph():
    parameters = torch.ones(4, requires_grad=True)
    where = parameters.data_ptr()
    sgd_(parameters, torch.ones(4), torch.zeros(4), torch.tensor(0.5), 0.9, 0.0)
    assert parameters.data_ptr() == where
    assert parameters.is_leaf
    assert parameters.tolist() == [0.5] * 4
