"""Devices in threads, for tests: a hub with its loop, and devices that may misbehave."""

import threading
import time
from contextlib import contextmanager, nullcontext

import torch
import zmq

from simsfl.hw_profile.devices.device import Device, Refused
from simsfl.hw_profile.devices.hub import Hub
from simsfl.hw_profile.devices.loop import DeviceLoop, about_run
from simsfl.hw_profile.devices.messages import pack
from simsfl.hw_profile.runtimes.client_work import make_client
from tests.conftest import TINY

CLIENTS = (1, 3, 5)
LONG = 60.0
"""Seconds after which a test gives up waiting for something that should have happened long before."""
EVERYONE = {**TINY, "cohort": 8}


@contextmanager
def hub_of(simulation, own_keys=None, clients=CLIENTS):
    """Let devices take part in a simulation inside this context, as any of `clients`; yield the hub and its loop."""
    hub = Hub("127.0.0.1:0", own_keys, "run", {client: about_run(simulation, client) for client in clients})
    loop = DeviceLoop(simulation, hub, LONG)
    try:
        yield hub, loop
    finally:
        loop.end("stopped")
        hub.close()


class Served(threading.Thread):
    """A device in a thread.

    Args:
        simulation: the run that it takes part in.
        address: address of the server.
        number: id of the client that it is.
        runtime: what computes its part, "torch" or "lean".
        leave_after: number of steps after which it vanishes without a goodbye; None to stay.
        before_step: called with the device before each step.
        says: function from a message to the messages that are sent instead of it; a pair of messages is sent as a
            message of two frames.
    """

    def __init__(self, simulation, address, number, runtime="torch", leave_after=None, before_step=None, says=None):
        super().__init__(daemon=True)
        self.left = threading.Event()
        self.device = Device(address, None, number, LONG, is_over=self.left.is_set)
        self.pixels = simulation.dataset.train.pixels[torch.from_numpy(simulation.parts.partition[number])].numpy()
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
            if self.left.is_set():  # like a device that is unplugged, it says no goodbye
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
    """Wait until devices have ended, and raise an error that one of them had."""
    for device in devices:
        device.join(LONG)
        assert not device.is_alive()
        assert device.error is None


def wait_until(hub, condition):
    """Wait until a condition holds; it is looked at again whenever a device comes, goes or sends something."""
    deadline = time.monotonic() + LONG
    while not condition() and time.monotonic() < deadline:
        hub.wait(0.1)
    assert condition()


def wait_for(hub, count):
    """Wait until `count` devices are there and ready."""
    wait_until(hub, lambda: len(hub.present()) == count)


def assert_near(simulation, alone, names):
    """Compare the named tensors of two simulations, of which one has devices and the other does not."""
    found, expected = simulation.state.tensors(), alone.state.tensors()
    for name in names:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-3, msg=name)
