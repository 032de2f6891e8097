"""A device's end of the wire: it does a client's work when the server asks for it, with images of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import zmq

from client_work import Client, Clock, put
from keys import Keys, prepare
from messages import Message, pack, unpack
from simsfl.trace import STATE, VIEWS

POLL_SECONDS = 0.2
FIRST_WAIT, LONGEST_WAIT = 0.5, 8.0
"""Seconds for an answer to a hello: twice as long each time."""


class Refused(ValueError):
    """The server does not take this device."""


class Device:
    """One client, on the wire.

    Args:
        server: ``host:port``.
        keys: the device's, and its server's; None for plain text.
        client: the id that it wants to be; None for any.
        patience: seconds to try to reach the server for.

    Attributes:
        about: what the server says of the network, once `connect` is done.
        client: the id that it has.
        up, down: bytes of whole frames.
    """

    def __init__(self, server: str, keys: Keys | None, client: int | None, patience: float):
        self.server, self._wanted, self._patience = server, client, patience
        self.about: Mapping[str, Any] = {}
        self.run, self.client, self.up, self.down = "", -1, 0, 0
        self.over = threading.Event()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        prepare(self._socket, keys)
        if keys:
            self._socket.curve_serverkey = keys.peers[0].encode()
        self._socket.connect(f"tcp://{server}")

    def close(self) -> None:
        """Go."""
        self._socket.close()
        self._context.term()

    def connect(self) -> None:
        """Say hello until the server answers.

        Raises:
            Refused: it does not want this device.
            TimeoutError: it does not answer, which is also what a wrong key leads to.
        """
        deadline, wait = time.monotonic() + self._patience, FIRST_WAIT
        while time.monotonic() < deadline and not self.over.is_set():
            self._send(Message("hello", about={"client": self._wanted}))
            answer = self._receive(wait)
            if answer and answer.kind == "refused":
                raise Refused(str(answer.about.get("reason", "the server refuses"))[:300])
            if answer and answer.kind == "welcome":
                self.about, self.run, self.client = answer.about, answer.run, answer.client
                return
            wait = min(2 * wait, LONGEST_WAIT)
        raise TimeoutError(f"server: {self.server} does not answer; allowed: one that runs, with this device's key")

    def work(self, client: Client, images: np.ndarray, clock: Clock, step_done: Callable[[int, int], None]) -> None:
        """Take part until the server says bye, or `over` is set.

        Args:
            client: does the computing (`client_work.make_client`).
            images: ``[n, 3, H, H]`` uint8, the client's own.
            clock: of the phases of a step; "network" is the wait for the server.
            step_done: told of each round and step.
        """
        message = self._next(clock, ("round",))
        while message is not None:
            message = self._round(message, client, images, clock, step_done) or self._next(clock, ("round",))

    def _round(
        self,
        task: Message,
        client: Client,
        images: np.ndarray,
        clock: Clock,
        step_done: Callable[[int, int], None],
    ) -> Message | None:
        """Do a round; the next one's message, if that has come in the middle."""
        put(client, {name: array for name, array in task.arrays.items() if name in STATE})
        rows, optimiser = task.arrays["rows"], self.about["optimiser"]
        for step in range(task.about["first"], len(rows)):
            parameters = {name: task.arrays[f"views/{name}"][step] for name in VIEWS}
            with clock("views"):
                views = client.views(images[rows[step]], parameters)
            with clock("query"):
                query = client.query(views[0])
            with clock("momentum"):
                client.move(optimiser["tau"])
            with clock("key"):
                key = client.key(views[1])
            self._answer("smashed", task, step, {"query": query, "key": key})
            message = self._next(clock, ("gradient", "round"), task.round, step)
            if message is None or message.kind == "round":
                return message
            with clock("backward"):
                client.backward(message.arrays["gradient"])
            with clock("sgd"):
                client.descend(task.about["lr"][step], optimiser["momentum"], optimiser["weight_decay"])
            if step in task.about["syncs"]:
                self._answer("weights", task, step, {name: getattr(client, name) for name in self.about["averaged"]})
                message = self._next(clock, ("average", "round"), task.round, step)
                if message is None or message.kind == "round":
                    return message
                put(client, {name: array for name, array in message.arrays.items() if name in STATE})
            step_done(task.round, step)
        return None

    def _answer(self, kind: str, task: Message, step: int, arrays: Mapping[str, np.ndarray]) -> None:
        self._send(Message(kind, self.run, self.client, task.round, step, arrays))

    def _next(self, clock: Clock, kinds: tuple[str, ...], round: int = -1, step: int = -1) -> Message | None:
        """The next message of these kinds, a new round at any time; None when it is over."""
        heard = time.monotonic()
        with clock("network"):
            while not self.over.is_set():
                message = self._receive(POLL_SECONDS)
                if message is None:
                    if time.monotonic() - heard > self._patience:
                        self.connect()  # which the server may have forgotten
                        heard = time.monotonic()
                    continue
                heard = time.monotonic()
                if message.kind == "bye":
                    return None
                if message.kind in kinds and (
                    message.kind == "round" or (message.round, message.step) == (round, step)
                ):
                    return message
        return None

    def _send(self, message: Message) -> None:
        frame = pack(message)
        self.up += len(frame)
        self._socket.send(frame)

    def _receive(self, seconds: float) -> Message | None:
        """A message, if one comes in time; what is none is passed over."""
        if not self._socket.poll(1000 * seconds):
            return None
        frame = self._socket.recv()
        self.down += len(frame)
        try:
            return unpack(frame)
        except ValueError as error:
            if str(error).startswith("version"):
                raise Refused(f"server: {error}") from error
            return None
