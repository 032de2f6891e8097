"""The virtual clock agrees with a plain loop over clients and messages, and behaves as time does."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simsfl.fleet.clock import Devices, round_time
from simsfl.fleet.links import Links


def drawn(seed, count=5, steps=6):
    """Draw devices, who is present in each step, and after which steps there is an averaging."""
    rng = np.random.default_rng(seed)
    devices = Devices(*rng.uniform(0.1, 2, (6, count)), *(Links(*rng.uniform(0.1, 2, (2, count))) for _ in range(2)))
    models = rng.random(count) < 0.8
    models[0] = True
    present = (rng.random((steps, count)) < 0.7) & models
    present[:, 0] = True
    averaged = rng.random(steps) < 0.4
    averaged[-1] = True
    return devices, present, averaged, models


def by_messages(devices, present, averaged, server_seconds, models):
    """Compute a round with a loop over clients: when each is ready, computes, sends and receives."""
    clients = [c for c in range(len(models)) if models[c]]
    up, down = (
        links.latency + size / links.rate
        for links, size in ((devices.up, devices.step_up), (devices.down, devices.step_down))
    )
    model_up, model_down = (links.latency + devices.model / links.rate for links in (devices.up, devices.down))
    ready = {c: model_down[c] for c in clients}
    compute, transfer = dict.fromkeys(clients, 0.0), {c: model_down[c] for c in clients}
    for s, averages in enumerate(averaged):
        here = [c for c in clients if present[s, c]]
        for c in here:
            ready[c] += devices.before[c]
            compute[c] += devices.before[c] + devices.after[c]
        if server_seconds is not None:
            done = max(ready[c] + up[c] for c in here) + server_seconds
            for c in clients:
                ready[c] = done  # who is absent waits for the next step, too
            for c in here:
                ready[c] += down[c]
                transfer[c] += up[c] + down[c]
        for c in here:
            ready[c] += devices.after[c]
        if averages:
            done = max(ready[c] + devices.averaging[c] + model_up[c] for c in clients)
            for c in clients:
                compute[c] += devices.averaging[c]
                transfer[c] += model_up[c]
                if s + 1 < len(averaged):
                    transfer[c] += model_down[c]
                ready[c] = done + model_down[c]
    return done, compute, transfer


@pytest.mark.parametrize("server_seconds", [None, 0.7])
@pytest.mark.parametrize("seed", range(8))
def test_a_round_takes_as_long_as_its_messages(seed, server_seconds):
    devices, present, averaged, models = drawn(seed)
    if server_seconds is None:
        present = np.tile(models, (len(present), 1))
    found = round_time(devices, present, averaged, server_seconds, models)
    seconds, compute, transfer = by_messages(devices, present, averaged, server_seconds, models)
    assert found.seconds == pytest.approx(seconds, rel=1e-12)
    for client in compute:
        assert found.compute[client] == pytest.approx(compute[client], rel=1e-12)
        assert found.transfer[client] == pytest.approx(transfer[client], rel=1e-12)
    assert not found.compute[~models].any()


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=30)
def test_phases_are_the_whole_and_the_order_of_clients_does_not_matter(seed):
    devices, present, averaged, models = drawn(seed)
    found = round_time(devices, present, averaged, 0.5, models)
    assert sum(found.phases.values()) == pytest.approx(found.seconds, rel=1e-12)
    assert found.phases["server"] == pytest.approx(0.5 * len(present))
    order = np.random.default_rng(seed).permutation(len(models))
    numbers = [own[order] for own in list(vars(devices).values())[:6]]
    links = [Links(own.latency[order], own.rate[order]) for own in (devices.up, devices.down)]
    shuffled = Devices(*numbers, *links)
    other = round_time(shuffled, present[:, order], averaged, 0.5, models[order])
    assert other.seconds == pytest.approx(found.seconds, rel=1e-12)
    np.testing.assert_allclose(other.compute, found.compute[order])


@given(st.integers(0, 2**32 - 1), st.sampled_from(["before", "after", "step_up", "step_down", "model", "up", "down"]))
@settings(deadline=None, max_examples=30)
def test_nothing_that_is_faster_makes_a_round_longer(seed, name):
    devices, present, averaged, models = drawn(seed)
    own = getattr(devices, name)
    half = Links(own.latency, 2 * own.rate) if isinstance(own, Links) else 0.5 * own
    faster = Devices(**vars(devices) | {name: half})
    slow = round_time(devices, present, averaged, 0.5, models).seconds
    assert round_time(faster, present, averaged, 0.5, models).seconds <= slow


def test_clients_that_are_alike_and_have_no_network_take_their_steps():
    alike, nothing = np.full(4, 0.25), np.zeros(4)
    links = Links(nothing, nothing + 1)
    devices = Devices(alike, 2 * alike, nothing, nothing, nothing, nothing, links, links)
    present, averaged = np.ones((10, 4), bool), np.arange(10) == 9
    found = round_time(devices, present, averaged, 0.0, np.ones(4, bool))
    assert found.seconds == pytest.approx(10 * 0.75)
    np.testing.assert_allclose(found.compute, 7.5)
