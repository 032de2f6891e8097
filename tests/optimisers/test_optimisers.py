"""Optimisers against those of PyTorch, and LARS against its formula, one client after the other."""

import pytest
import torch
from torch import nn

from simsfl.models import FlatModule
from simsfl.optimisers import SGD
from simsfl.optimisers.adamw import AdamW
from simsfl.optimisers.lars import LARS
from simsfl.optimisers.proximal import Proximal

CLIENTS, STEPS = 3, 4


@pytest.fixture
def network():
    """Return a small network with weights and biases."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).double()


def by_torch(make, network, weights, gradients, rates):
    """Return the weights ``[P]`` of one client after its steps with an optimiser of PyTorch."""
    flat = FlatModule(network)
    module = flat.module(weights.clone())
    optimiser = make(module.parameters())
    for gradient, rate in zip(gradients, rates, strict=True):
        for parameter, own in zip(module.parameters(), flat.named(gradient).values(), strict=True):
            parameter.grad = own.clone()
        optimiser.param_groups[0]["lr"] = rate
        optimiser.step()
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


@pytest.mark.parametrize(
    ("optimiser", "make"),
    [
        (SGD(0.9, 0.01), lambda own: torch.optim.SGD(own, momentum=0.9, weight_decay=0.01, foreach=False)),
        (
            AdamW(beta1=0.8, beta2=0.95, epsilon=1e-6, weight_decay=0.1),
            lambda own: torch.optim.AdamW(own, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1, foreach=False),
        ),
    ],
    ids=["sgd", "adamw"],
)
def test_a_stack_of_clients_descends_like_each_client_with_pytorch(optimiser, make, network):
    flat = FlatModule(network)
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(CLIENTS, flat.size, generator=generator, dtype=torch.float64)
    gradients = torch.randn(STEPS, CLIENTS, flat.size, generator=generator, dtype=torch.float64)
    rates = 0.1 * torch.rand(STEPS, CLIENTS, 1, generator=generator, dtype=torch.float64)
    weights, memory = start.clone(), torch.zeros(CLIENTS, optimiser.size(flat.size), dtype=torch.float64)
    for step in range(STEPS):
        optimiser.step_(flat, weights, gradients[step].clone(), memory, rates[step])
    for client in range(CLIENTS):
        expected = by_torch(make, network, start[client], gradients[:, client], rates[:, client, 0].tolist())
        torch.testing.assert_close(weights[client], expected, rtol=1e-10, atol=1e-12)


def test_clients_are_drawn_to_the_average_by_the_gradient_of_the_proximal_term():
    weights, received = torch.randn(CLIENTS, 5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    gradient = torch.randn(CLIENTS, 5, dtype=torch.float64)
    found = Proximal(SGD(0.9, 0.01), 0.3).regularised(gradient, weights, received)
    for client in range(CLIENTS):
        own = weights[client].clone().requires_grad_()
        (gradient[client] @ own + 0.3 / 2 * (own - received).square().sum()).backward()
        torch.testing.assert_close(found[client], own.grad, rtol=1e-12, atol=1e-14)


def test_lars_scales_the_step_of_each_layer(network):
    flat, optimiser = FlatModule(network), LARS(trust=0.02, momentum=0.9, weight_decay=0.1)
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(CLIENTS, flat.size, generator=generator, dtype=torch.float64)
    gradient = torch.randn(CLIENTS, flat.size, generator=generator, dtype=torch.float64)
    weights, memory = start.clone(), torch.zeros_like(start)
    optimiser.step_(flat, weights, gradient.clone(), memory, torch.full((CLIENTS, 1), 0.5, dtype=torch.float64))
    for client in range(CLIENTS):
        parts = flat.named(start[client]), flat.named(gradient[client]), flat.named(weights[client])
        for name, shape in flat.shapes.items():
            weight, grad, after = (part[name] for part in parts)
            if len(shape) > 1:
                grad = grad + 0.1 * weight
                grad = grad * 0.02 * weight.norm() / grad.norm()
            torch.testing.assert_close(after, weight - 0.5 * grad)
