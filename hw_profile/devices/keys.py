"""Make keys for a server and its devices.

They are elliptic-curve keys of CurveZMQ: the server accepts only devices whose keys it knows, and all messages are
encrypted.
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
from simsfl.system.console import Output
from simsfl.system.messages import shortened
from simsfl.system.programs import called
from simsfl.ui.arguments import Parser, fail, path, whole_number

_OPTIONS = {
    zmq.LINGER: 500,
    zmq.MAXMSGSIZE: LARGEST,
    zmq.HEARTBEAT_IVL: 2000,
    zmq.HEARTBEAT_TIMEOUT: 60_000,  # for a peer that has vanished; a large frame on a slow network takes long, too
    zmq.HANDSHAKE_IVL: 10_000,
}
"""Options of the sockets at both ends; times are in milliseconds."""
_ENDS = ("server", "device")
"""The two ends of the wire that keys are made for."""
SERVER = "server.key"
"""File name of the server's keys."""
_MOST = 10_000
"""Largest number of devices that keys are made for."""


@dataclass(frozen=True)
class Keys:
    """The key pair of one end of the wire, and the public keys of its peers."""

    end: str
    """Owner of the pair: "server" or "device"."""
    public: str
    secret: str
    peers: tuple[str, ...]
    """Public keys: at the server those of the devices it accepts, at a device that of its server."""

    def write(self, file: Path) -> None:
        """Write the keys into a new file, as JSON that only its owner may read.

        Raises:
            OSError: the file exists already, or cannot be written.
        """
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w", encoding="ascii") as stream:
            json.dump(asdict(self), stream)

    @classmethod
    def read(cls, file: Path, end: str) -> Keys:
        """Return the keys in a file that `write` wrote for this end of the wire.

        Raises:
            ValueError: the file cannot be read, holds no keys, or holds those of the other end.
        """
        try:
            content = json.loads(file.read_text(encoding="ascii"))
            keys = cls(content["end"], content["public"], content["secret"], tuple(content["peers"]))
            whole = (
                keys.end in _ENDS
                and keys.peers
                and all(len(z85.decode(key)) == 32 for key in (keys.public, keys.secret, *keys.peers))
                and zmq.curve_public(keys.secret.encode()).decode() == keys.public
            )
        except OSError as error:
            made = f"allowed: a file that {called('keys')} makes"
            raise ValueError(f"key: {file} cannot be read ({error.strerror}); {made}") from error
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError, struct.error):  # any other content
            whole = False
        if not whole:
            raise ValueError(f"key: {file} holds no keys; allowed: a file that {called('keys')} made")
        if keys.end != end:
            raise ValueError(f"key: {file} is a {keys.end}'s; allowed: a {end}'s, made at the same time")
        return keys


def _is_loopback(address: str) -> bool:
    """Return whether the address ``host:port`` can be reached from this machine only."""
    host = address.rpartition(":")[0]
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def checked(address: str, field: str) -> str:
    """Return the address if it has the form ``host:port``; raise a ValueError that names the `field` otherwise."""
    host, _, port = address.rpartition(":")
    if not host or ":" in host or not port.isdecimal() or not int(port) < 1 << 16:
        raise ValueError(f"{field}: {shortened(address)!r} is no address; allowed: HOST:PORT, by name or IPv4 address")
    return address


def asked_for(end: str, file: Path | None, address: str, *, insecure: bool, exposed: str) -> Keys | None:
    """Return the keys that the flags ask for; None for plain text.

    Args:
        end: the end of the wire that needs them: "server" or "device".
        file: the file of keys, if one is given.
        address: address of the server.
        insecure: whether plain text is asked for.
        exposed: end of the message about plain text at an address that others can reach: what is wrong with the
            address, and what is allowed.

    Raises:
        ValueError: neither or both are asked for, the file is no file of keys for this end, or others could listen to
            plain text.
    """
    if file and insecure:
        raise ValueError("insecure: cannot be given with --key; allowed: one of the two")
    if file:
        return Keys.read(file, end)
    if not insecure:
        raise ValueError("key: is missing; allowed: --key FILE, or --insecure with a server on this machine")
    if not _is_loopback(address):
        raise ValueError(f"insecure: {address} is {exposed}")
    return None


def prepare(socket: zmq.Socket, keys: Keys | None) -> None:
    """Set what a socket at either end needs before it is bound or connected; without `keys` it is plain text."""
    for option, value in _OPTIONS.items():
        socket.setsockopt(option, value)
    if keys:
        socket.curve_secretkey, socket.curve_publickey = keys.secret.encode(), keys.public.encode()


def _make(directory: Path, devices: int) -> list[Path]:
    """Write keys for a server and its devices into a directory, a file for each, and return the files.

    Args:
        directory: where to write; it is created if it does not exist.
        devices: number of devices.

    Raises:
        ValueError: the directory holds keys already, or the number of devices is too large.
    """
    if directory.is_dir() and any(directory.glob("*.key")):
        raise ValueError(f"out: {directory} holds keys already; allowed: a new directory")
    if devices > _MOST:
        raise ValueError(f"devices: {devices:.3g} are too many; allowed: 1 to {_MOST}")
    directory.mkdir(parents=True, exist_ok=True)
    server, *pairs = ([part.decode() for part in zmq.curve_keypair()] for _ in range(1 + devices))
    all_keys = {SERVER: Keys("server", *server, tuple(public for public, _ in pairs))}
    all_keys |= {f"device-{n}.key": Keys("device", *pair, (server[0],)) for n, pair in enumerate(pairs, start=1)}
    for name, keys in all_keys.items():
        keys.write(directory / name)
    return [directory / name for name in all_keys]


def parser() -> Parser:
    """Return the parser of this program's flags."""
    result = Parser(description=__doc__)
    result.add_argument(
        "--devices", type=whole_number, default=1, metavar="N", help="number of devices to make keys for (default: 1)"
    )
    result.add_argument(
        "--out", type=path, default=Path("keys"), metavar="DIR", help="directory to write into (default: keys)"
    )
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Make the keys, and return the exit code."""
    try:
        arguments = parser().parse(argv)
        files = _make(arguments.out, arguments.devices)
    except ValueError as error:
        return fail(error)
    except OSError as error:
        return fail(
            ValueError(f"out: {arguments.out} cannot be written to ({error.strerror}); allowed: a new directory")
        )
    Output().say(
        f"wrote {', '.join(map(str, files))}: {files[0].name} stays here, each of the others goes to one device"
    )
    return 0
