"""The server's end of the wire: which devices are there, and what they answer, heard by a thread of its own."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import zmq
from zmq.auth.thread import ThreadAuthenticator
from zmq.utils.monitor import recv_monitor_message

from simsfl.hw_profile.devices.keys import Keys, prepare
from simsfl.hw_profile.devices.messages import Message, pack, unpack
from simsfl.hw_profile.meters.stopwatch import smoothed

log = logging.getLogger("devices")

PRESENCE_SECONDS = 1.0
"""How often it is found out who is there still."""
PARTING_SECONDS = 10.0
"""In which devices may end what they are computing."""
WAITING_FRAMES = 16
"""Of each sender: those of one who talks too much wait there."""
FAILED = zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_AUTH

Ask = tuple[str, int, int]
"""An answer that a device owes: kind, round and step."""


class Known:
    """Lets in those whose public keys are known; asked by the authenticator, in its thread."""

    def __init__(self, peers: Collection[str]):
        self._peers = {peer.encode() for peer in peers}

    def callback(self, domain: str, key: bytes) -> bool:
        """Whether a device with this key may talk."""
        return key in self._peers


@dataclass
class Account:
    """What a client's device has sent and done, over all its connections; times are averages of the latest."""

    bytes_up: int = 0
    """Of whole frames."""
    bytes_down: int = 0
    steps: int = 0
    step_seconds: float | None = None
    compute_seconds: float | None = None
    network_seconds: float | None = None


@dataclass
class Peer:
    """A device that has said hello, by its connection."""

    identity: bytes
    owner: str
    """The device's public key; in plain text a word that it has given itself, and keeps over connections."""
    ready: bool = False
    """Whether it has loaded what it needs."""
    fresh: bool = True
    """Whether it has had no round yet, and so has no weights."""
    asked: Ask | None = None
    told: float = 0.0
    """When it was asked, as `time.perf_counter` has it; `answered`: when its latest answer came."""
    answer: Message | None = None
    answered: float | None = None
    step: tuple[int, float] | None = None
    """Round and time of its latest step."""


@dataclass
class Counts:
    """Bytes of whole frames, and what was refused, by reason."""

    up: int = 0
    down: int = 0
    refused: dict[str, int] = field(default_factory=dict)


