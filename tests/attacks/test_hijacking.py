"""A server that trains clients for itself (FSHA)."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from simsfl import RunConfig, Simulation
from simsfl.attacks import hijacking, pixels, some
from simsfl.attacks.hijacking import Hijacker, critic_loss, hijack
from simsfl.config.notation import Decoder
from simsfl.data import Arrays, make_dataset
from simsfl.data.shapes import shapes
from simsfl.models.layers import initialise_
from tests.conftest import TINY, generator

SPEC = Decoder.parse("conv_normN0C8")


def _attacked(config, data, *, rounds, own=slice(40, 80), **how):
    simulation = Simulation(config, data, **how)
    wanted, have = (some(data.train, torch.arange(len(data.train))[rows]) for rows in (slice(0, 8), own))
    return hijack(simulation, wanted, have, spec=SPEC, seed=0, rounds=rounds)


def test_the_critic_minimises_the_published_loss():
    """Compare with a loop over rows: scores, and the norm of the gradient at each mixture."""
    critic = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 9, 1), nn.Flatten(0)).double()
    theirs, pilots = (torch.randn(6, 3, 5, 5, dtype=torch.float64, generator=generator(s)) for s in (0, 1))
    mixed = torch.rand(6, 1, 1, 1, dtype=torch.float64, generator=generator(2))
    total = 0.0
    for row in range(6):
        mixture = (mixed[row] * pilots[row] + (1 - mixed[row]) * theirs[row])[None]
        (slope,) = torch.autograd.functional.jacobian(critic, mixture)[0]
        total += critic(theirs[row : row + 1]) - critic(pilots[row : row + 1]) + 10 * (slope.norm() - 1) ** 2
    torch.testing.assert_close(critic_loss(critic, theirs, pilots, mixed), total.squeeze() / 6)


@pytest.mark.parametrize("changes", [{}, {"arch": "vit-tiny", "options": {"arch.pool": "class"}}])
def test_clients_get_the_critics_gradient_as_long_as_their_own(changes, dataset):
    simulation = Simulation(RunConfig(**TINY | changes), dataset, dtype=torch.float64)
    server = Hijacker(simulation.parts, dataset.train, SPEC, seed=0)
    smashed = torch.randn(12, *simulation.model.smashed_shape, dtype=torch.float64, generator=generator())
    honest = torch.randn(6, *simulation.model.smashed_shape, dtype=torch.float64, generator=generator(1))
    honest[2:4] = 0  # a client that is absent
    assert server.up(smashed)[0] is smashed
    received = server.down(honest)
    rows = [0, 1, 4, 5]
    probe = smashed[rows].requires_grad_()
    (wanted,) = torch.autograd.grad(-server.critic(probe).sum(), probe)
    torch.testing.assert_close(received[rows] / received.norm(), wanted / wanted.norm())
    torch.testing.assert_close(received.norm(), hijacking._LENGTH * honest.norm())
    assert not received[2:4].any()


@pytest.mark.parametrize("changes", [{}, {"defence": "gaussian", "dropout": 0.3}, {"objective": "simsiam"}])
def test_every_engine_is_hijacked_in_the_same_way(changes, dataset):
    config = RunConfig(**{**TINY, **changes})
    one, other = (
        _attacked(replace(config, engine=engine), dataset, rounds=1, dtype=torch.float64) for engine in ("vmap", "loop")
    )
    torch.testing.assert_close(one.reconstructions, other.reconstructions)
    assert one.training.train == pytest.approx(other.training.train)


def test_the_run_stays_as_it_is(dataset):
    simulation = Simulation(RunConfig(**TINY), dataset)
    before = simulation.state.server.online.clone(), simulation.state.clients.online.clone()
    wanted = some(dataset.train, torch.arange(4))
    hijack(simulation, wanted, some(dataset.train, torch.arange(40, 60)), spec=SPEC, seed=0, rounds=1)
    torch.testing.assert_close(
        (simulation.state.server.online, simulation.state.clients.online), before, rtol=0, atol=0
    )
    assert simulation.progress.round_index == 0


def test_a_partition_that_was_passed_is_kept(dataset):
    config = RunConfig(**TINY)
    dealt = Simulation(config, dataset).parts.partition
    one, other = (_attacked(config, dataset, rounds=1, partition=passed) for passed in (None, dealt))
    assert torch.equal(one.reconstructions, other.reconstructions)


@pytest.mark.slow
def test_hijacked_clients_send_what_the_decoder_can_read(monkeypatch):
    """Clients come to imitate a pilot that is nothing like them, as in the published attack.

    The images have colours that are seen to be inverted, because only then there is a single way to imitate it. The
    control is a server that learns in the same way, but returns the gradient of the clients' objective.
    """
    usual = hijacking.Hijacker.__init__

    def with_another_pilot(server, *args):
        usual(server, *args)
        initialise_(server.pilot, generator(5))

    monkeypatch.setattr(hijacking.Hijacker, "__init__", torch.no_grad()(with_another_pilot))
    arrays = shapes(0)
    tint = np.array([1.0, 0.7, 0.4])
    train_x, test_x = (
        (255 * (x / 255) ** 2 * tint).astype(np.uint8) for x in (arrays.train_x[:400], arrays.test_x[:9])
    )
    few = Arrays(train_x, arrays.train_y[:400], test_x, arrays.test_y[:9], arrays.classes)
    data = make_dataset("few", "made up", few, image_size=16)
    changes = {"cohort": 8, "batch_size": 8, "local_epochs": 15, "lr": 0.03, "width": 8, "crop_scale": 0.5, "seed": 1}
    config, how = RunConfig(**{**TINY, **changes}), {"rounds": 4, "own": slice(200, 400)}
    led = _attacked(config, data, **how)
    monkeypatch.setattr(hijacking.Hijacker, "down", _honest(hijacking.Hijacker.down))
    left = _attacked(config, data, **how)
    originals = pixels(some(data.train, torch.arange(8)))
    assert led.mse < 0.85 * (originals - originals.mean(dim=0)).square().mean() < left.mse


def _honest(down):
    """Return the method of a server that learns as it does, and returns the gradient of the clients' objective."""

    def method(server, gradient):
        down(server, gradient)
        return gradient

    return method
