"""Keys for a server and its devices: ``python hw_profile/keys.py --devices 3``

Elliptic-curve keys of CurveZMQ. The server takes no one whose key it does not know, and what is said is encrypted.
"""

from __future__ import annotations

import ipaddress
import json
import os
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import zmq
from zmq.utils import z85

from simsfl.hw_profile.devices.messages import LARGEST
from simsfl.system.messages import shortened
from simsfl.ui.arguments import Parser, fail, path, whole_number

OPTIONS = {
    zmq.LINGER: 500,
    zmq.MAXMSGSIZE: LARGEST,
    zmq.HEARTBEAT_IVL: 2000,
    zmq.HEARTBEAT_TIMEOUT: 60_000,  # a machine that is gone; a frame on a slow network takes its time, too
    zmq.HANDSHAKE_IVL: 10_000,
}
"""Of either end's socket; times in milliseconds."""
ENDS = ("server", "device")
SERVER = "server.key"
MOST = 10_000
"""Devices."""


@dataclass(frozen=True)
class Keys:
    """One end's own pair, and whom it talks to."""

    end: str
    """Whose they are: "server" or "device"."""
    public: str
    secret: str
    peers: tuple[str, ...]
    """Public keys: of the devices that the server takes, or of a device's server."""

    def write(self, file: Path) -> None:
        """As JSON that its owner alone may read."""
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w", encoding="ascii") as stream:
            json.dump(asdict(self), stream)

    @classmethod
    def read(cls, file: Path, end: str) -> Keys:
        """What `write` wrote, for this end of the wire.

        Raises:
            ValueError: it cannot be read, holds no keys, or those of the other end.
        """
        try:
            content = json.loads(file.read_text(encoding="ascii"))
            keys = cls(content["end"], content["public"], content["secret"], tuple(content["peers"]))
            whole = (
                keys.end in ENDS
                and keys.peers
                and all(len(z85.decode(key)) == 32 for key in (keys.public, keys.secret, *keys.peers))
                and zmq.curve_public(keys.secret.encode()).decode() == keys.public
            )
        except OSError as error:
            made = "allowed: a file that python hw_profile/keys.py makes"
            raise ValueError(f"key: {file} cannot be read ({error.strerror}); {made}") from error
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError, struct.error):  # whatever it holds
            whole = False
        if not whole:
            raise ValueError(f"key: {file} holds no keys; allowed: a file that python hw_profile/keys.py made")
        if keys.end != end:
            raise ValueError(f"key: {file} is a {keys.end}'s; allowed: a {end}'s, made at the same time")
        return keys


def is_loopback(address: str) -> bool:
    """Whether nobody but this machine gets there."""
    host = address.rpartition(":")[0]
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def checked(address: str, field: str) -> str:
    """A ``host:port``; raises a ValueError for what is none."""
    host, _, port = address.rpartition(":")
    if not host or ":" in host or not port.isdecimal() or not int(port) < 1 << 16:
        raise ValueError(f"{field}: {shortened(address)!r} is none; allowed: HOST:PORT, by name or IPv4 address")
    return address


def asked_for(end: str, file: Path | None, address: str, *, insecure: bool, exposed: str) -> Keys | None:
    """The keys that flags ask for; None for plain text.

    Args:
        end: whose they are to be.
        address: of the server.
        exposed: what is wrong with plain text at an address that others get to, and what is allowed.

    Raises:
        ValueError: neither or both are asked for, or plain text where others could listen.
    """
    if file and insecure:
        raise ValueError("insecure: is plain text; allowed: without --key")
    if file:
        return Keys.read(file, end)
    if not insecure:
        raise ValueError("key: there is none; allowed: --key FILE, or --insecure with a server on this machine")
    if not is_loopback(address):
        raise ValueError(f"insecure: {address} is {exposed}")
    return None


def prepare(socket: zmq.Socket, keys: Keys | None) -> None:
    """What either end's socket needs before it is bound or connected; no `keys` for plain text."""
    for option, value in OPTIONS.items():
        socket.setsockopt(option, value)
    if keys:
        socket.curve_secretkey, socket.curve_publickey = keys.secret.encode(), keys.public.encode()


def make(directory: Path, devices: int) -> list[Path]:
    """Keys for a server and so many devices, a file for each; the files.

    Raises:
        ValueError: the directory holds keys already.
    """
    if directory.is_dir() and any(directory.glob("*.key")):
        raise ValueError(f"out: {directory} holds keys already; allowed: a new directory")
    if devices > MOST:
        raise ValueError(f"devices: {devices:.3g} are too many; allowed: 1 to {MOST}")
    directory.mkdir(parents=True, exist_ok=True)
    server, *pairs = ([part.decode() for part in zmq.curve_keypair()] for _ in range(1 + devices))
    all_keys = {SERVER: Keys("server", *server, tuple(public for public, _ in pairs))}
    all_keys |= {f"device-{n}.key": Keys("device", *pair, (server[0],)) for n, pair in enumerate(pairs, start=1)}
    for name, keys in all_keys.items():
        keys.write(directory / name)
    return [directory / name for name in all_keys]


def parser() -> Parser:
    """All flags of this program."""
    result = Parser(prog="keys.py", description=__doc__)
    result.add_argument("--devices", type=whole_number, default=1, metavar="N", help="how many (default: 1)")
    result.add_argument("--out", type=path, default=Path("keys"), metavar="DIR", help="(default: keys)")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Make them; the exit code."""
    try:
        arguments = parser().parse(argv)
        files = make(arguments.out, arguments.devices)
    except ValueError as error:
        return fail(error)
    except OSError as error:
        return fail(
            ValueError(f"out: {arguments.out} cannot be written to ({error.strerror}); allowed: a new directory")
        )
    print(f"wrote {', '.join(map(str, files))}: {files[0].name} stays here, each other goes to its device")
    return 0
