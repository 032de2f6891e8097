"""The server's end of the wire: which devices are there and what they answer, received by a background thread."""

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

_PRESENCE_SECONDS = 1.0
"""Seconds between two tests of which devices are still there."""
_PARTING_SECONDS = 10.0
"""Seconds that devices have at the end of a run to finish what they are computing."""
_WAITING_FRAMES = 16
"""Frames of one sender that wait to be received; further frames of a flooding sender wait at the sender."""
_FAILED = zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_AUTH
"""Events of a connection that was refused during its handshake."""

Ask = tuple[str, int, int]
"""An answer that a device owes: kind of message, round and step."""


class _Known:
    """Accepts connections whose public keys are known; the authenticator's thread asks it."""

    def __init__(self, peers: Collection[str]):
        self._peers = {peer.encode() for peer in peers}

    def callback(self, domain: str, key: bytes) -> bool:
        """Return whether a device with this key may connect."""
        return key in self._peers


@dataclass
class _Account:
    """Traffic and steps of a client's device, over all its connections.

    Times are averages over the latest steps; see `simsfl.algorithm.wire.DeviceStatus`.
    """

    bytes_up: int = 0
    """Bytes of whole frames that the device has sent."""
    bytes_down: int = 0
    """Bytes of whole frames that the device was sent."""
    steps: int = 0
    """Number of steps that the device has done."""
    step_seconds: float | None = None
    """Seconds from one of the device's steps to the next in the same round."""
    compute_seconds: float | None = None
    """Seconds of a step that the device computes, by its own clock."""
    network_seconds: float | None = None
    """Seconds from the server's message to the device's answer, less those that the device computes."""


@dataclass
class _Peer:
    """A device that has said hello."""

    identity: bytes
    """Id of its connection."""
    owner: str
    """Public key of the device; in plain text a token of the device's own, which it keeps over connections."""
    ready: bool = False
    """Whether it has loaded what it needs."""
    fresh: bool = True
    """Whether it has not yet been sent a round, and so has no weights."""
    asked: Ask | None = None
    """The answer that it owes, if any."""
    told: float = 0.0
    """Time of the latest message to it, by `time.perf_counter`."""
    answer: Message | None = None
    """Its latest answer, until `collect` takes it."""
    answered: float | None = None
    """Time of its latest answer, by `time.perf_counter`; None if a message was sent to it after that."""
    step: tuple[int, float] | None = None
    """Round and time of its latest step."""


@dataclass
class Counts:
    """Bytes of whole frames, and the number of refusals by reason."""

    up: int = 0
    """Bytes received, including those of refused frames."""
    down: int = 0
    """Bytes sent to devices that take part, without those that tell them why they do not, or no longer."""
    refused: dict[str, int] = field(default_factory=dict)
    """Number of refused frames and connections by reason."""


