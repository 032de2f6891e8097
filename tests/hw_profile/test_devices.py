"""Devices in the loop: the result is the simulation's, whatever else comes over the wire, and whoever goes."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import zmq
from conftest import TINY, flags

import client
import keys
from client_work import make_client
from device import Device, Refused
from device_loop import DeviceLoop, about_run, own_images
from hub import Hub
from messages import Message, pack, unpack
from simsfl import RunConfig, Simulation
from simsfl.console import Output
from simsfl.observer import Observer
from simsfl.recorder import Recorder
from simsfl.session import Stopped
from simsfl.trace import Trace

PROGRAMS = Path(__file__).parents[2] / "hw_profile"
CLIENTS = (1, 3, 5)
LONG = 20.0
EVERYONE = {**TINY, "cohort": 8}


@contextmanager
def hub_of(simulation, own_keys=None, timeout=LONG, clients=CLIENTS):
    hub = Hub("127.0.0.1:0", own_keys, "run", {client: about_run(simulation, client) for client in clients})
    loop = DeviceLoop(simulation, hub, timeout)
    try:
        yield hub, loop
    finally:
        loop.end("stopped")
        hub.close()


class Served(threading.Thread):
    """A device in a thread, as client `number`; it leaves without a word after so many steps.

    `says` makes of a message those that are sent instead; a pair is sent as two frames of one.
    """

    def __init__(self, simulation, address, number, runtime="torch", leave_after=None, before_step=None, says=None):
        super().__init__(daemon=True)
        self.left = threading.Event()
        self.device = Device(address, None, number, LONG, is_over=self.left.is_set)
        self.pixels = simulation.dataset.train.pixels[torch.from_numpy(simulation.partition[number])].numpy()
        self.runtime, self.leave_after, self.before_step = runtime, leave_after, before_step
        self.error = None
        if says:
            self.device._send = lambda message: [self.send(said) for said in says(message)]
        self.start()

    def send(self, said):
        frames = [pack(message) for message in (said if isinstance(said, tuple) else (said,))]
        assert self.device._socket.poll(1000 * LONG, zmq.POLLOUT)
        self.device._socket.send_multipart(frames)

    def run(self):
        device = self.device
        try:
            device.connect()
            client = make_client(device.about, self.runtime, precision="fp32")
            device.work(client, self.pixels, self.clock, self.step_done)
        except (Refused, TimeoutError) as error:
            self.error = error
        finally:
            if self.left.is_set():  # as one whose plug is pulled
                device.connected = False
            device.close()

    def clock(self, phase):
        if phase == "views" and self.before_step:
            self.before_step(self.device)
        return nullcontext()

    def step_done(self, round_index, step):
        if self.device.done == self.leave_after:
            self.left.set()


def finish(*devices):
    for device in devices:
        device.join(LONG)
        assert not device.is_alive()
        assert device.error is None


def wait_for(hub, count):
    deadline = time.monotonic() + LONG
    while len(hub.present()) < count and time.monotonic() < deadline:
        hub.wait(0.1)
    assert len(hub.present()) == count


def trained(simulation):
    list(simulation.rounds())
    return simulation.state.tensors()


def assert_same(found, expected, tolerance=0.0):
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=tolerance, atol=tolerance, msg=name)


SETTINGS = {
    "loop": {"engine": "loop", "cohort": 4},
    "cut 2, aligned": {"engine": "loop", "cut_layer": 2, "align_momentum": True},
    "batch norm": {"engine": "loop", "norm": "batch", "weight_standardisation": False},
    "frozen": {"engine": "loop", "client_lr": 0.0},
    "frozen, batch norm": {"engine": "loop", "client_lr": 0.0, "norm": "batch", "weight_standardisation": False},
    "stacked": {"rounds": 1},
}


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_the_result_is_the_simulations(setting, dataset):
    config = RunConfig(**{**TINY, **setting})
    expected = trained(Simulation(config, dataset))
    simulation = Simulation(config, dataset)
    with hub_of(simulation) as (hub, loop):
        devices = [Served(simulation, hub.address, number) for number in CLIENTS]
        wait_for(hub, 3)
        found = trained(simulation)
        assert not loop.absent
    finish(*devices)
    exact = setting.get("engine") == "loop"
    assert_same(
        found, expected if exact else {n: expected[n] for n in ("server.online", "clients.online")}, 1e-3 * (not exact)
    )
    assert not loop.missed
    assert not hub.counts.refused
    assert [loop.done[device.device.client] for device in devices] == [device.device.done for device in devices]
    assert loop.done == loop.due
    assert sum(loop.due.values()) > 0


def test_either_runtime_takes_part(dataset):
    config = RunConfig(**{**EVERYONE, "engine": "loop", "rounds": 1})
    expected = trained(Simulation(config, dataset))
    simulation = Simulation(config, dataset)
    with hub_of(simulation, clients=[3]) as (hub, _):
        device = Served(simulation, hub.address, 3, runtime="lean")
        wait_for(hub, 1)
        found = trained(simulation)
    finish(device)
    assert_same(found, {"server.online": expected["server.online"]}, 1e-3)


def test_bytes_are_the_cost_models_and_a_little_more(dataset):
    simulation = Simulation(RunConfig(**EVERYONE), dataset)
    with hub_of(simulation) as (hub, _):
        devices = [Served(simulation, hub.address, number) for number in CLIENTS]
        wait_for(hub, 3)
        before = hub.counts.up, hub.counts.down
        list(simulation.rounds())
        up, down = hub.counts.up - before[0], hub.counts.down - before[1]
    finish(*devices)
    share, syncs = len(CLIENTS) / 8, simulation.config.syncs_per_round
    frames = 3 * len(CLIENTS) * (simulation.steps + syncs)
    assert share * simulation.traffic.up <= up < share * simulation.traffic.up + 500 * frames
    plan = 3 * len(CLIENTS) * 6000  # which images and views a round has, and at first all that a client keeps
    assert share * simulation.traffic.down <= down < share * simulation.traffic.down + 500 * frames + plan
    assert sum(account.bytes_up for account in hub.accounts.values()) == hub.counts.up
    assert sum(account.bytes_down for account in hub.accounts.values()) == hub.counts.down


def test_a_device_that_leaves_is_done_without_and_may_return(dataset):
    simulation = Simulation(RunConfig(**{**EVERYONE, "rounds": 3}), dataset)
    with hub_of(simulation) as (hub, loop):
        gone = Served(simulation, hub.address, 1, leave_after=simulation.steps + 1)
        devices = [Served(simulation, hub.address, number) for number in (3, 5)]
        wait_for(hub, 3)
        records = [record for _ in range(2) for record in simulation.round()]
        absences = [(r.round, r.step, r.clients) for r in records if r.event == "absence"]
        assert (loop.done[1], loop.due[1]) == (simulation.steps + 2, 2 * simulation.steps)
        assert absences == [(2, 3, [1])]  # it has sent what the second step begins with
        finish(gone)
        assert hub.present() == {3, 5}
        assert loop.missed == 1
        devices.append(Served(simulation, hub.address, 1))
        wait_for(hub, 3)
        assert "absence" not in {record.event for record in simulation.round()}
        assert loop.missed == 1
        assert {status.client: status.presence for status in loop.devices()} == dict.fromkeys(CLIENTS, "here")
    finish(*devices)


def test_where_the_run_ends_in_the_middle_of_a_round_the_devices_end_too(dataset):
    simulation = Simulation(RunConfig(**EVERYONE), dataset)
    with hub_of(simulation) as (hub, _):
        devices = [Served(simulation, hub.address, number) for number in CLIENTS]
        wait_for(hub, 3)
        next(simulation.round())
    finish(*devices)
    assert {device.device.done for device in devices} <= {1, 2}


def test_a_device_that_hangs_is_dismissed_and_comes_back_at_an_averaging(dataset):
    simulation = Simulation(RunConfig(**{**EVERYONE, "rounds": 2, "syncs_per_round": 4}), dataset)
    assert simulation.steps == 5
    hung = threading.Event()

    def hang(device):
        if not hung.is_set() and device.round == 0 and device.step == 1:
            hung.set()
            time.sleep(1.5)

    with hub_of(simulation, timeout=0.5) as (hub, loop):
        devices = [Served(simulation, hub.address, 1, before_step=hang), Served(simulation, hub.address, 3)]
        wait_for(hub, 2)
        records = []
        for record in simulation.round():
            records.append(record)
            if record.event == "step" and record.step == 2:
                wait_for(hub, 2)  # it has woken up, and said hello again
        absences = [(r.step, r.clients) for r in records if r.event == "absence"]
        assert absences == [(1, [5]), (2, [1, 5]), (4, [5])]  # averagings are behind steps 2, 3, 4 and 5
        assert loop.missed == 1
        assert {account.steps for client, account in hub.accounts.items() if client != 5} == {5, 3}
    finish(*devices)


def test_where_nobody_is_left_somebody_is_waited_for_between_steps(dataset):
    """What the last ones did not send, the simulation has: the result is as if they had gone behind the step."""
    config = RunConfig(**{**TINY, "clients": 2, "cohort": 2, "rounds": 2, "engine": "loop"})
    expected = trained(Simulation(config, dataset))
    simulation, asked = Simulation(config, dataset), []
    with hub_of(simulation, clients=[0, 1]) as (hub, loop):
        loop.waiting = lambda: asked.append(simulation.step_index)
        gone = [Served(simulation, hub.address, number, leave_after=2) for number in (0, 1)]
        wait_for(hub, 2)
        steps = simulation.round()
        while not all(device.left.is_set() for device in gone):
            next(steps)
        finish(*gone)
        later = threading.Timer(0.5, lambda: gone.extend(Served(simulation, hub.address, n) for n in (0, 1)))
        later.start()
        records = [record for record in steps if record.event == "step"]
        assert records[-1].step == simulation.steps
        assert asked
        wait_for(hub, 2)
        list(simulation.round())
    finish(*gone)
    found = simulation.state.tensors()
    if loop.missed == 2:  # both were lost in the same step, and came back at the same
        assert_same(found, expected)
    assert all(torch.isfinite(tensor).all() for tensor in found.values() if tensor.is_floating_point())


def test_where_nobody_is_there_the_run_may_be_stopped(dataset, tmp_path):
    config = RunConfig(**{**TINY, "clients": 2, "cohort": 2, "rounds": 2})
    simulation = Simulation(config, dataset)
    with hub_of(simulation, clients=[0, 1]) as (_, loop):
        loop.is_over = lambda: True
        with pytest.raises(Stopped):
            list(simulation.round())
        simulation.save(tmp_path / "run")
    alone, again = Simulation(config, dataset), Simulation.load(tmp_path / "run", dataset)
    assert_same(trained(again), trained(alone))


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
    assert str(bad.error).startswith("key: is not as it should be; allowed: float32 of shape (2, 4, 4, 4), ")


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
    assert str(bad.error).startswith("online: is not as it should be")
    assert float(simulation.state.clients.online.abs().max()) < 100


def test_a_device_that_repeats_itself_and_mixes_things_up_changes_nothing(dataset, caplog):
    """Replays, answers of other steps, rounds, clients and runs, and two frames at once, all of a device that is in."""
    config = RunConfig(**{**EVERYONE, "engine": "loop", "rounds": 2})
    expected = trained(Simulation(config, dataset))
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
        found = trained(simulation)
    finish(*devices)
    assert_same(found, expected)
    assert not loop.missed
    answers = len(said)
    assert answers == 2 * (simulation.steps + simulation.config.syncs_per_round)
    assert hub.counts.refused["frame"] == answers
    assert hub.counts.refused["stranger"] == hub.counts.refused["run"] == answers
    assert sum(hub.counts.refused.values()) == 8 * answers + sum(min(3, before) for before in range(answers))
    assert any(line.startswith("refused, number 1 of run: run: another") for line in caplog.messages)


@pytest.mark.parametrize("value", [[], {}, 1.5, True, 10**30, "\ud800", "1\n2", {"a": []}, -1, 99], ids=repr)
def test_a_hello_may_say_anything(value, dataset, caplog):
    simulation = Simulation(RunConfig(**TINY), dataset)
    with hub_of(simulation) as (hub, _), zmq.Context() as context, context.socket(zmq.DEALER) as peer:
        peer.linger = 0
        peer.connect(f"tcp://{hub.address}")
        for about in (
            {"token": "a", "client": value},
            {"token": value, "client": 1},
            {"token": "a", "client": None, "images": value},
        ):
            peer.send(pack(Message("hello", about=about)))
            assert peer.poll(1000 * LONG)
            assert unpack(peer.recv()).kind in ("refused", "welcome")
        device = Device(hub.address, None, 3, LONG)
        device.connect()
        assert device.client == 3
        device.close()
    assert not [record for record in caplog.records if record.exc_info]
    assert not any("\n" in line for line in caplog.messages)


def test_a_device_is_there_once_it_has_loaded_what_it_needs(dataset):
    simulation = Simulation(RunConfig(**TINY), dataset)
    with hub_of(simulation) as (hub, _):
        held = [about_run(simulation, client)["held"]["sha256"] for client in CLIENTS]
        device = Device(hub.address, None, None, LONG, images=held[2])
        device.connect()
        assert device.client == CLIENTS[2]  # whose images it has
        hub.wait(0.2)
        assert hub.present() == set()
        device._ready()
        wait_for(hub, 1)
        device.close()


def test_a_device_that_still_loads_is_told_of_the_end(dataset):
    simulation = Simulation(RunConfig(**TINY), dataset)
    with hub_of(simulation) as (hub, _):
        device, late = (Device(hub.address, None, client, LONG) for client in (1, 3))
        device.connect()
        ending = threading.Thread(target=hub.end, args=("finished",))
        ending.start()
        late.connect()
        for one in (device, late):
            one.work(None, None, None)
            assert one.ended == "finished"
            one.close()
        ending.join(LONG)
        assert not ending.is_alive()


def test_where_the_time_of_a_step_goes(dataset):
    simulation = Simulation(RunConfig(**{**EVERYONE, "rounds": 1}), dataset)

    class Slow(Observer):
        def stepped(self, batch, outcome):
            time.sleep(0.1)

    simulation.observers.append(Slow())
    with hub_of(simulation, clients=[3]) as (hub, _):
        device = Served(simulation, hub.address, 3, before_step=lambda device: time.sleep(0.05))
        wait_for(hub, 1)
        list(simulation.rounds())
        account = hub.accounts[3]
    finish(device)
    seconds = device.device.seconds
    assert 0.05 < account.compute_seconds < account.step_seconds
    assert seconds["compute"] > 0.05
    assert account.network_seconds < 0.04
    assert seconds["network"] < 0.04
    assert 0.01 < seconds["server"] < 0.5  # it begins when the answer is there, 50 ms into the server's sleep


def test_a_trace_can_be_recorded_meanwhile(dataset, tmp_path):
    simulation = Simulation(RunConfig(**{**EVERYONE, "engine": "loop", "rounds": 1}), dataset)
    with hub_of(simulation, clients=[3]) as (hub, loop):
        device = Served(simulation, hub.address, 3)
        wait_for(hub, 1)
        with Recorder(simulation, 3, tmp_path / "client.trace"):
            list(simulation.rounds())
        assert simulation.observers == [loop]
    finish(device)
    assert Trace(tmp_path / "client.trace").steps == simulation.steps


def test_whatever_comes_over_the_wire_the_round_ends_with_the_right_weights(dataset):
    """Random frames, mutations of real ones, other devices' answers, replays: 100,000 of them during a round."""
    config = RunConfig(**{**TINY, "engine": "loop", "rounds": 2})
    expected = trained(Simulation(config, dataset))
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
                if refused > 20_000 * simulation.step_index and simulation.step_index < simulation.steps - 1:
                    next(steps)  # in the middle of it
                hub.wait(0.01)
            assert refused == 100_000
            assert attacker.stdout.readline() == b"sent\n"
            assert 3 <= simulation.step_index < simulation.steps
            list(steps)
            attacker.stdin.close()
        list(simulation.rounds())
    finish(*devices)
    assert not loop.missed
    assert_same(simulation.state.tensors(), expected)


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
            patched.setattr("messages.VERSION", 2)
            other = Device(hub.address, None, None, 5.0)
            with patched.context() as as_now:
                frame = pack(Message("hello"))
                as_now.setattr("messages.VERSION", 1)
                other._send = lambda message: other._socket.poll(1000, zmq.POLLOUT) and other._socket.send(frame)
                with pytest.raises(Refused, match=r"^version: '2' is not spoken here; allowed: 1$"):
                    other.connect()
        any_that_is_free.connect()
        assert any_that_is_free.client == 1
        for device in (first, second, third, other, any_that_is_free):
            device.close()
        deadline = time.monotonic() + LONG
        while hub.present() and time.monotonic() < deadline:
            hub.wait(0.1)
        assert not hub.present()


