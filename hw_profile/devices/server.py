"""Train a run in which real devices are some of the clients.

This program has all the flags of ``simsfl run``, too.
"""

from __future__ import annotations

import argparse
import logging
import resource
import secrets
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from simsfl.cli import run
from simsfl.config.constraints import DEVICES, check
from simsfl.hw_profile.devices.hub import Counts, Hub
from simsfl.hw_profile.devices.keys import SERVER, asked_for, checked
from simsfl.system.console import Output
from simsfl.system.outputs import Outputs
from simsfl.system.programs import called, command
from simsfl.system.signals import Stop
from simsfl.system.streams import Formatter, print_error
from simsfl.ui.arguments import Parser, fail, path, seconds, value_of, whole_number

_POLL_SECONDS = 0.2
"""Seconds between two looks while the server waits for devices."""
_PORT = 5555
"""Port to listen at, unless ``--listen`` names another."""
_KEY = Path("keys", SERVER)
"""File of the server's keys, unless ``--key`` names another."""


def parser() -> Parser:
    """Return the parser of this program's flags, which include those of ``run.py``."""
    result = run.parser()
    result.description = __doc__.replace("``simsfl run``", called("run"))
    devices = result.add_argument_group("devices")
    devices.add_argument("--devices", type=whole_number, metavar="N", help="number of devices (default: 1)")
    devices.add_argument(
        "--device-clients", metavar="ID,ID", help="clients that are devices (default: the first to take part)"
    )
    devices.add_argument(
        "--listen",
        metavar="HOST:PORT",
        help=f"address to listen at (default: 0.0.0.0:{_PORT}; with --insecure 127.0.0.1:{_PORT})",
    )
    devices.add_argument(
        "--key", type=path, metavar="FILE", help=f"key of the server, which {called('keys')} wrote (default: {_KEY})"
    )
    devices.add_argument(
        "--insecure", action="store_true", help="accept devices on this machine, in plain text and without keys"
    )
    devices.add_argument(
        "--device-timeout",
        type=seconds,
        default=30.0,
        metavar="S",
        help="seconds after which a round goes on without a device that does not answer (default: 30)",
    )
    devices.add_argument(
        "--wait-for",
        type=value_of(int, "a whole number"),
        metavar="N",
        help="number of devices to wait for before training (default: all)",
    )
    devices.add_argument(
        "--export-images",
        type=path,
        metavar="DIR",
        help="directory to write each device's images into first",
    )
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Train with devices, and return the exit code."""
    devices = None
    with Stop() as stop:
        try:
            arguments = parser().parse(argv)
            devices = Devices(arguments, stop)  # before a slow import, so that wrong flags show at once
            from simsfl.cli.launch import launch  # noqa: PLC0415  (imports torch, which is slow)

            with closing(devices):
                return launch(arguments, stop, devices)
        except (ValueError, OSError) as error:
            return fail(error)
        except KeyboardInterrupt:
            waited = ", while waiting for devices; the run begins with --resume" if devices and devices.waits else ""
            print_error(f"interrupted before training{waited}")
            return 128 + (stop.received or 2)


class Devices:
    """The devices that take part in a run (`simsfl.cli.launch.Guests`).

    Args:
        arguments: the flags of `parser`; ``listen`` and ``key`` are filled in where they are not given.
        stop: signals that were received.

    Attributes:
        waits: whether devices are waited for before training.

    Raises:
        ValueError: the address or the keys are wrong, or plain text is asked for where others could listen.
    """

    auto_precision = "fp32", "devices compute in fp32"
    """The precision that "auto" means with devices, and why."""

    def __init__(self, arguments: argparse.Namespace, stop: Stop):
        arguments.listen = arguments.listen or f"{'127.0.0.1' if arguments.insecure else '0.0.0.0'}:{_PORT}"
        arguments.key = arguments.key or (None if arguments.insecure else _KEY)
        self._arguments, self._stop = arguments, stop
        self._keys = asked_for(
            "server",
            arguments.key,
            checked(arguments.listen, "listen"),
            insecure=arguments.insecure,
            exposed="open to others; allowed: with --listen 127.0.0.1:PORT",
        )
        self._hub: Hub | None = None
        self.waits = False

    def prepare(self, simulation: Any) -> None:
        """Choose the clients, and open the port.

        Raises:
            ValueError: there are no such clients, the port is not available, or devices do not support such a run.
        """
        from simsfl.hw_profile.devices.loop import DeviceLoop, about_run, chosen_clients  # noqa: PLC0415  (imports torch)

        check(simulation.config, DEVICES)  # as `DeviceLoop` does, but before the port is opened
        arguments = self._arguments
        clients = chosen_clients(simulation, arguments.device_clients, arguments.devices)
        self._wanted = len(clients) if arguments.wait_for is None else arguments.wait_for
        if not 0 <= self._wanted <= len(clients):
            raise ValueError(f"wait_for: {self._wanted} is out of range; allowed: 0 to {len(clients)}")
        _allow_files()
        about = {client: about_run(simulation, client) for client in clients}
        self._hub = Hub(arguments.listen, self._keys, secrets.token_hex(4), about)
        self._loop = DeviceLoop(simulation, self._hub, arguments.device_timeout)
        if arguments.export_images:
            _export(simulation, clients, arguments.export_images)

    def resuming(self) -> list[str]:
        """Return the words of the command that resumes the run, without its directory."""
        arguments = self._arguments
        how = ["--insecure"] if arguments.insecure else ["--key", str(arguments.key)]
        clients = ["--device-clients", ",".join(map(str, self._hub.accounts))]
        wait_for = [] if arguments.wait_for is None else ["--wait-for", str(arguments.wait_for)]
        timeout = ["--device-timeout", f"{arguments.device_timeout:g}"]
        return [*command("server"), *clients, "--listen", arguments.listen, *how, *wait_for, *timeout, "--resume"]

    @contextmanager
    def during(self, session: Any) -> Iterator[None]:
        """Return a context in which devices take part in the session; entering it waits for them."""
        hub, loop, console, file = self._hub, self._loop, session.console, session.directory.devices
        loop.waiting = lambda: session.refresh("waiting for devices")
        loop.is_over = lambda: bool(self._stop.received or console.lost)
        real = f"client{'s' * (len(hub.accounts) > 1)} {', '.join(map(str, hub.accounts))}"
        with ExitStack() as stack:
            stack.enter_context(
                _logged(logging.FileHandler(file, delay=True, encoding="utf-8", errors="backslashreplace"))
            )
            try:
                _tell(console, f"run {hub.run}, real: {real}; listening at {hub.address}")
                if self._arguments.export_images:
                    _tell(console, f"their images are in {self._arguments.export_images}")
                with _logged(_Shown(console)):
                    self._wait(console)
                if not console.live:  # else the view fills the screen
                    stack.enter_context(_logged(_Shown(console)))
                yield
            finally:
                with suppress(KeyboardInterrupt):  # by a user who does not wait for a device that hangs
                    loop.end("finished" if session.result else "stopped")
                done = (f"client {client} {count:,} of {loop.due[client]:,}" for client, count in loop.done.items())
                _tell(console, f"steps done: {', '.join(done)}")
                _tell(console, f"{_summary(hub.counts)}, {loop.missed} answers missed; {file}")

    def _wait(self, console: Output) -> None:
        """Wait until as many devices are ready as ``--wait-for`` asks for."""
        self.waits = True
        with console.status("") as status:
            while len(there := self._hub.present()) < self._wanted:
                if console.lost:
                    raise KeyboardInterrupt
                status.update(f"waiting for devices: {len(there)} of {self._wanted} are connected and ready")
                self._hub.wait(_POLL_SECONDS)
        self.waits = False

    def close(self) -> None:
        """Release the port."""
        if self._hub:
            self._hub.close()


def _allow_files() -> None:
    """Raise the limit of open files as far as the system allows: connections that are refused take files, too."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # macOS has a limit of its own
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class _Shown(logging.Handler):
    """Prints the log of devices that come and go."""

    def __init__(self, console: Output):
        super().__init__(logging.INFO)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record as a line."""
        _tell(self._console, record.getMessage())


def _tell(console: Output, text: str) -> None:
    """Print a line about the devices."""
    console.say(f"devices   {text}")


@contextmanager
def _logged(handler: logging.Handler) -> Iterator[None]:
    """Return a context in which the devices' log also goes to this handler."""
    handler.setFormatter(Formatter("%(asctime)s %(message)s"))
    log = logging.getLogger("devices")
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()


def _summary(counts: Counts) -> str:
    """Return the bytes and the refusals, as text."""
    reasons = ", ".join(f"{kind} {count:,}" for kind, count in counts.refused.items())
    return (
        f"{counts.up / 1e6:,.2f} MB up, {counts.down / 1e6:,.2f} MB down, {sum(counts.refused.values()):,} frames "
        f"refused{f' ({reasons})' if reasons else ''}"
    )


def _export(simulation: Any, clients: Sequence[int], directory: Path) -> None:
    """Write the images of each client into a file, to be copied to its device."""
    from simsfl.hw_profile.devices.loop import own_images  # noqa: PLC0415  (imports torch)

    files = {f"client-{client}.npy": client for client in clients}
    out = Outputs(directory, "export_images")
    out.check(*files)
    for name, client in files.items():
        with out.replacing(name) as file:
            np.save(file, own_images(simulation, client))