class Hub:
    """Communicates with devices; no frame, however malformed, ends it.

    Args:
        address: ``host:port`` to listen at; port 0 for any free port.
        keys: keys of the server and of its devices; None for plain text, on the loopback device only.
        run: id of the run, which every message has to carry.
        about: content of the welcome to a device, by the client that the device may be.

    Attributes:
        address: where it listens, ``host:port``.
        accounts: an `_Account` for each client that may be a device.
        counts: bytes and refusals of the whole run.

    Raises:
        ValueError: the address is in use or not available.
    """

    def __init__(self, address: str, keys: Keys | None, run: str, about: Mapping[int, Mapping[str, Any]]):
        self.run, self._about = run, about
        self.accounts = {client: _Account() for client in sorted(about)}
        self.counts = Counts()
        self._peers: dict[int, _Peer] = {}
        self._news = threading.Condition()
        self._checked = 0.0
        self._came = self._disconnected = 0
        self._how = ""
        self._failure: Exception | None = None
        self._context = zmq.Context()
        self._guard = ThreadAuthenticator(self._context) if keys else None
        self._router = self._context.socket(zmq.ROUTER)
        self._router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._router.setsockopt(zmq.RCVHWM, _WAITING_FRAMES)
        prepare(self._router, keys)
        self._monitor = self._router.get_monitor_socket(_FAILED | zmq.EVENT_DISCONNECTED)
        self._inlet, self._outlet = self._context.socket(zmq.PAIR), self._context.socket(zmq.PAIR)
        self._outlet.bind("inproc://out")
        self._inlet.connect("inproc://out")
        if keys:
            self._guard.start()
            self._guard.configure_curve_callback("*", credentials_provider=_Known(keys.peers))
            self._router.curve_server = True
        self._thread = threading.Thread(target=self._serve, daemon=True)
        try:
            self._router.bind(f"tcp://{address}")
        except zmq.ZMQError as error:
            self._release()
            why = error.strerror.partition(" (")[0]
            raise ValueError(
                f"listen: {address} is not available ({why}); allowed: a free port of this machine"
            ) from error
        self.address = self._router.getsockopt_string(zmq.LAST_ENDPOINT).removeprefix("tcp://").rstrip("\0")
        self._thread.start()

    def end(self, how: str) -> None:
        """Say bye to all devices, and wait up to ten seconds until they have said bye, too.

        It waits because frames that a device has not read yet are lost when the connection closes.

        Args:
            how: the words after "the run has", such as "finished", for people.
        """
        with self._news:
            self._how = how
            there = list(self._peers)
        for client in there:
            self.send(client, self._bye(client), whole=True)
        deadline = time.monotonic() + _PARTING_SECONDS
        while self._peers and (left := deadline - time.monotonic()) > 0:
            self.wait(left)

    def _bye(self, client: int) -> Message:
        return Message("bye", self.run, client, about={"ended": self._how})

    def _refusal(self, reason: str) -> Message:
        return Message("refused", self.run, about={"reason": reason})

    def close(self) -> None:
        """Send what is waiting to be sent, and release the port."""
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
        """Return the clients whose devices are connected and ready."""
        with self._news:
            return {client for client, peer in self._peers.items() if peer.ready}

    def is_fresh(self, client: int) -> bool:
        """Return whether the client's device is connected, and has no weights yet."""
        with self._news:
            return client in self._peers and self._peers[client].fresh

    def send(self, client: int, message: Message, asks: Ask | None = None, *, whole: bool = False) -> bool:
        """Send a message to a client's device, and return whether it was sent.

        It is not sent if the device is not connected, or has no weights yet that the message could refer to.

        Args:
            client: id of the client.
            message: what to send.
            asks: the answer that is expected.
            whole: whether the message has all that a device needs that has no weights yet.
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
        """Return the answers of these clients' devices to what they were last asked, by client.

        Devices that do not answer in time are dismissed, and those that have gone are not waited for.

        Args:
            clients: ids of the clients.
            timeout: seconds to wait for answers.
            meanwhile: called now and then during a long wait.

        Raises:
            RuntimeError: the background thread has ended.
        """
        deadline = time.monotonic() + timeout
        with self._news:
            while (late := [c for c in clients if c in self._peers and self._peers[c].asked]) and (
                left := deadline - time.monotonic()
            ) > 0:
                if not self._news.wait(min(left, _PRESENCE_SECONDS)):
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
        """Wait until a device comes, goes or sends something, but no longer than `seconds`.

        Raises:
            RuntimeError: the background thread has ended.
        """
        with self._news:
            self._news.wait(seconds)
            self._check()

    def dismiss(self, client: int, reason: str = "") -> None:
        """Go on without a client's device.

        Args:
            client: id of the client.
            reason: why it is refused for good; if empty, it may say hello again.
        """
        with self._news:
            peer = self._peers.pop(client, None)
        if peer:
            log.warning("client %d is dismissed: %s", client, reason or "it did not answer in time")
            said = self._refusal(reason) if reason else Message("dismissed", self.run, client)
            self._inlet.send_multipart([peer.identity, pack(said)])

    def _check(self) -> None:
        """Raise a RuntimeError if the thread has ended, from the error that ended it."""
        if self._failure:
            raise RuntimeError("the thread that listens to devices has ended") from self._failure

    def _serve(self) -> None:
        """Send what is to be sent, receive what comes, and test who is there: the body of the thread."""
        poller = zmq.Poller()
        for socket in (self._router, self._outlet, self._monitor):
            poller.register(socket, zmq.POLLIN)
        try:
            while True:
                ready = dict(poller.poll(1000 * _PRESENCE_SECONDS / 2))
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
                if time.monotonic() - self._checked > _PRESENCE_SECONDS:
                    self._see_who_is_there()
        except Exception as error:  # `_check` raises it where the simulation waits
            with self._news:
                self._failure = error
                self._news.notify_all()

    def _hear(self, identity: bytes, frames: Sequence[zmq.Frame]) -> None:
        """Answer a hello, keep an answer that was asked for, and refuse everything else."""
        self.counts.up += sum(map(len, frames))
        kind = ""
        try:
            if len(frames) != 1:
                raise ValueError(f"frame: a message of {len(frames)} frames; allowed: one")
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
            if kind == "hello" or reason.startswith("version"):  # the sender may be a device, and should learn why
                self._deliver(identity, pack(self._refusal(reason)))
            elif reason.startswith("stranger") and message.run == self.run and not self._knows(identity):
                self._deliver(identity, pack(Message("dismissed", self.run, message.client)))
        except Exception:  # an error in this program: no frame may end a run
            log.exception("a frame could not be processed")

    def _take(self, identity: bytes, message: Message, size: int) -> None:
        """Keep an answer, or note that a device is ready or leaves.

        Raises:
            ValueError: the message is of another sender or run, or was not asked for.
        """
        peer, now = self._peers.get(message.client), time.perf_counter()
        if peer is None or peer.identity != identity:
            raise ValueError(f"stranger: {message.kind} from a sender that is not client {message.client}")
        account = self.accounts[message.client]
        account.bytes_up += size
        if message.run != self.run:
            raise ValueError("run: the message belongs to another run")
        if message.kind == "ready":
            peer.ready = True
            return
        if message.kind == "bye":
            del self._peers[message.client]
            log.info("client %d has left", message.client)
            return
        if (message.kind, message.round, message.step) != peer.asked:
            raise ValueError(f"{message.kind}: was not asked for in round {message.round}, step {message.step}")
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
        """Count and log something that was refused."""
        kind = reason.partition(":")[0]
        count = self.counts.refused.get(kind, 0) + 1
        self.counts.refused = {**self.counts.refused, kind: count}  # another thread may be reading the old one
        if _is_round(count):
            log.warning("refused, number %d of %s: %s", count, kind, reason[:200])

    def _see(self, event: Mapping[str, Any]) -> None:
        """Note that a handshake failed or a connection ended, as it does after a frame that is too large."""
        if event["event"] & _FAILED:
            self._refuse("handshake: failed, as it does for a device whose key is not known here")
            return
        self._disconnected += 1
        if _is_round(self._disconnected):
            log.debug("connections that have ended: %d", self._disconnected)

    def _welcome(self, identity: bytes, hello: Message, frame: zmq.Frame) -> None:
        """Give a device the client id that it asks for, or any free one; an id that it had before is still its own.

        Raises:
            ValueError: the id is not available, none is free, or the hello's token is missing or has changed.
        """
        owner, wanted, images = _owner_of(frame, hello), hello.about.get("client"), hello.about.get("images")
        if any(peer.identity == identity and peer.owner != owner for peer in self._peers.values()):
            raise ValueError("token: has changed; allowed: the same in all messages of a connection")
        self._see_who_is_there()
        free = [c for c in self.accounts if c not in self._peers or self._peers[c].owner == owner]
        if not free:
            raise ValueError("client_id: all are taken by other devices; allowed: one whose device has left")
        if wanted is None:
            fitting = [c for c in free if self._about[c]["held"]["sha256"] == images]
            wanted = (fitting or free)[0]
        if type(wanted) is not int or wanted not in free:
            what = "another device's" if type(wanted) is int and wanted in self.accounts else "no device's"
            raise ValueError(f"client_id: {wanted!r:.20} is {what}; allowed: {', '.join(map(str, free))}")
        for client, peer in [(c, peer) for c, peer in self._peers.items() if peer.owner == owner]:
            del self._peers[client]
            if peer.identity != identity:
                gone = "server: another device has connected with this device's key; allowed: a key for each device"
                self._deliver(peer.identity, pack(self._refusal(gone)))
        self._peers[wanted] = _Peer(identity, owner)
        self.accounts[wanted].bytes_up += len(frame)
        answer = pack(Message("welcome", self.run, wanted, about=dict(self._about[wanted])))
        self._count_down(wanted, answer)
        self._deliver(identity, answer)
        if self._how:
            self._deliver(identity, pack(self._bye(wanted)))
        self._came += 1
        if _is_round(self._came) or self._came < 1000:
            log.info("client %d has come", wanted)

    def _knows(self, identity: bytes) -> bool:
        """Return whether this is the connection of a device that has said hello."""
        with self._news:
            return any(peer.identity == identity for peer in self._peers.values())

    def _see_who_is_there(self) -> None:
        """Send each device an empty frame, which fails for devices that are gone.

        Calls in quick succession are skipped, so that senders of many hellos cannot flood the devices.
        """
        if time.monotonic() - self._checked < _PRESENCE_SECONDS / 20:
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
        """Send a frame, and return whether the connection still exists and takes it."""
        try:
            self._router.send_multipart([identity, frame], flags=zmq.NOBLOCK)
        except zmq.ZMQError:  # the device is gone, or too many frames wait for it
            return False
        return True


def _owner_of(frame: zmq.Frame, hello: Message) -> str:
    """Return the sender of a hello: its public key, or in plain text the token in the hello.

    Raises:
        ValueError: it has neither.
    """
    try:
        return frame.get("User-Id")
    except zmq.ZMQError:
        token = hello.about.get("token")
    if not isinstance(token, str) or not token:
        raise ValueError("token: is missing; allowed: a text that only this device uses")
    return token


def _is_round(count: int) -> bool:
    """Return whether the count is a power of two.

    Events that may repeat without end are logged only at these counts, so that the log cannot fill a disk.
    """
    return count & (count - 1) == 0