def test_a_wrong_key_is_no_one(dataset, tmp_path):
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
            with pytest.raises(TimeoutError, match=f"^server: {hub.address} {reason}.*; allowed: one "):
                device.connect()
            device.close()
        assert not hub.present()
        assert hub.counts.refused["handshake"] >= 2
        known = Device(hub.address, keys.Keys.read(tmp_path / "ours" / "device-1.key", "device"), None, 5.0)
        known.connect()
        assert known.client in CLIENTS
        known.close()


def test_oversized_frames_end_the_connection_and_nothing_else(dataset, monkeypatch):
    monkeypatch.setitem(keys.OPTIONS, zmq.MAXMSGSIZE, 100_000)
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


def start(program, *arguments, log):
    with log.open("w") as output:
        return subprocess.Popen(
            [sys.executable, PROGRAMS / program, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )


@contextmanager
def programs(npz, folder, **settings):
    """A server and three clients as programs, with keys; all are killed in the end, whatever comes."""
    assert keys.main(["--devices", "3", "--out", str(folder / "keys")]) == 0
    argv = flags(
        dataset=npz, out=folder / "run", **settings, dashboard="off", device_clients="1,3,5", listen="127.0.0.1:0"
    )
    processes = {
        "server": start("server.py", *argv, "--key", folder / "keys" / "server.key", log=folder / "server.log")
    }

    def device(number, name):
        address = until(folder / "server.log", r"listening at").rpartition(" ")[2]
        key = folder / "keys" / f"device-{number}.key"
        extra = ["--server", address, "--key", key, "--out", folder / name, "--client-id", 2 * number - 1]
        processes[name] = start("client.py", *extra, log=folder / f"{name}.log")
        return processes[name]

    try:
        for number in (1, 2, 3):
            device(number, f"device-{number}")
        yield processes, device
    finally:
        for process in processes.values():
            process.kill()
            process.wait(LONG)


def until(log, text):
    """The line of a log that has a text, once it is there."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        for line in log.read_text().splitlines() if log.exists() else ():
            if text in line:
                return line
        time.sleep(0.02)
    raise AssertionError(f"{text} is not in {log}: {log.read_text()}")


def test_three_processes_give_the_simulations_metrics(npz, tmp_path):
    settings = {**EVERYONE, "engine": "loop", "rounds": 2}
    with programs(npz, tmp_path, **settings) as (processes, _):
        for name, process in processes.items():
            assert process.wait(90) == 0, (tmp_path / f"{name}.log").read_text()
    alone = flags(dataset=npz, out=tmp_path / "alone", **settings, dashboard="off")
    assert start("../experiments/run.py", *alone, log=tmp_path / "alone.log").wait(90) == 0
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == (tmp_path / "alone" / "metrics.jsonl").read_bytes()
    assert "0 frames refused, 0 answers missed" in (tmp_path / "server.log").read_text()
    for number in (1, 2, 3):
        result = json.loads((tmp_path / f"device-{number}" / "result.json").read_text())
        assert result["client"] == 2 * number - 1
        assert result["steps"] == 2 * 5
        assert set(result["step"]) == {"compute", "network", "server"}


def test_a_process_that_is_killed_is_done_without_and_another_takes_its_place(npz, tmp_path):
    settings = {**EVERYONE, "rounds": 60, "eval_every": 0, "checkpoint_every": 60, "device_timeout": 20}
    with programs(npz, tmp_path, **settings) as (processes, device):
        until(tmp_path / "server.log", "round 1/")
        processes["device-2"].send_signal(signal.SIGKILL)
        until(tmp_path / "run" / "devices.log", "client 3 is gone")
        device(2, "again")
        for name, process in processes.items():
            code = -signal.SIGKILL if name == "device-2" else 0
            assert process.wait(120) == code, (tmp_path / f"{name}.log").read_text()
    text = (tmp_path / "server.log").read_text()
    assert "round 60/60" in text
    assert "0 frames refused" in text
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    absences = [record for record in records if record["event"] == "absence"]
    assert absences[0]["clients"] == [3]
    last = max(record["round"] for record in absences)
    assert last < 60
    again = json.loads((tmp_path / "again" / "result.json").read_text())
    assert 0 < again["steps"] < 60 * 5


def test_energy_is_recorded_meanwhile(dataset, monkeypatch):
    """Of a meter that says 5 W while the device is there, and 2 W before and after."""
    monkeypatch.setattr(client, "IDLE_SECONDS", 0.5)
    simulation, found = Simulation(RunConfig(**{**EVERYONE, "rounds": 1}), dataset), {}
    meter = SimpleNamespace(name="bench", source="made up", uncertainty=0.05, estimated=False)
    with hub_of(simulation, clients=[3]) as (hub, _):
        meter.watts = lambda: 5.0 if hub.present() else 2.0
        arguments = client.parser().parse(["--server", hub.address, "--insecure", "--images", "own.npy"])
        monkeypatch.setattr(client, "from_file", lambda file: own_images(simulation, 3))
        console, stop = Output(file=io.StringIO()), SimpleNamespace(received=None)

        def take_part():
            found.update(client.take_part(console, arguments, None, meter, stop))

        device = threading.Thread(target=take_part, daemon=True)
        device.start()
        wait_for(hub, 1)
        time.sleep(1.0)
        list(simulation.rounds())
    device.join(LONG)
    energy, (begin, end) = found["energy"], found["spans"]["work"]
    assert not found["problem"]
    assert found["ended"] == "the server has stopped the run"
    idle = energy["idle_before"], energy["idle_after"]
    assert idle == pytest.approx((2.0, 2.0), abs=0.7)  # between two readings it is interpolated
    assert 3.0 < energy["mean_watts"] <= 5.0
    assert energy["joules"] == pytest.approx(energy["mean_watts"] * (end - begin))
    assert energy["joules_above_idle"] == pytest.approx((energy["mean_watts"] - sum(idle) / 2) * (end - begin))
    assert "bench ±5%" in energy["label"]
    assert found["steps"] == simulation.steps
