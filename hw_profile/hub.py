"""The server's end of the wire: which devices are there, and what they say."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import zmq
from zmq.auth.thread import ThreadAuthenticator

from keys import Keys, prepare
from messages import Message, pack, unpack

log = logging.getLogger(__name__)

ANSWERS = ("smashed", "weights")
"""What devices say when they are asked to."""


class Known:
    """Lets in those whose public keys are known; asked by the authenticator."""

    def __init__(self, peers: Collection[str]):
        self._peers = {peer.encode() for peer in peers}

    def callback(self, domain: str, key: bytes) -> bool:
        """Whether a device with this key may talk."""
        known = key in self._peers
        if not known:
            log.warning("a device with an unknown key was turned away")
        return known


def owner(frame: zmq.Frame, identity: bytes) -> str:
    """The public key that a frame's sender has shown; in plain text, where there is none, its connection."""
    try:
        return frame.get("User-Id") or identity.hex()
    except zmq.ZMQError:
        return identity.hex()


@dataclass
class Traffic:
    """Bytes of whole frames, and frames that were refused."""

    up: int = 0
    down: int = 0
    refused: int = 0
    reasons: dict[str, int] = field(default_factory=dict)


class Hub:
    """Talks to devices, one frame at a time; whatever comes, it goes on.

    Args:
        address: ``host:port`` to listen at.
        keys: the server's, and its devices'; None for plain text, on the loopback device alone.
        run: the run's id, which every message has to carry.
        clients: ids that devices may take.
        about: what the network is (`simsfl.recorder.about_client`), for those who come.

    Raises:
        ValueError: the address is taken, or not to be had.
    """

    def __init__(self, address: str, keys: Keys | None, run: str, clients: Collection[int], about: Mapping[str, Any]):
        self.run, self.clients, self._about = run, sorted(clients), about
        self.traffic = Traffic()
        self.devices: dict[int, bytes] = {}
        self.fresh: set[int] = set()
        self._owners: dict[int, str] = {}
        self._answers: dict[int, Message] = {}
        self._context = zmq.Context()
        self._guard = ThreadAuthenticator(self._context) if keys else None
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        prepare(self._socket, keys)
        if keys:
            self._guard.start()
            self._guard.configure_curve_callback("*", credentials_provider=Known(keys.peers))
            self._socket.curve_server = True
        try:
            self._socket.bind(f"tcp://{address}")
        except zmq.ZMQError as error:
            self.close()
            raise ValueError(f"listen: {address} cannot be had ({error}); allowed: a free port") from error

    def close(self) -> None:
        """Let go of the port."""
        self._socket.close()
        if self._guard and self._guard.is_alive():
            self._guard.stop()
        self._context.term()

    def attend(self) -> None:
        """Hear who has come since."""
        self._hear(0.0)

    def send(self, client: int, message: Message) -> None:
        """To the device of a client; one that has gone is forgotten."""
        if not self._deliver(self.devices[client], message):
            self.forget(client)

    def collect(self, kind: str, clients: Collection[int], round: int, step: int, timeout: float) -> dict[int, Message]:
        """What these clients' devices answer to a round's step, by client; those that do not in time are left out."""
        answers: dict[int, Message] = {}
        deadline = time.monotonic() + timeout
        while missing := set(clients) - answers.keys():
            for client in missing & self._answers.keys():
                message = self._answers.pop(client)
                if (message.kind, message.round, message.step) == (kind, round, step):
                    answers[client] = message
                else:
                    self._refuse(f"{message.kind}: of another step than was asked for")
            left = deadline - time.monotonic()
            if answers.keys() >= set(clients) or left <= 0:
                break
            self._hear(left)
        return answers

    def forget(self, client: int) -> None:
        """A device is gone, until it says hello again."""
        self.devices.pop(client, None)
        self._answers.pop(client, None)

    def _hear(self, timeout: float) -> None:
        """Wait so long for a frame, and take all that are there: answer hellos, keep answers, refuse the rest."""
        while self._socket.poll(1000 * timeout):
            timeout = 0.0
            first, *frames = self._socket.recv_multipart(copy=False)
            self.traffic.up += sum(map(len, frames))
            try:
                if len(frames) != 1:
                    raise ValueError(f"frame: {len(frames)} of them; allowed: one")
                message = unpack(frames[0].bytes)
                if message.kind == "hello":
                    self._welcome(first.bytes, owner(frames[0], first.bytes), message)
                    continue
                if message.kind not in ANSWERS or self.devices.get(message.client) != first.bytes:
                    raise ValueError(f"{message.kind}: of one who has not said hello as client {message.client}")
                if message.run != self.run:
                    raise ValueError("run: another")
                if message.client in self._answers:
                    raise ValueError(f"{message.kind}: a second answer, before the first was asked for")
                self._answers[message.client] = message  # a device waits for what comes of it before it says more
            except ValueError as error:
                self._refuse(str(error))
                if str(error).startswith("version"):
                    self._deliver(first.bytes, Message("refused", self.run, about={"reason": str(error)}))

    def _refuse(self, reason: str) -> None:
        """Write down what was not taken."""
        self.traffic.refused += 1
        kind = reason.partition(":")[0][:40]
        self.traffic.reasons[kind] = self.traffic.reasons.get(kind, 0) + 1
        log.warning("refused: %s", reason[:200])

    def _welcome(self, identity: bytes, key: str, hello: Message) -> None:
        """Give a device the client id that it asks for, or any that is free; one that it had is its own again."""
        free = [client for client in self.clients if client not in self.devices or self._owners[client] == key]
        wanted = hello.about.get("client")
        client = free[0] if wanted is None and free else wanted
        if client not in free or type(client) is not int:
            taken = f"client_id: {str(wanted)[:20]} is taken, or none of a device's; allowed: {free or 'none is free'}"
            self._deliver(identity, Message("refused", self.run, about={"reason": taken}))
            raise ValueError(taken)
        self.devices[client], self._owners[client] = identity, key
        self.fresh.add(client)
        self._deliver(identity, Message("welcome", self.run, client, about=dict(self._about)))
        log.info("client %d has come", client)

    def _deliver(self, identity: bytes, message: Message) -> bool:
        """Send a message; whether there is still somebody to take it."""
        frame = pack(message)
        try:
            self._socket.send_multipart([identity, frame], flags=zmq.NOBLOCK)
        except zmq.ZMQError as error:
            log.warning("%s for client %d could not be delivered (%s)", message.kind, message.client, error)
            return False
        self.traffic.down += len(frame)
        return True
