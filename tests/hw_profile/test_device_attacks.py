"""Attacks on the server of devices, and devices that lie: the result is still the simulation's."""

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zmq

from simsfl import RunConfig, Simulation
from simsfl.hw_profile.devices import keys
from simsfl.hw_profile.devices.device import Device, Refused
from simsfl.hw_profile.devices.messages import Message, pack, unpack
from tests.conftest import TINY
from tests.hw_profile.serving import CLIENTS, EVERYONE, LONG, Served, finish, hub_of, wait_for
from tests.simulations import assert_same_state, trained


@pytest.mark.parametrize(
    "change",
    [
        lambda key: key * np.float32("nan"),
        lambda key: key * np.float32(1e20),
        lambda key: key[:1],
        lambda key: key.astype(np.float64),
        lambda key: None,
    ],
    ids=["not finite", "huge", "few", "double", "none"],
)
def test_what_is_not_smashed_data_is_turned_away(change, dataset):
    simulation = Simulation(RunConfig(**{**EVERYONE, "rounds": 1}), dataset)

    def lie(message):
        if message.kind == "smashed":
            key = change(message.arrays["key"])
            arrays = {"query": message.arrays["query"]} | ({} if key is None else {"key": key})
            return [replace(message, arrays=arrays)]
        return [message]

    with hub_of(simulation, clients=[1, 3]) as (hub, loop):
        good, bad = Served(simulation, hub.address, 1), Served(simulation, hub.address, 3, says=lie)
        wait_for(hub, 2)
        next(simulation.round())
        assert loop.devices()[0].presence == "at work"
        list(simulation.rounds())
        assert {status.client: status.presence for status in loop.devices()} == {1: "here", 3: "away"}
    finish(good)
    bad.join(LONG)
    assert str(bad.error).startswith("key: has another shape, type or size; allowed: float32 of shape (2, 4, 4, 4), ")


def test_weights_that_cannot_be_are_turned_away(dataset):
    simulation = Simulation(RunConfig(**{**EVERYONE, "rounds": 1}), dataset)

    def lie(message):
        if message.kind == "weights":
            message = replace(message, arrays={name: array * 1e30 for name, array in message.arrays.items()})
        return [message]

    with hub_of(simulation, clients=[1, 3]) as (hub, _):
        good, bad = Served(simulation, hub.address, 1), Served(simulation, hub.address, 3, says=lie)
        wait_for(hub, 2)
        list(simulation.rounds())
    finish(good)
    bad.join(LONG)
    assert str(bad.error).startswith("online: has another shape, type or size")
    assert float(simulation.state.clients.online.abs().max()) < 100


def test_a_device_that_repeats_itself_and_mixes_things_up_changes_nothing(dataset, caplog):
    """A device sends replays, answers for other steps, rounds, clients and runs, and two frames in one message, too."""
    config = RunConfig(**{**EVERYONE, "engine": "loop", "rounds": 2})
    alone, _ = trained(config, dataset)
    simulation, said = Simulation(config, dataset), []

    def babble(message):
        if message.kind not in ("smashed", "weights"):
            return [message]
        nonsense = {name: array + 1 for name, array in message.arrays.items()}
        wrong = (
            {"step": message.step + 1},
            {"step": max(0, message.step - 1), "round": 1 - message.round},
            {"run": "another"},
            {"client": 1},
            {"kind": "weights" if message.kind == "smashed" else "smashed"},
            {"kind": "round"},
        )
        lies = [replace(message, **change, arrays=nonsense) for change in wrong]
        earlier, said[:] = said[-3:], [*said, message]
        return [*lies, *earlier, (message, message), message, message]

    with hub_of(simulation, clients=[1, 3]) as (hub, loop):
        devices = [Served(simulation, hub.address, 1), Served(simulation, hub.address, 3, says=babble)]
        wait_for(hub, 2)
        list(simulation.rounds())
    finish(*devices)
    assert_same_state(simulation, alone)
    assert not loop.missed
    answers = len(said)
    assert answers == 2 * (simulation.parts.steps + simulation.config.syncs_per_round)
    assert hub.counts.refused["frame"] == answers
    assert hub.counts.refused["stranger"] == hub.counts.refused["run"] == answers
    assert sum(hub.counts.refused.values()) == 8 * answers + sum(min(3, before) for before in range(answers))
    assert any(line.startswith("refused, number 1 of run: run: the message belongs to") for line in caplog.messages)


def test_a_hello_may_say_anything(dataset, caplog):
    simulation = Simulation(RunConfig(**TINY), dataset)
    with hub_of(simulation) as (hub, _), zmq.Context() as context, context.socket(zmq.DEALER) as peer:
        peer.linger = 0
        peer.connect(f"tcp://{hub.address}")
        for value in ([], {}, 1.5, True, 10**30, "\ud800", "1\n2", {"a": []}, -1, 99):
            for about in (
                {"token": "a", "client": value},
                {"token": value, "client": 1},
                {"token": "a", "client": None, "images": value},
            ):
                peer.send(pack(Message("hello", about=about)))
                assert peer.poll(1000 * LONG), about
                assert unpack(peer.recv()).kind in ("refused", "welcome"), about
        device = Device(hub.address, None, 3, LONG)
        device.connect()
        assert device.client == 3
        device.close()
    assert not [record for record in caplog.records if record.exc_info]
    assert not any("\n" in line for line in caplog.messages)


