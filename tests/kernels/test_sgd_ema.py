"""Updates of flat parameters, against torch.optim.SGD and against the formula."""

import pytest
import torch

from simsfl.kernels import accelerated, ema_, sgd_
from tests.kernels.agreement import DEVICE, TOLERANCES, TRITON, normal


@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.9, 5e-4), (0.0, 0.0), (0.5, 0.1)])
@pytest.mark.parametrize("version", [None, TRITON])
def test_sgd_is_torchs_with_a_rate_per_client(version, momentum, weight_decay):
    dtype = torch.float64 if version is None else torch.float32
    start = normal(0, 3, 700, dtype=dtype)
    lr = torch.tensor([[0.1], [0.01], [0.0]], dtype=dtype, device=DEVICE)
    ours, velocity = start.clone(), torch.zeros_like(start)
    theirs = [row.clone().requires_grad_() for row in start]
    optimizers = [
        torch.optim.SGD([row], lr=float(rate), momentum=momentum, weight_decay=weight_decay)
        for row, rate in zip(theirs, lr, strict=True)
    ]
    for step in range(4):
        gradient = normal(step, 700, 3, dtype=dtype).T  # not contiguous
        with accelerated(version):
            sgd_(ours, gradient, velocity, lr, momentum, weight_decay)
        for row, optimizer, g in zip(theirs, optimizers, gradient, strict=True):
            row.grad = g
            optimizer.step()
    torch.testing.assert_close(ours, torch.stack(theirs).detach(), **TOLERANCES[dtype])


@pytest.mark.parametrize("version", [None, TRITON])
def test_one_rate_for_all(version):
    parameters, velocity, gradient = (normal(seed, 1500, dtype=torch.float32) for seed in range(3))
    v = 0.9 * velocity + gradient + 0.01 * parameters
    expected = parameters - 0.1 * v
    with accelerated(version):
        sgd_(parameters, gradient, velocity, torch.tensor(0.1, device=DEVICE), 0.9, 0.01)
    torch.testing.assert_close(parameters, expected, **TOLERANCES[torch.float32])
    torch.testing.assert_close(velocity, v, **TOLERANCES[torch.float32])


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
