"""The virtual clock agrees with a plain loop over clients and messages, and behaves as time does."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simsfl.fleet.clock import Devices, round_time
from simsfl.fleet.links import Links, Trace


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


def by_messages(devices, present, averaged, server_seconds, models, begin=0.0, passes=None):
    """Compute a round with a loop over clients: when each is ready, computes, sends and receives."""

    def message(links, sizes, c, at):
        """Return the seconds of a message that a client sends at some time."""
        return links.latency[c] + (passes(sizes[c], at) if passes else sizes[c] / links.rate[c])

    def fetch(c):
        seconds = message(devices.down, devices.model, c, ready[c])
        ready[c] += seconds
        return seconds

    clients = [c for c in range(len(models)) if models[c]]
    ready = dict.fromkeys(clients, begin)
    compute, transfer = dict.fromkeys(clients, 0.0), {c: fetch(c) for c in clients}
    for s, averages in enumerate(averaged):
        here = [c for c in clients if present[s, c]]
        for c in here:
            ready[c] += devices.before[c]
            compute[c] += devices.before[c] + devices.after[c]
        if server_seconds is not None:
            up = {c: message(devices.up, devices.step_up, c, ready[c]) for c in here}
            done = max(ready[c] + up[c] for c in here) + server_seconds
            for c in clients:
                ready[c] = done  # who is absent waits for the next step, too
            for c in here:
                down = message(devices.down, devices.step_down, c, done)
                ready[c] += down
                transfer[c] += up[c] + down
        for c in here:
            ready[c] += devices.after[c]
        if averages:
            for c in clients:
                ready[c] += devices.averaging[c]
                compute[c] += devices.averaging[c]
                up = message(devices.up, devices.model, c, ready[c])
                ready[c] += up
                transfer[c] += up
            done = max(ready.values())
            for c in clients:
                ready[c] = done
                if s + 1 < len(averaged):
                    transfer[c] += fetch(c)
    return done - begin, compute, transfer


def passing(trace):
    """Return a function that computes how long a message takes from some time on, piece by piece of the trace."""

    def passes(size, at):
        whole = int(at // trace.times[-1])
        piece = int(np.searchsorted(trace.times, at - whole * trace.times[-1], side="right")) - 1
        now, left = at, size
        while True:
            until = whole * trace.times[-1] + trace.times[piece + 1]
            if trace.rates[piece] * (until - now) >= left:
                return now + left / trace.rates[piece] - at
            left -= trace.rates[piece] * (until - now)
            now, piece = until, piece + 1
            if piece == len(trace.rates):
                whole, piece = whole + 1, 0

    return passes


@pytest.mark.parametrize("seed", range(4))
def test_links_that_change_are_followed_from_message_to_message(seed):
    devices, present, averaged, models = drawn(seed)
    rng = np.random.default_rng(seed)
    trace = Trace(np.cumsum([0, *rng.uniform(0.2, 1, 7)]), rng.uniform(0.2, 3, 7) * (np.arange(7) != 3))
    everyone, nothing = np.arange(len(models)), np.zeros(len(models))
    links = Links(nothing + 0.01, nothing + np.nan, traces=((trace, everyone, nothing),))
    devices = Devices(**vars(devices) | {"up": links, "down": links})
    found = round_time(devices, present, averaged, 0.7, models, begin=123.4)
    seconds, _, transfer = by_messages(devices, present, averaged, 0.7, models, 123.4, passing(trace))
    assert found.seconds == pytest.approx(seconds, rel=1e-9)
    for client, own in transfer.items():
        assert found.transfer[client] == pytest.approx(own, rel=1e-9)


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