class Hub:
    """Talks to devices; whatever comes, it goes on.

    Args:
        address: ``host:port`` to listen at; port 0 for any that is free.
        keys: the server's, and its devices'; None for plain text, on the loopback device alone.
        run: the run's id, which every message has to carry.
        about: what is said to a device that comes, by the client that it may be.

    Attributes:
        address: where it listens.
        accounts: of each client that may be a device.

    Raises:
        ValueError: the address is taken, or not to be had.
    """

    def __init__(self, address: str, keys: Keys | None, run: str, about: Mapping[int, Mapping[str, Any]]):
        self.run, self._about = run, about
        self.accounts = {client: Account() for client in sorted(about)}
        self.counts = Counts()
        self._peers: dict[int, Peer] = {}
        self._news = threading.Condition()
        self._checked = 0.0
        self._came = self._disconnected = 0
        self._how = ""
        self._failure: Exception | None = None
        self._context = zmq.Context()
        self._guard = ThreadAuthenticator(self._context) if keys else None
        self._router = self._context.socket(zmq.ROUTER)
        self._router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._router.setsockopt(zmq.RCVHWM, WAITING_FRAMES)
        prepare(self._router, keys)
        self._monitor = self._router.get_monitor_socket(FAILED | zmq.EVENT_DISCONNECTED)
        self._inlet, self._outlet = self._context.socket(zmq.PAIR), self._context.socket(zmq.PAIR)
        self._outlet.bind("inproc://out")
        self._inlet.connect("inproc://out")
        if keys:
            self._guard.start()
            self._guard.configure_curve_callback("*", credentials_provider=Known(keys.peers))
            self._router.curve_server = True
        self._thread = threading.Thread(target=self._serve, daemon=True)
        try:
            self._router.bind(f"tcp://{address}")
        except zmq.ZMQError as error:
            self._release()
            why = error.strerror.partition(" (")[0]
            raise ValueError(
                f"listen: {address} cannot be had ({why}); allowed: a free port of this machine"
            ) from error
        self.address = self._router.getsockopt_string(zmq.LAST_ENDPOINT).removeprefix("tcp://").rstrip("\0")
        self._thread.start()

    def end(self, how: str) -> None:
        """Say bye to all devices, and wait until they have, too: what is not read yet goes with a connection.

        Args:
            how: the run has ended, for people.
        """
        with self._news:
            self._how = how
            there = list(self._peers)
        for client in there:
            self.send(client, self._bye(client), whole=True)
        deadline = time.monotonic() + PARTING_SECONDS
        while self._peers and (left := deadline - time.monotonic()) > 0:
            self.wait(left)

    def _bye(self, client: int) -> Message:
        return Message("bye", self.run, client, about={"ended": self._how})

    def _refusal(self, reason: str) -> Message:
        return Message("refused", self.run, about={"reason": reason})

    def close(self) -> None:
        """Send what is to be sent, and let go of the port."""
        self._inlet.send(b"")
        self._thread.join()
        self._release()

    def _release(self) -> None:
        self._router.disable_monitor()
        for socket in (self._router, self._monitor, self._inlet, self._outlet):
            socket.close()
        if self._guard:
            self._guard.stop()
        self._context.term()

    def present(self) -> set[int]:
        """Clients whose devices are there, and ready."""
        with self._news:
            return {client for client, peer in self._peers.items() if peer.ready}

    def is_fresh(self, client: int) -> bool:
        """Whether the client's device is there, and has no weights yet."""
        with self._news:
            return client in self._peers and self._peers[client].fresh

    def send(self, client: int, message: Message, asks: Ask | None = None, *, whole: bool = False) -> bool:
        """To the device of a client; whether it is there, and has what it needs to make use of the message.

        Args:
            asks: the answer that is expected.
            whole: whether the message has all that a device needs that has just come.
        """
        with self._news:
            peer, now = self._peers.get(client), time.perf_counter()
            if peer is None or (peer.fresh and not whole):
                return False
            if peer.answered is not None:
                message = replace(message, about={**message.about, "server": now - peer.answered})
            frame = pack(message)
            peer.fresh, peer.asked, peer.answer, peer.told, peer.answered = False, asks, None, now, None
            self._count_down(client, frame)
        self._inlet.send_multipart([peer.identity, frame])
        return True

    def collect(
        self, clients: Collection[int], timeout: float, meanwhile: Callable[[], None] = lambda: None
    ) -> dict[int, Message]:
        """What these clients' devices answer to what they were last asked, by client.

        Those that do not in time are dismissed; those that have gone are not waited for. Where that takes long,
        `meanwhile` is called now and then.
        """
        deadline = time.monotonic() + timeout
        with self._news:
            while (late := [c for c in clients if c in self._peers and self._peers[c].asked]) and (
                left := deadline - time.monotonic()
            ) > 0:
                if not self._news.wait(min(left, PRESENCE_SECONDS)):
                    meanwhile()
                self._check()
            peers = {c: self._peers[c] for c in clients if c in self._peers and self._peers[c].answer}
            answers = {client: peer.answer for client, peer in peers.items()}
            for peer in peers.values():
                peer.answer = None
        for client in late:
            self.dismiss(client)
        return answers

    def wait(self, seconds: float) -> None:
        """Until somebody comes, goes or says something; so long at most."""
        with self._news:
            self._news.wait(seconds)
            self._check()

    def dismiss(self, client: int, reason: str = "") -> None:
        """Go on without a client's device: it may say hello again, but not if there is a reason to turn it away."""
        with self._news:
            peer = self._peers.pop(client, None)
        if peer:
            log.warning("client %d is done without: %s", client, reason or "it did not answer in time")
            said = self._refusal(reason) if reason else Message("dismissed", self.run, client)
            self._inlet.send_multipart([peer.identity, pack(said)])

    def _check(self) -> None:
        """Raise what ended the thread, if it has ended."""
        if self._failure:
            raise RuntimeError("the thread that hears devices has ended") from self._failure

    def _serve(self) -> None:
        """The thread: pass on what is to be sent, hear what comes, see who is there."""
        poller = zmq.Poller()
        for socket in (self._router, self._outlet, self._monitor):
            poller.register(socket, zmq.POLLIN)
        try:
            while True:
                ready = dict(poller.poll(1000 * PRESENCE_SECONDS / 2))
                if self._outlet in ready:
                    identity, *frame = self._outlet.recv_multipart()
                    if not frame:
                        return
                    self._deliver(identity, frame[0])
                if self._router in ready:
                    identity, *frames = self._router.recv_multipart(copy=False)
                    self._hear(identity.bytes, frames)
                if self._monitor in ready:
                    self._see(recv_monitor_message(self._monitor))
                if time.monotonic() - self._checked > PRESENCE_SECONDS:
                    self._see_who_is_there()
        except Exception as error:  # it is raised where the simulation waits
            with self._news:
                self._failure = error
                self._news.notify_all()

    def _hear(self, identity: bytes, frames: Sequence[zmq.Frame]) -> None:
        """Answer a hello, keep an answer that was asked for, and refuse whatever else it is."""
        self.counts.up += sum(map(len, frames))
        kind = ""
        try:
            if len(frames) != 1:
                raise ValueError(f"frame: {len(frames)} of them; allowed: one")
            message = unpack(frames[0].bytes)
            kind = message.kind
            with self._news:
                if kind == "hello":
                    self._welcome(identity, message, frames[0])
                else:
                    self._take(identity, message, len(frames[0]))
                self._news.notify_all()
        except ValueError as error:
            reason = str(error)
            self._refuse(reason)
            if kind == "hello" or reason.startswith("version"):  # it may be a device, and should know
                self._deliver(identity, pack(self._refusal(reason)))
            elif reason.startswith("stranger") and message.run == self.run and not self._knows(identity):
                self._deliver(identity, pack(Message("dismissed", self.run, message.client)))
        except Exception:  # a mistake of ours: no frame may end a run
            log.exception("a frame could not be dealt with")

    def _take(self, identity: bytes, message: Message, size: int) -> None:
        """Keep an answer, or take note of who is ready and who leaves."""
        peer, now = self._peers.get(message.client), time.perf_counter()
        if peer is None or peer.identity != identity:
            raise ValueError(f"stranger: {message.kind} of one who is not client {message.client}")
        account = self.accounts[message.client]
        account.bytes_up += size
        if message.run != self.run:
            raise ValueError("run: another")
        if message.kind == "ready":
            peer.ready = True
            return
        if message.kind == "bye":
            del self._peers[message.client]
            log.info("client %d has left", message.client)
            return
        if (message.kind, message.round, message.step) != peer.asked:
            raise ValueError(f"{message.kind}: of round {message.round}, step {message.step}: it was not asked for")
        peer.answer, peer.answered, peer.asked = message, now, None
        if message.kind != "smashed":
            return
        account.steps += 1
        if peer.step and peer.step[0] == message.round:
            account.step_seconds = smoothed(account.step_seconds, now - peer.step[1])
        peer.step = message.round, now
        compute = message.about.get("compute")
        if isinstance(compute, int | float) and 0 <= compute <= now - peer.told:
            account.compute_seconds = smoothed(account.compute_seconds, compute)
            account.network_seconds = smoothed(account.network_seconds, now - peer.told - compute)

    def _refuse(self, reason: str) -> None:
        """Write down what was not taken."""
        kind = reason.partition(":")[0]
        count = self.counts.refused.get(kind, 0) + 1
        self.counts.refused = {**self.counts.refused, kind: count}  # another thread may be reading it
        if is_round(count):
            log.warning("refused, number %d of %s: %s", count, kind, reason[:200])

    def _see(self, event: Mapping[str, Any]) -> None:
        """What became of a connection: that there was none, or that it ended, as it does with a frame too large."""
        if event["event"] & FAILED:
            self._refuse("handshake: failed, as it does without a key that is known here")
            return
        self._disconnected += 1
        if is_round(self._disconnected):
            log.debug("connections that have ended: %d", self._disconnected)

    def _welcome(self, identity: bytes, hello: Message, frame: zmq.Frame) -> None:
        """Give a device the client id that it asks for, or any that is free; one that it had is its own again."""
        owner, wanted, images = owner_of(frame, hello), hello.about.get("client"), hello.about.get("images")
        if any(peer.identity == identity and peer.owner != owner for peer in self._peers.values()):
            raise ValueError("token: another than before")
        self._see_who_is_there()
        free = [c for c in self.accounts if c not in self._peers or self._peers[c].owner == owner]
        if not free:
            raise ValueError("client_id: each is another device's just now; allowed: when one has left")
        if wanted is None:
            fitting = [c for c in free if self._about[c]["held"]["sha256"] == images]
            wanted = (fitting or free)[0]
        if type(wanted) is not int or wanted not in free:
            what = "another device's" if type(wanted) is int and wanted in self.accounts else "no device's"
            raise ValueError(f"client_id: {wanted!r:.20} is {what}; allowed: {', '.join(map(str, free))}")
        for client, peer in [(c, peer) for c, peer in self._peers.items() if peer.owner == owner]:
            del self._peers[client]
            if peer.identity != identity:
                gone = "server: another device has come with the key of this one; allowed: a key for each"
                self._deliver(peer.identity, pack(self._refusal(gone)))
        self._peers[wanted] = Peer(identity, owner)
        self.accounts[wanted].bytes_up += len(frame)
        answer = pack(Message("welcome", self.run, wanted, about=dict(self._about[wanted])))
        self._count_down(wanted, answer)
        self._deliver(identity, answer)
        if self._how:
            self._deliver(identity, pack(self._bye(wanted)))
        self._came += 1
        if is_round(self._came) or self._came < 1000:
            log.info("client %d has come", wanted)

    def _knows(self, identity: bytes) -> bool:
        """Whether it is the connection of a device that has said hello."""
        with self._news:
            return any(peer.identity == identity for peer in self._peers.values())

    def _see_who_is_there(self) -> None:
        """Send each device an empty frame, which tells who is gone; not too often, or whoever says hello can flood."""
        if time.monotonic() - self._checked < PRESENCE_SECONDS / 20:
            return
        self._checked = time.monotonic()
        with self._news:
            for client, peer in list(self._peers.items()):
                if not self._deliver(peer.identity, b""):
                    del self._peers[client]
                    log.warning("client %d is gone", client)
                    self._news.notify_all()

    def _count_down(self, client: int, frame: bytes) -> None:
        self.counts.down += len(frame)
        self.accounts[client].bytes_down += len(frame)

    def _deliver(self, identity: bytes, frame: bytes) -> bool:
        """Send a frame; whether there is still somebody to take it."""
        try:
            self._router.send_multipart([identity, frame], flags=zmq.NOBLOCK)
        except zmq.ZMQError:  # gone, or so much waits for it already that it might as well be
            return False
        return True


def owner_of(frame: zmq.Frame, hello: Message) -> str:
    """Who has sent a hello: by the key that was shown, and in plain text by the hello's own word.

    Raises:
        ValueError: there is neither.
    """
    try:
        return frame.get("User-Id")
    except zmq.ZMQError:
        token = hello.about.get("token")
    if not isinstance(token, str) or not token:
        raise ValueError("token: there is none; allowed: a word of the device's own")
    return token


def is_round(count: int) -> bool:
    """1, 2, 4, 8 and so on: what is logged of what may be sent without end, so that it fills no disk."""
    return count & (count - 1) == 0
