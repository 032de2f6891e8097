"""A simulation that real devices take part in: ``python hw_profile/server.py --clients 1000 --devices 1``

All flags of ``experiments/run.py`` are this program's, too.
"""

from __future__ import annotations

import argparse
import logging
import secrets
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import checkout

sys.path.append(str(checkout.ROOT / "experiments"))

import run
from keys import Keys, is_loopback
from simsfl.arguments import Parser, fail, path, print_error, value_of, whole_number
from simsfl.signals import Stop

POLL_SECONDS = 0.2


def parser() -> Parser:
    """All flags of this program."""
    result = run.parser()
    result.prog, result.description = "server.py", __doc__
    devices = result.add_argument_group("devices")
    devices.add_argument("--devices", type=whole_number, default=1, metavar="N", help="how many take part (default: 1)")
    devices.add_argument(
        "--device-clients", metavar="ID,ID", help="which clients they are (default: those of the first cohort)"
    )
    devices.add_argument("--listen", default="127.0.0.1:5555", metavar="HOST:PORT", help="(default: 127.0.0.1:5555)")
    devices.add_argument("--key", type=path, metavar="FILE", help="server.key, which keys.py wrote")
    devices.add_argument("--insecure", action="store_true", help="plain text, on the loopback device alone")
    devices.add_argument(
        "--device-timeout",
        type=value_of(float, "seconds"),
        default=30.0,
        metavar="S",
        help="a round goes on without a device that does not answer for so long (default: 30)",
    )
    devices.add_argument(
        "--wait-for",
        type=value_of(int, "a whole number"),
        metavar="N",
        help="devices to wait for before the first round (default: all)",
    )
    devices.add_argument("--export-images", type=path, metavar="DIR", help="write each device's images there first")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Train with devices; the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    with Stop() as stop:
        try:
            arguments = parser().parse(argv)
            keys = keys_of(arguments)
            from launch import launch  # noqa: PLC0415  (imports torch: --help and mistakes answer at once)

            return launch(arguments, stop, lambda simulation: connected(arguments, keys, simulation, stop))
        except (ValueError, OSError) as error:
            return fail(error)
        except KeyboardInterrupt:
            print_error("interrupted before training")
            return 128 + (stop.received or 2)


def keys_of(arguments: argparse.Namespace) -> Keys | None:
    """The server's keys; None for plain text.

    Raises:
        ValueError: neither is asked for, or plain text where others could listen.
    """
    if arguments.key:
        return Keys.read(arguments.key)
    if not arguments.insecure:
        raise ValueError("key: there is none; allowed: --key FILE, which keys.py writes, or --insecure on this machine")
    if not is_loopback(arguments.listen):
        raise ValueError(f"insecure: {arguments.listen} is open to others; allowed: with --listen 127.0.0.1:PORT")
    return None


@contextmanager
def connected(arguments: argparse.Namespace, keys: Keys | None, simulation: Any, stop: Stop) -> Iterator[None]:
    """The simulation with its devices, as long as the block runs."""
    from device_loop import DeviceLoop, about_run, chosen_clients  # noqa: PLC0415  (imports torch)
    from hub import Hub  # noqa: PLC0415

    clients = chosen_clients(simulation, arguments.device_clients, arguments.devices)
    if arguments.export_images:
        export(simulation, clients, arguments.export_images)
    hub = Hub(arguments.listen, keys, secrets.token_hex(8), clients, about_run(simulation))
    try:
        loop = DeviceLoop(simulation, hub, arguments.device_timeout)
        wanted = len(clients) if arguments.wait_for is None else arguments.wait_for
        print(f"devices   clients {', '.join(map(str, clients))} are real; waiting for {wanted} at {arguments.listen}")
        while len(hub.devices) < wanted and not stop.received:
            hub.attend()
            time.sleep(POLL_SECONDS)
        yield
        loop.end()
        traffic = hub.traffic
        print(
            f"devices   {traffic.up / 1e6:,.2f} MB up, {traffic.down / 1e6:,.2f} MB down, {traffic.refused} frames "
            f"refused, {len(loop.lost)} answers missed"
        )
    finally:
        hub.close()


def export(simulation: Any, clients: Sequence[int], directory: Path) -> None:
    """Write each device's images, to be copied there."""
    directory.mkdir(parents=True, exist_ok=True)
    for client in clients:
        pixels = simulation.dataset.train.pixels[simulation.partition[client]]
        np.save(directory / f"client-{client}.npy", pixels.cpu().numpy())


if __name__ == "__main__":
    sys.exit(main())
