"""A device that takes part in a simulation: ``python hw_profile/client.py --server HOST:PORT --key FILE``"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import checkout  # noqa: F401  (first of all)
from board import Machine
from client_work import RUNTIMES, make_client
from device import Device
from keys import Keys, is_loopback
from measuring import THREADS
from meters import Log, Sampler, choose, label
from simsfl.arguments import Parser, fail, one_of, path, print_error, value_of, whole_number
from simsfl.console import Output
from stopwatch import Stopwatch


def parser() -> Parser:
    """All flags of this program."""
    result = Parser(prog="client.py", description=__doc__)
    result.add_argument("--server", required=True, metavar="HOST:PORT", help="where server.py listens")
    result.add_argument("--key", type=path, metavar="FILE", help="device-N.key, which keys.py wrote")
    result.add_argument("--insecure", action="store_true", help="plain text, on the loopback device alone")
    result.add_argument(
        "--client-id", type=value_of(int, "a whole number"), metavar="ID", help="who it is (default: any that is free)"
    )
    result.add_argument(
        "--images", type=path, metavar="FILE.npy", help="its own, (n, 3, H, H) uint8 (default: by the run's config)"
    )
    result.add_argument(
        "--runtime", type=one_of(RUNTIMES), default="torch", metavar="{torch,lean}", help="(default: torch)"
    )
    result.add_argument("--threads", type=whole_number, metavar="N", help="(default: what the runtime takes)")
    result.add_argument(
        "--patience",
        type=value_of(float, "seconds"),
        default=60.0,
        metavar="S",
        help="how long to try to reach the server (default: 60)",
    )
    result.add_argument("--meter", default="none", metavar="NAME", help="as of pi_bench.py; records power meanwhile")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Take part until the server ends the run; the exit code."""
    console = Output()
    try:
        arguments = parser().parse(argv)
        keys = keys_of(arguments)
        meter = choose(arguments.meter, Machine())
        if isinstance(meter, Log):
            raise ValueError("meter: a log is not read while it is written; allowed: a meter of this machine")
        device = Device(arguments.server, keys, arguments.client_id, arguments.patience)
        try:
            signal.signal(signal.SIGTERM, lambda number, frame: device.over.set())
            with Sampler(meter) as sampler:
                take_part(console, arguments, device)
            if sampler.readings:
                watts = float(np.mean([watts for _, watts in sampler.readings]))
                console.print(f"power {watts:.2f} W on average, {label(meter)}: {meter.source}")
        finally:
            device.close()
    except (ValueError, OSError) as error:  # a TimeoutError is one of the latter
        return fail(error)
    except KeyboardInterrupt:
        print_error("interrupted; the server goes on without this device")
        return 130
    return 0


def keys_of(arguments: Any) -> Keys | None:
    """The device's keys; None for plain text.

    Raises:
        ValueError: neither is asked for, or plain text where others could listen.
    """
    if ":" not in arguments.server:
        raise ValueError(f"server: {arguments.server!r} has no port; allowed: HOST:PORT")
    if arguments.key:
        return Keys.read(arguments.key)
    if not arguments.insecure or not is_loopback(arguments.server):
        raise ValueError("key: there is none; allowed: --key FILE, or --insecure with a server on this machine")
    return None


def take_part(console: Output, arguments: Any, device: Device) -> None:
    """Connect, and work until the run is over."""
    if arguments.threads:
        os.environ.update(dict.fromkeys(THREADS, str(arguments.threads)))
    device.connect()
    console.print(f"client {device.client} of run {device.run} at {device.server}", highlight=False, markup=False)
    client = make_client(device.about, arguments.runtime, precision="fp32")
    if arguments.threads and arguments.runtime == "torch":
        import torch  # noqa: PLC0415  (of one runtime)

        torch.set_num_threads(arguments.threads)
    images = own_images(device.about, device.client, arguments.images)
    watch, steps, begin = Stopwatch(), [0], time.perf_counter()

    def step_done(round: int, step: int) -> None:
        steps[0] += 1

    device.work(client, images, watch, step_done)
    waited = watch.phases["network"].total
    computed = watch.total - waited
    console.print(
        f"{steps[0]:,} steps in {time.perf_counter() - begin:.1f} s: {computed:.1f} s at work, {waited:.1f} s waiting; "
        f"{device.up / 1e6:,.2f} MB sent, {device.down / 1e6:,.2f} MB received",
        highlight=False,
        soft_wrap=True,
    )


def own_images(about: Mapping[str, Any], client: int, file: Path | None) -> np.ndarray:
    """The client's images ``[n, 3, H, H]`` uint8: of a file, or of the data set that the run's config names.

    Raises:
        ValueError: there are others in the file, or the data set is not to be had here.
    """
    size, count = about["network"]["image_size"], about["images_held"][str(client)]
    if file:
        images = np.load(file, allow_pickle=False)
    else:
        from simsfl import assembly  # noqa: PLC0415  (bring torch along)
        from simsfl.config import RunConfig  # noqa: PLC0415
        from simsfl.data.load import load_dataset  # noqa: PLC0415

        config = RunConfig.from_dict(about["config"])
        dataset = load_dataset(
            config.dataset,
            data_dir="data",
            image_size=config.image_size,
            seed=config.seed,
            stream="never",
            auxiliary=None,
        )
        images = dataset.train.pixels[assembly.partition(config, dataset, least=1)[client]].numpy()
    if images.shape != (count, 3, size, size) or images.dtype != np.uint8:
        raise ValueError(
            f"images: {images.dtype} of shape {images.shape}; allowed: uint8 of ({count}, 3, {size}, {size})"
        )
    return images


if __name__ == "__main__":
    sys.exit(main())
