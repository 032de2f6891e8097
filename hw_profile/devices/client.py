"""A device that takes part in a simulation."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from simsfl.hw_profile.bench.measuring import IDLE_SECONDS, idle
from simsfl.hw_profile.devices.device import Device, Refused
from simsfl.hw_profile.devices.keys import Keys, asked_for, checked
from simsfl.hw_profile.devices.messages import digest
from simsfl.hw_profile.devices.panel import LiveView, PlainView, latency_text
from simsfl.hw_profile.meters import Log, Meter, Sampler, Span, absent, account, choose
from simsfl.hw_profile.meters.board import Machine, board
from simsfl.hw_profile.meters.cores import check_threads
from simsfl.hw_profile.meters.stopwatch import Stopwatch
from simsfl.hw_profile.runtimes.client_work import RUNTIMES, Client, import_runtime, make_client, versions
from simsfl.system.console import Output
from simsfl.system.files import claimed, write_json
from simsfl.system.messages import fixed
from simsfl.system.programs import called
from simsfl.system.signals import Stop
from simsfl.system.streams import print_error
from simsfl.ui.arguments import Parser, add_dashboard_flag, fail, one_of, path, seconds, value_of, whole_number

_RESULT = "result.json"
"""File name of the result in the output directory."""


def parser() -> Parser:
    """Return the parser of this program's flags."""
    result = Parser(description=__doc__)
    who = result.add_argument_group("connection and client")
    who.add_argument("--server", required=True, metavar="HOST:PORT", help=f"address that {called('server')} listens at")
    who.add_argument(
        "--key", type=path, metavar="FILE", help=f"key of this device, such as device-1.key of {called('keys')}"
    )
    who.add_argument(
        "--insecure", action="store_true", help="connect in plain text, without a key, to a server on this machine"
    )
    who.add_argument(
        "--client-id",
        type=value_of(int, "a whole number"),
        metavar="ID",
        help="client to be (default: the one that --images belong to, or any free one)",
    )
    who.add_argument(
        "--images",
        type=path,
        metavar="FILE.npy",
        help=f"the client's images, (n, 3, H, H) uint8, as {called('server')} --export-images writes them (default: "
        "those of the run's data set)",
    )
    who.add_argument(
        "--own-images", action="store_true", help="accept --images that differ from the simulation's for this client"
    )
    who.add_argument(
        "--patience",
        type=seconds,
        default=60.0,
        metavar="S",
        help="seconds to try to reach the server, at first and whenever the connection is lost (default: 60)",
    )
    how = result.add_argument_group("computing")
    how.add_argument(
        "--runtime",
        type=one_of(RUNTIMES),
        default="torch",
        metavar="{torch,lean}",
        help="PyTorch, or NumPy alone (default: torch)",
    )
    how.add_argument("--threads", type=whole_number, metavar="N", help="threads of PyTorch (default: as it chooses)")
    where = result.add_argument_group("measuring and output")
    where.add_argument(
        "--meter", default="none", metavar="NAME", help=f"power meter, as for {called('pi-bench')} (default: none)"
    )
    where.add_argument(
        "--out", type=path, metavar="DIR", help="directory to write into (default: runs/<time>-client-<process>)"
    )
    add_dashboard_flag(where)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Take part until the server ends the run, and return the exit code."""
    with Stop() as stop:
        try:
            arguments = parser().parse(argv)
            console = Output(arguments.dashboard)
            server, machine = checked(arguments.server, "server"), Machine()
            exposed = "another machine; allowed: --key FILE"
            keys = asked_for("device", arguments.key, server, insecure=arguments.insecure, exposed=exposed)
            meter = choose(arguments.meter, machine)
            out = arguments.out or Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-client-{os.getpid()}"
            if arguments.own_images and not arguments.images:
                raise ValueError("own_images: has no effect without --images; allowed: with --images FILE")
            if arguments.threads and arguments.runtime == "lean":
                raise ValueError("threads: cannot be set for NumPy; allowed with lean: OPENBLAS_NUM_THREADS=N")
            if arguments.threads:
                check_threads(arguments.threads, machine)
            import_runtime(arguments.runtime)  # so that a missing package shows before the server waits for this device
            with claimed(out, _RESULT):
                result = _take_part(console, arguments, keys, meter, stop)
                write_json(out / _RESULT, {"board": asdict(board(machine)), **result})
            _conclude(console, result, out)
        except (ValueError, OSError) as error:  # a TimeoutError is an OSError
            return fail(error)
        except KeyboardInterrupt:
            print_error("interrupted; nothing was written")
            return 128 + stop.received
        if result["problem"]:
            print_error(f"{result['problem']}; the results until then are written")
            return 2
        return 128 + stop.received if stop.received else 0


def _take_part(
    console: Output, arguments: Any, keys: Keys | None, meter: Meter | Log | None, stop: Stop
) -> dict[str, Any]:
    """Connect and work until the run is over; return the content of ``result.json``."""
    kind = LiveView if console.live else PlainView
    watch, sampled = Stopwatch(), None if isinstance(meter, Log) else meter
    idle_seconds = IDLE_SECONDS if meter else 0.0
    images = _from_file(arguments.images) if arguments.images else None
    ended = ""
    with Sampler(sampled) as sampler, kind(console) as view:
        before = _quiet(view, idle_seconds)
        view.tell(f"trying to reach {arguments.server}")
        device = Device(
            arguments.server,
            keys,
            arguments.client_id,
            arguments.patience,
            images=None if images is None or arguments.own_images else digest(images),
            tell=view.tell,
            is_over=lambda: bool(stop.received),
        )
        try:
            view.follow(device, watch, sampler)
            stop.patient = True
            begin = time.monotonic()
            device.connect()
            if not device.connected:
                raise KeyboardInterrupt
            client = _made(device, arguments)
            images = own_images(device.about, device.client, images, others=arguments.own_images)
            device.work(client, images, watch, view.step_done)
        except (Refused, TimeoutError) as error:
            if not device.done:
                raise
            ended = str(error)
        finally:
            device.close()
        work = begin, time.monotonic()
        after = _quiet(view, idle_seconds)
    record = sampler.record()
    spans = {"idle before": before, "work": work, "idle after": after}
    spans = {name: record.in_unix(span) for name, span in spans.items()}
    result = {
        "versions": versions(arguments.runtime),
        "runtime": arguments.runtime,
        "server": arguments.server,
        "run": device.run,
        "client": device.client,
        "network": device.about["network"],
        "steps": device.done,
        "bytes_up": device.up,
        "bytes_down": device.down,
        "step": device.seconds,
        "latency": {phase: times.spread() for phase, times in watch.phases.items()},
        "ended": ended or ("stopped here" if stop.received else f"the server has {device.ended} the run"),
        "spans": spans,
        "meter_asked": arguments.meter,
        "energy": None,
        "problem": ended,
        "readings": record.readings,
        "summary": f"{device.done:,} steps in {work[1] - work[0]:.1f} s; a step: {latency_text(device) or '-'}; "
        f"{device.up / 1e6:,.2f} MB sent, {device.down / 1e6:,.2f} MB received",
    }
    if meter:
        try:
            energy, readings = account(meter, record, list(spans.values()))
            result |= {"energy": energy, "readings": readings}
        except ValueError as error:  # all other results are still valid
            result["problem"] = "; ".join(filter(None, (ended, str(error))))
    return result


def _quiet(view: LiveView | PlainView, seconds: float) -> Span:
    """Wait while the idle machine is measured, and return the span of that time."""
    if seconds:
        view.tell("measuring the idle machine")
    return idle(seconds, lambda stage, **what: None)


def _made(device: Device, arguments: Any) -> Client:
    """Return the client that does the computing, as the flags ask for it."""
    client = make_client(device.about, arguments.runtime, precision="fp32")
    if arguments.threads:
        import torch  # noqa: PLC0415  (only this runtime needs it)

        torch.set_num_threads(arguments.threads)
    return client


def _from_file(file: Path) -> np.ndarray:
    """Return the array in a file that `numpy.save` wrote; raise a ValueError if it cannot be read as one."""
    allowed = f"allowed: what {called('server')} --export-images wrote"
    try:
        return np.load(file, allow_pickle=False)
    except OSError as error:
        raise ValueError(f"images: {file} cannot be read ({error.strerror}); {allowed}") from error
    except (ValueError, EOFError) as error:
        raise ValueError(f"images: {file} holds no array; {allowed}") from error


def own_images(about: Mapping[str, Any], client: int, given: np.ndarray | None, *, others: bool) -> np.ndarray:
    """Return the client's images, ``[n, 3, H, H]`` uint8.

    Args:
        about: what the server has said about the run.
        client: id of the client.
        given: images from a file; None to take those of the data set that the run's config names.
        others: whether they may be other images than the simulation has.

    Raises:
        ValueError: the images have another shape or type than the simulation's, or differ from them, or the data set is
            not available here.
    """
    size, held = about["network"]["image_size"], about["held"]
    images = _from_data_set(about["config"], client) if given is None else given
    shape = (held["count"], 3, size, size)
    if images.shape != shape or images.dtype != np.uint8:
        raise ValueError(f"images: {images.dtype} of shape {images.shape}; allowed: uint8 of {shape}")
    if not others and digest(images) != held["sha256"]:
        whose = "those of the data set here" if given is None else "they"
        raise ValueError(
            f"images: {whose} differ from the simulation's for client {client}; allowed: those of --export-images, or "
            "others with --own-images"
        )
    return images


def _from_data_set(config: Mapping[str, Any], client: int) -> np.ndarray:
    """Return a client's images from the data set and partition that the run's config names.

    Raises:
        ValueError: the data set is not available here.
    """
    try:
        from simsfl.config import RunConfig  # noqa: PLC0415
        from simsfl.data.load import load_dataset  # noqa: PLC0415
        from simsfl.data.validation import with_validation  # noqa: PLC0415
        from simsfl.setup import assembly  # noqa: PLC0415  (these import torch)

        own = RunConfig.from_dict(config)
        dataset = load_dataset(
            own.dataset, data_dir="data", image_size=own.image_size, seed=own.seed, stream="never", auxiliary=None
        )
        dataset = with_validation(dataset, own.validation)
        return dataset.train.pixels[assembly.partition(own, dataset)[client]].numpy()
    except (ValueError, OSError, ImportError) as error:
        raise ValueError(
            f"images: the server's data set is not available here ({error}); allowed: --images FILE, which "
            f"{called('server')} --export-images writes"
        ) from error


def _conclude(console: Output, result: Mapping[str, Any], out: Path) -> None:
    """Print how the run ended, what the device did, and where the result is."""
    lines = [result["ended"], result["summary"]]
    if energy := result["energy"]:
        spread = energy["uncertainty_joules_above_idle"] / energy["seconds"]
        lines += [
            f"power {fixed(energy['mean_watts'], 2)} W, {fixed(energy['above_idle_watts'], 2)} ±{spread:.2f} W above "
            f"idle; {fixed(energy['joules'], 1)} J ({energy['label']}: {energy['source']})"
        ]
        lines += [energy["warning"]] if energy["warning"] else []
    elif result["meter_asked"] == "auto":
        lines += [absent(Machine())]
    for line in [*lines, f"wrote {out / _RESULT}"]:
        console.say(line)
