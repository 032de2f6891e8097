"""A simulation that real devices take part in: ``python hw_profile/server.py --clients 1000 --devices 1``

All flags of ``experiments/run.py`` are this program's, too.
"""

from __future__ import annotations

import argparse
import logging
import resource
import secrets
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import checkout

checkout.require(safetensors="safetensors", torch="torch", zmq="pyzmq")
sys.path.append(str(checkout.ROOT / "experiments"))

import numpy as np

import run
from hub import Counts, Hub
from keys import SERVER, Keys, checked, is_loopback
from simsfl.arguments import Parser, fail, path, print_error, seconds, value_of, whole_number
from simsfl.console import Output
from simsfl.signals import Stop

POLL_SECONDS = 0.2
PORT = 5555
KEY = Path("keys", SERVER)


def parser() -> Parser:
    """All flags of this program."""
    result = run.parser()
    result.prog, result.description = "server.py", __doc__
    devices = result.add_argument_group("devices")
    devices.add_argument("--devices", type=whole_number, metavar="N", help="how many take part (default: 1)")
    devices.add_argument(
        "--device-clients", metavar="ID,ID", help="which clients they are (default: the first to take part)"
    )
    devices.add_argument(
        "--listen", metavar="HOST:PORT", help=f"(default: 0.0.0.0:{PORT}; with --insecure 127.0.0.1:{PORT})"
    )
    devices.add_argument("--key", type=path, metavar="FILE", help=f"which keys.py wrote (default: {KEY})")
    devices.add_argument("--insecure", action="store_true", help="plain text, on the loopback device alone")
    devices.add_argument(
        "--device-timeout",
        type=seconds,
        default=30.0,
        metavar="S",
        help="a round goes on without a device that does not answer for so long (default: 30)",
    )
    devices.add_argument(
        "--wait-for",
        type=value_of(int, "a whole number"),
        metavar="N",
        help="devices to wait for before training (default: all)",
    )
    devices.add_argument("--export-images", type=path, metavar="DIR", help="write each device's images there first")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Train with devices; the exit code."""
    with Stop() as stop:
        try:
            arguments = parser().parse(argv)
            devices = Devices(arguments, stop)
            from launch import launch  # noqa: PLC0415  (imports torch: --help and mistakes answer at once)

            with closing(devices):
                return launch(arguments, stop, devices)
        except (ValueError, OSError) as error:
            return fail(error)
        except KeyboardInterrupt:
            print_error("interrupted before training")
            return 128 + (stop.received or 2)


def keys_of(arguments: argparse.Namespace) -> Keys | None:
    """The server's keys; None for plain text.

    Raises:
        ValueError: there are none, or plain text is asked for where others could listen.
    """
    if not arguments.insecure:
        return Keys.read(arguments.key or KEY, "server")
    if arguments.key:
        raise ValueError("insecure: is plain text; allowed: without --key")
    if not is_loopback(arguments.listen):
        raise ValueError(f"insecure: {arguments.listen} is open to others; allowed: with --listen 127.0.0.1:PORT")
    return None


class Devices:
    """The devices that take part in a run (`launch.Guests`)."""

    program = Path(__file__)

    def __init__(self, arguments: argparse.Namespace, stop: Stop):
        arguments.listen = arguments.listen or f"{'127.0.0.1' if arguments.insecure else '0.0.0.0'}:{PORT}"
        checked(arguments.listen, "listen")
        self._arguments, self._stop, self._keys = arguments, stop, keys_of(arguments)
        self._hub: Hub | None = None

    def prepare(self, simulation: Any) -> None:
        """Choose the clients, and open the port.

        Raises:
            ValueError: there are no such clients, the port is taken, or devices cannot take part in such a run.
        """
        from device_loop import DeviceLoop, about_run, chosen_clients  # noqa: PLC0415  (imports torch)

        arguments = self._arguments
        clients = chosen_clients(simulation, arguments.device_clients, arguments.devices)
        self._wanted = len(clients) if arguments.wait_for is None else arguments.wait_for
        if not 0 <= self._wanted <= len(clients):
            raise ValueError(f"wait_for: {self._wanted} is out of range; allowed: 0 to {len(clients)}")
        allow_files()
        about = {client: about_run(simulation, client) for client in clients}
        self._hub = Hub(arguments.listen, self._keys, secrets.token_hex(8), about)
        self._loop = DeviceLoop(simulation, self._hub, arguments.device_timeout)
        if arguments.export_images:
            export(simulation, clients, arguments.export_images)

    @contextmanager
    def during(self, session: Any) -> Iterator[None]:
        """Wait for the devices, and let them take part."""
        hub, console, file = self._hub, session.console, session.directory.devices
        self._loop.waiting = lambda: session.refresh("waiting for devices")
        self._loop.is_over = lambda: bool(self._stop.received or console.deserted)
        with logged(file):
            try:
                real = f"client{'s' * (len(hub.accounts) > 1)} {', '.join(map(str, hub.accounts))}"
                tell(console, f"real: {real}; listening at {hub.address}")
                wait(console, hub, self._wanted)
                yield
            finally:
                self._loop.end()
                tell(console, f"{summary(hub.counts)}, {self._loop.missed} answers missed")
                if file.exists():
                    tell(console, f"who came and went: {file}")

    def close(self) -> None:
        """Let go of the port."""
        if self._hub:
            self._hub.close()


def allow_files() -> None:
    """As many open files as the system lets this process have: connections of strangers are files, too."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # macOS has a limit of its own
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def tell(console: Output, text: str) -> None:
    """A line about the devices."""
    console.print(f"devices   {text}", highlight=False, markup=False, soft_wrap=True)


def summary(counts: Counts) -> str:
    """Bytes, and what was refused."""
    reasons = ", ".join(f"{kind} {count:,}" for kind, count in counts.refused.items())
    return (
        f"{counts.up / 1e6:,.2f} MB up, {counts.down / 1e6:,.2f} MB down, {sum(counts.refused.values()):,} frames "
        f"refused{f' ({reasons})' if reasons else ''}"
    )


def wait(console: Output, hub: Hub, wanted: int) -> None:
    """Until so many devices are there."""
    there: set[int] = set()
    with console.status("") as status:
        while True:
            new, there = hub.present() - there, hub.present()
            for client in sorted(new):
                tell(console, f"client {client} is there")
            if console.deserted:
                raise KeyboardInterrupt
            if len(there) >= wanted:
                return
            status.update(f"waiting for devices: {len(there)} of {wanted}")
            hub.wait(POLL_SECONDS)


@contextmanager
def logged(file: Path) -> Iterator[None]:
    """What is out of the ordinary, in a file: the screen is the live view's."""
    handler = logging.FileHandler(file, delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log = logging.getLogger("devices")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()


def export(simulation: Any, clients: Sequence[int], directory: Path) -> None:
    """Write each device's images, to be copied there."""
    from device_loop import own_images  # noqa: PLC0415  (imports torch)

    directory.mkdir(parents=True, exist_ok=True)
    for client in clients:
        np.save(directory / f"client-{client}.npy", own_images(simulation, client))


if __name__ == "__main__":
    sys.exit(main())
