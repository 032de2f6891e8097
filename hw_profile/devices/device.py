"""A device's end of the wire: it does a client's work with its own images when the server asks for it."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import zmq
from zmq.utils.monitor import recv_monitor_message

from simsfl.hw_profile.devices.keys import Keys, prepare
from simsfl.hw_profile.devices.messages import Message, pack, unpack
from simsfl.hw_profile.meters.stopwatch import smoothed
from simsfl.hw_profile.runtimes.client_work import Client, Clock, put
from simsfl.runs.client_trace import STATE, VIEWS

_POLL_SECONDS = 0.2
"""Seconds to wait for a message before looking whether to leave."""
_SEND_SECONDS = 1.0
"""Seconds that a frame may wait until the connection takes it; after that the connection counts as lost."""
_RETRY_MS, _LONGEST_RETRY_MS = 250, 8000
"""Milliseconds between attempts to reach the server, at first and at most; each wait is twice the one before."""


class Refused(ValueError):
    """Raised where the server does not accept this device."""


class Device:
    """One client that takes part in a simulation over the network.

    Args:
        server: address of the server, ``host:port``.
        keys: keys of the device and of its server; None for plain text.
        client: id of the client to be; None for any free one, preferably the one that holds `images`.
        patience: seconds to try to reach the server, at first and whenever the connection is lost.
        images: `messages.digest` of the client's images, if the device has them already.
        tell: called with each event, in words.
        is_over: returns whether to leave.

    Attributes:
        about: what the server says about the run and the client, after `connect`.
        run, client: id of the run, and id of the client that this device is.
        ended: how the run ended, in the server's words; empty before.
        connected: whether the server is connected, and has welcomed this device.
        round, step, steps: indices of the round and step under way, from 0, and number of steps in the round; None
            outside of rounds.
        done: number of steps done.
        up, down: bytes of whole frames sent and received.
        seconds: seconds of a step, averaged over the latest steps, by part: "compute" on this device, "network", and
            "server" for the wait for the server and the other clients.

    Raises:
        ValueError: `server` is not an address.
    """

    def __init__(
        self,
        server: str,
        keys: Keys | None,
        client: int | None,
        patience: float,
        images: str | None = None,
        tell: Callable[[str], None] = lambda text: None,
        is_over: Callable[[], bool] = lambda: False,
    ):
        self.server, self._wanted, self._patience, self._images = server, client, patience, images
        self._tell, self._is_over = tell, is_over
        self.about: Mapping[str, Any] = {}
        self.run, self.client = "", -1
        self.connected = False
        self.round = self.step = self.steps = None
        self.done = self.up = self.down = 0
        self.seconds: dict[str, float] = {}
        self.ended, self._loaded = "", False
        self._token = secrets.token_hex(8)
        self._away = self._heard = time.perf_counter()
        suitable = "knows this device's key" if keys else "was started with --insecure"
        self._why = f"does not answer; allowed: a running server that {suitable}"
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        prepare(self._socket, keys)
        self._socket.setsockopt(zmq.IMMEDIATE, 1)  # no frame waits for a connection: a new one begins with a hello
        self._socket.setsockopt(zmq.RECONNECT_IVL, _RETRY_MS)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, _LONGEST_RETRY_MS)
        if keys:
            self._socket.curve_serverkey = keys.peers[0].encode()
        self._monitor = self._socket.get_monitor_socket()
        self._poller = zmq.Poller()
        for socket in (self._socket, self._monitor):
            self._poller.register(socket, zmq.POLLIN)
        try:
            self._socket.connect(f"tcp://{server}")
        except zmq.ZMQError as error:
            self.close()
            raise ValueError(f"server: {server} is no address ({error}); allowed: HOST:PORT") from error

    def close(self) -> None:
        """Say bye if connected, and close the connection."""
        if self.connected:
            self._send(Message("bye", self.run, self.client))
            self.connected = False
        self._socket.disable_monitor()
        self._monitor.close()
        self._socket.close()
        self._context.term()

    def connect(self) -> None:
        """Wait until the server welcomes this device, or `is_over` says to leave.

        Raises:
            Refused: the server does not accept this device.
            TimeoutError: there is no welcome within the device's patience.
        """
        while not self.connected and not self._is_over():
            self._listen()

    def work(
        self, client: Client, images: np.ndarray, clock: Clock, step_done: Callable[[int, int], None] | None = None
    ) -> None:
        """Take part in rounds until the server says bye, or `is_over` says to leave.

        Args:
            client: does the computing (`client_work.make_client`).
            images: ``[n, 3, H, H]`` uint8, the client's own images.
            clock: times the phases of a step.
            step_done: called with the round and step after each step.

        Raises:
            Refused, TimeoutError: as in `connect`, whenever the connection was lost.
        """
        self._loaded = True
        self._ready()
        task = self._next("round")
        while task is not None:
            task = self._round(task, client, images, clock, step_done) or self._next("round")

    def _round(
        self,
        task: Message,
        client: Client,
        images: np.ndarray,
        clock: Clock,
        step_done: Callable[[int, int], None] | None,
    ) -> Message | None:
        """Do a round or what is left of it; return the message of another round if one begins before the end."""
        put(client, {name: array for name, array in task.arrays.items() if name in STATE})
        rows, optimiser, learns = task.arrays["rows"], self.about["optimiser"], self.about["learns"]
        self.round, self.steps = task.round, len(rows)
        for step in range(task.step, len(rows)):
            self.step = step
            parameters = {name: task.arrays[f"views/{name}"][step] for name in VIEWS}
            with clock("views"):
                views = client.views(images[rows[step]], parameters)
            with clock("query"):
                query = client.query(views[0], learns=learns)
            with clock("momentum"):
                client.move(optimiser["tau"])
            with clock("key"):
                key = client.key(views[1])
            answer = self._ask("smashed", {"query": query, "key": key}, "gradient")
            if answer is None or answer.kind == "round":
                return answer
            if learns:
                with clock("backward"):
                    client.backward(answer.arrays["gradient"])
                with clock("sgd"):
                    client.descend(task.about["lr"][step], optimiser["momentum"], optimiser["weight_decay"])
            if self.about["averaged"] and step in task.about["syncs"]:
                own = {name: getattr(client, name) for name in self.about["averaged"]}
                answer = self._ask("weights", own, "average")
                if answer is None or answer.kind == "round":
                    return answer
                with clock("sync"):
                    put(client, answer.arrays)
            self.done += 1
            if step_done:
                step_done(task.round, step)
        self.round = self.step = self.steps = None
        return None

    def _ask(self, kind: str, arrays: Mapping[str, np.ndarray], answer: str) -> Message | None:
        """Send what the server waits for, and return its answer, or what `_next` returns instead of it."""
        sent = time.perf_counter()
        about = {"compute": sent - self._heard}
        if kind == "smashed":
            self._note("compute", about["compute"])
        self._send(Message(kind, self.run, self.client, self.round, self.step, arrays, about))
        message = self._next(answer)
        if message and kind == "smashed" and message.kind == answer:
            waited = self._heard - sent
            server = min(message.about.get("server", 0.0), waited)
            self._note("server", server)
            self._note("network", waited - server)
        return message

    def _note(self, part: str, seconds: float) -> None:
        """Update the average of one part of a step."""
        self.seconds[part] = smoothed(self.seconds.get(part), seconds)

    def _next(self, kind: str) -> Message | None:
        """Return the next message of this kind for the present step, or one that begins a round; None at the end."""
        while not self._is_over() and not self.ended:
            message = self._listen()
            if message is None:
                continue
            here = (message.round, message.step) == (self.round, self.step)
            if message.kind == "round" or (message.kind == kind and here):
                self._heard = time.perf_counter()
                return message
        return None

    def _listen(self) -> Message | None:
        """Return a message if one comes soon; say hello after a connection is made or the server dismisses this device.

        Raises:
            Refused: the server does not accept this device.
            TimeoutError: there has been no welcome within the device's patience.
        """
        ready = dict(self._poller.poll(1000 * _POLL_SECONDS))
        if self._monitor in ready:
            self._see(recv_monitor_message(self._monitor)["event"])
        if not self.connected and time.perf_counter() - self._away > self._patience:
            raise TimeoutError(f"server: {self.server} {self._why}")
        if self._socket not in ready:
            return None
        try:
            frame = self._socket.recv(zmq.NOBLOCK)
        except zmq.Again:  # the frame was lost with its connection
            return None
        self.down += len(frame)
        try:
            message = unpack(frame)
        except ValueError as error:
            if str(error).startswith("version"):
                raise Refused(f"server: {error}") from error
            return None  # such as the empty frame by which the server tests the connection
        if message.kind == "refused":
            raise Refused(str(message.about.get("reason", "server: refuses this device"))[:300])
        if message.kind == "dismissed":
            self._lost("the server has gone on without this device, which takes part again from the next averaging on")
            self._hello()
        if message.kind == "welcome":
            self._welcomed(message)
        if message.kind == "bye":
            self.ended = str(message.about.get("ended", "ended"))
        return message

    def _see(self, event: zmq.Event) -> None:
        """React to an event of the connection."""
        if event == zmq.Event.HANDSHAKE_SUCCEEDED:
            self._hello()
        elif event == zmq.Event.HANDSHAKE_FAILED_AUTH:
            self._why = "does not know this device's key; allowed: a key that was made together with its server.key"
        elif event == zmq.Event.DISCONNECTED and self.connected:
            self._lost("the connection is lost; trying again")

    def _lost(self, text: str) -> None:
        """Note and report that the server may have dropped this device, until it is welcomed again."""
        self.connected, self._away = False, time.perf_counter()
        self.round = self.step = self.steps = None
        self._tell(text)

    def _hello(self) -> None:
        """Ask to be accepted, as the client that this device was before or wants to be."""
        wanted = self._wanted if self.client < 0 else self.client
        self._send(Message("hello", about={"client": wanted, "token": self._token, "images": self._images}))

    def _ready(self) -> None:
        """Say that rounds may begin."""
        self._send(Message("ready", self.run, self.client))

    def _welcomed(self, message: Message) -> None:
        """Note what the server says about the run.

        Raises:
            Refused: the server has another run than before.
        """
        if self.about and any(message.about.get(name) != self.about[name] for name in ("network", "held")):
            raise Refused(f"server: {self.server} has another run now; allowed: a new start of this device")
        self.about, self.run, self.client = message.about, message.run, message.client
        self.connected = True
        if self._loaded:
            self._ready()
        self._tell(f"client {self.client} of run {self.run} at {self.server}")

    def _send(self, message: Message) -> None:
        """Send a message; if no connection takes it, it is lost together with the connection, and a hello follows."""
        frame = pack(message)
        if self._socket.poll(1000 * _SEND_SECONDS, zmq.POLLOUT):
            self._socket.send(frame, zmq.NOBLOCK)
            self.up += len(frame)
