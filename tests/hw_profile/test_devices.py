"""Devices in the loop: the result is the simulation's, whatever else comes over the wire, and whoever goes."""

import socket
import threading
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import torch
import zmq
from conftest import TINY

from client_work import make_client
from device import Device
from device_loop import DeviceLoop, about_run
from hub import Hub
from simsfl import RunConfig, Simulation

HARDWARE = Path(__file__).parents[2] / "hw_profile"
CLIENTS = (1, 3, 5)
LONG = 20.0


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def hub_of(simulation, keys_file=None, timeout=LONG):
    hub = Hub(f"127.0.0.1:{free_port()}", keys_file, "run", CLIENTS, about_run(simulation))
    hub.address = hub._socket.getsockopt(zmq.LAST_ENDPOINT).decode().removeprefix("tcp://")
    try:
        yield hub, DeviceLoop(simulation, hub, timeout)
    finally:
        hub.close()


def serve(simulation, address, number, runtime="torch", steps=None):
    """A device, in a thread; it leaves without a word after so many steps."""
    device, count = Device(address, None, number, LONG), [0]
    pixels = simulation.dataset.train.pixels[torch.from_numpy(simulation.partition[number])].numpy()

    def step_done(round_index, step):
        count[0] += 1
        if steps and count[0] == steps:
            device.over.set()

    def work():
        try:
            device.connect()
            device.work(
                make_client(device.about, runtime, precision="fp32"), pixels, lambda _: nullcontext(), step_done
            )
        finally:
            device.close()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def wait_for(hub, count):
    deadline = time.monotonic() + LONG
    while len(hub.devices) < count and time.monotonic() < deadline:
        hub.attend()
        time.sleep(0.01)
    assert len(hub.devices) == count


def trained(simulation):
    list(simulation.rounds())
    return simulation.state.tensors()


SETTINGS = {
    "loop": {"engine": "loop", "cohort": 4},
    "cut 2, aligned": {"engine": "loop", "cut_layer": 2, "align_momentum": True},
    "batch norm": {"engine": "loop", "norm": "batch", "weight_standardisation": False},
    "stacked": {"rounds": 1},
}


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_the_result_is_the_simulations(setting, dataset):
    config = RunConfig(**{**TINY, **setting})
    expected = trained(Simulation(config, dataset))
    simulation = Simulation(config, dataset)
    with hub_of(simulation) as (hub, loop):
        threads = [serve(simulation, hub.address, number) for number in CLIENTS]
        wait_for(hub, 3)
        found = trained(simulation)
        loop.end()
        for thread in threads:
            thread.join(LONG)
    exact = setting.get("engine") == "loop"
    for name in expected if exact else ("server.online", "clients.online"):
        tolerance = 0 if exact else 1e-3
        torch.testing.assert_close(found[name], expected[name], rtol=tolerance, atol=tolerance, msg=name)
    assert not loop.lost
    assert hub.traffic.refused == 0


def test_either_runtime_takes_part(dataset):
    config = RunConfig(**{**TINY, "engine": "loop", "rounds": 1, "cohort": 8})
    expected = trained(Simulation(config, dataset))
    simulation = Simulation(config, dataset)
    with hub_of(simulation) as (hub, loop):
        hub.clients = [3]
        thread = serve(simulation, hub.address, 3, runtime="lean")
        wait_for(hub, 1)
        found = trained(simulation)
        loop.end()
        thread.join(LONG)
    torch.testing.assert_close(found["server.online"], expected["server.online"], rtol=1e-3, atol=1e-3)


def test_bytes_are_the_cost_models_and_a_little_more(dataset):
    simulation = Simulation(RunConfig(**{**TINY, "cohort": 8}), dataset)
    with hub_of(simulation) as (hub, loop):
        threads = [serve(simulation, hub.address, number) for number in CLIENTS]
        wait_for(hub, 3)
        before = hub.traffic.up, hub.traffic.down
        list(simulation.rounds())
        up, down = hub.traffic.up - before[0], hub.traffic.down - before[1]
        loop.end()
        for thread in threads:
            thread.join(LONG)
    share = len(CLIENTS) / 8
    frames = 3 * len(CLIENTS) * (simulation.steps + 2)
    assert share * simulation.traffic.up <= up < share * simulation.traffic.up + 400 * frames
    assert share * simulation.traffic.down <= down < share * simulation.traffic.down + 3000 * frames


def test_a_device_that_leaves_is_done_without_and_may_return(dataset):
    simulation = Simulation(RunConfig(**{**TINY, "cohort": 8, "rounds": 3}), dataset)
    with hub_of(simulation, timeout=0.5) as (hub, loop):
        serve(simulation, hub.address, 1, steps=simulation.steps + 1)
        threads = [serve(simulation, hub.address, number) for number in (3, 5)]
        wait_for(hub, 3)
        rounds = simulation.rounds()
        next(rounds), next(rounds)
        assert {(lost[0], lost[2]) for lost in loop.lost} == {(2, 1)}
        assert set(hub.devices) == {3, 5}
        threads.append(serve(simulation, hub.address, 1))
        wait_for(hub, 3)
        next(rounds)
        assert len(loop.lost) == 1
        assert not loop.absent
        loop.end()
        for thread in threads:
            thread.join(LONG)