@pytest.mark.slow
def test_whatever_comes_over_the_wire_the_round_ends_with_the_right_weights(dataset):
    """An attacker sends 100,000 frames during a round: random ones, mutations, other devices' answers and replays."""
    config = RunConfig(**{**TINY, "engine": "loop", "rounds": 2})
    alone, _ = trained(config, dataset)
    simulation = Simulation(config, dataset)
    with hub_of(simulation) as (hub, loop):
        devices = [Served(simulation, hub.address, number) for number in CLIENTS]
        wait_for(hub, 3)
        steps = simulation.round()
        next(steps)
        argv = [sys.executable, Path(__file__).with_name("attacker.py"), hub.address, "100000"]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as attacker:
            deadline = time.monotonic() + 120
            while (refused := sum(hub.counts.refused.values())) < 100_000 and time.monotonic() < deadline:
                if (
                    refused > 20_000 * simulation.progress.step_index
                    and simulation.progress.step_index < simulation.parts.steps - 1
                ):
                    next(steps)  # trains on during the attack
                hub.wait(0.01)
            assert refused == 100_000
            assert attacker.stdout.readline() == b"sent\n"
            assert 3 <= simulation.progress.step_index < simulation.parts.steps
            list(steps)
            attacker.stdin.close()
        list(simulation.rounds())
    finish(*devices)
    assert not loop.missed
    assert_same_state(simulation, alone)


def test_ids_that_are_taken_and_other_versions_are_refused(dataset, monkeypatch):
    simulation = Simulation(RunConfig(**TINY), dataset)
    with hub_of(simulation) as (hub, _):
        first, second, third = (Device(hub.address, None, wanted, 5.0) for wanted in (3, 3, 2))
        first.connect()
        assert first.client == 3
        with pytest.raises(Refused, match=r"^client_id: 3 is another device's; allowed: 1, 5$"):
            second.connect()
        with pytest.raises(Refused, match=r"^client_id: 2 is no device's; allowed: 1, 5$"):
            third.connect()
        any_that_is_free = Device(hub.address, None, None, 5.0)
        with monkeypatch.context() as patched:
            patched.setattr("simsfl.hw_profile.devices.messages._VERSION", 2)
            other = Device(hub.address, None, None, 5.0)
            with patched.context() as as_now:
                frame = pack(Message("hello"))
                as_now.setattr("simsfl.hw_profile.devices.messages._VERSION", 1)
                other._send = lambda message: other._socket.poll(1000, zmq.POLLOUT) and other._socket.send(frame)
                with pytest.raises(Refused, match=r"^version: '2' of the protocol is not known; allowed: 1$"):
                    other.connect()
        any_that_is_free.connect()
        assert any_that_is_free.client == 1
        for device in (first, second, third, other, any_that_is_free):
            device.close()
        wait_for(hub, 0)


def test_devices_with_a_wrong_key_are_refused(dataset, tmp_path):
    simulation = Simulation(RunConfig(**TINY), dataset)
    for name in ("ours", "theirs"):
        assert keys.main(["--out", str(tmp_path / name)]) == 0
    ours = keys.Keys.read(tmp_path / "ours" / "server.key", "server")
    stranger = keys.Keys.read(tmp_path / "theirs" / "device-1.key", "device")
    unknown_here = keys.Keys("device", stranger.public, stranger.secret, (ours.public,))
    with hub_of(simulation, ours) as (hub, _):
        for wrong, reason in (
            (unknown_here, "does not know this device's key"),
            (stranger, "does not answer"),
            (None, ""),
        ):
            device = Device(hub.address, wrong, None, 1.0)
            with pytest.raises(TimeoutError, match=f"^server: {hub.address} {reason}.*; allowed: a "):
                device.connect()
            device.close()
        assert not hub.present()
        assert hub.counts.refused["handshake"] >= 2
        known = Device(hub.address, keys.Keys.read(tmp_path / "ours" / "device-1.key", "device"), None, 5.0)
        known.connect()
        assert known.client in CLIENTS
        known.close()


def test_oversized_frames_end_the_connection_and_nothing_else(dataset, monkeypatch):
    monkeypatch.setitem(keys._OPTIONS, zmq.MAXMSGSIZE, 100_000)
    simulation = Simulation(RunConfig(**{**EVERYONE, "rounds": 1}), dataset)
    with hub_of(simulation, clients=[3]) as (hub, loop):
        device = Served(simulation, hub.address, 3)
        wait_for(hub, 1)
        with zmq.Context() as context, context.socket(zmq.DEALER) as peer:
            peer.linger = 0
            with peer.get_monitor_socket(zmq.EVENT_DISCONNECTED) as monitor:
                peer.connect(f"tcp://{hub.address}")
                peer.send(bytes(200_000))
                assert monitor.poll(1000 * LONG)
                peer.disable_monitor()
        list(simulation.rounds())
        assert not loop.missed
    finish(device)
