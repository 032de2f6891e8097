"""The measurements of ``bench.py``, each in a process of its own that prints one JSON object per line.

``engine`` trains one step for each line on stdin, so that engines can take turns. ``scale`` times a few steps with a
given number of clients and reads the memory in use. ``start`` times the way to the first step. ``peaks`` finds how many
operations and bytes per second the machine can do.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from dataclasses import replace

_BEGIN = time.perf_counter()

import numpy as np  # noqa: E402  (imports are part of what is measured)
import torch  # noqa: E402

_TORCH = time.perf_counter()

from simsfl import RunConfig, Simulation  # noqa: E402
from simsfl.cli.ranks import device_for, joined, leave  # noqa: E402
from simsfl.config import PRECISIONS, plugins  # noqa: E402
from simsfl.config.catalogue import DATASETS  # noqa: E402
from simsfl.cost.model import operations  # noqa: E402
from simsfl.data import Dataset, make_dataset  # noqa: E402
from simsfl.data.shapes import shapes  # noqa: E402
from simsfl.engine.precision import arithmetic, has_tf32  # noqa: E402
from simsfl.setup.assembly import network  # noqa: E402
from simsfl.setup.defaults import device_of, resolve  # noqa: E402
from simsfl.setup.parts import load_images  # noqa: E402
from simsfl.system.clock import PhaseClock  # noqa: E402
from simsfl.system.memory import peak_memory_bytes, resident_bytes  # noqa: E402
from simsfl.system.signals import Stop  # noqa: E402

_SECONDS_OF_PRODUCTS = 1.0
"""Seconds spent on finding the peak rate of matrix products."""


def _engine(name: str, config: RunConfig) -> None:
    """Train a step for each line on stdin; print the seconds of the step and of each phase, the loss and the memory.

    Args:
        name: an engine, with ``+`` and a precision behind it unless that is fp32, such as ``fused+bf16``.
        config: the config of the run.
    """
    engine, _, precision = name.partition("+")
    config = replace(config, rounds=10**6, precision=precision or "fp32")
    if engine == "loop":
        (step, clock), facts = _published(config), {}
    else:
        simulation = Simulation(replace(config, engine=engine), _dataset_of(config))
        step, clock = _simulated_step(simulation), simulation.clock
        facts = {"chunk": simulation.parts.hyper.chunk, "choices": simulation.parts.choices}
    device = torch.device(device_of(config.device))
    _emit(facts | {"start_bytes": peak_memory_bytes(device)})
    before: dict[str, float] = {}
    for _ in sys.stdin:
        begin = time.perf_counter()
        loss = step()
        _synchronise(device)
        seconds = time.perf_counter() - begin
        phases = clock.seconds()
        spent = {phase: phases[phase] - before.get(phase, 0.0) for phase in phases}
        spent["the rest"] = seconds - sum(spent.values())
        _emit({"step": seconds, "loss": loss, "phases": spent, "peak_bytes": peak_memory_bytes(device)})
        before = phases


def _simulated_step(simulation: Simulation):
    """Return a function that trains the next step of a simulation, of whatever round, and returns its loss."""

    def records():
        while True:
            yield from simulation.round()

    simulation.pace.flush_seconds = 0.0
    steps = (record for record in records() if record.event == "step")
    return lambda: next(steps).loss


def _published(config: RunConfig):
    """Return a function that trains a step as the published program does and returns its loss, and the step's clock."""
    from simsfl.cli.bench.published import Published  # noqa: PLC0415  (imports torchvision)

    dataset = _dataset_of(config)
    config = replace(resolve(config), image_size=dataset.image_size)
    device = torch.device(config.device)
    images, clock = dataset.train.to(device), PhaseClock(device)
    cohort = Published(config, network(config), images)
    rng = np.random.default_rng(0)

    def step() -> float:
        indices = torch.from_numpy(rng.integers(0, len(images), (config.cohort, config.batch_size)))
        loss = cohort.step(indices, clock)
        gc.collect()  # the published program does so after every step
        return loss

    return step, clock


def _flops(config: RunConfig) -> dict[str, int]:
    """Count the operations of a step's convolutions and matrix products, two per multiply-add, by cohort and server."""
    config = resolve(replace(config, image_size=config.image_size or 32))
    model = network(config)
    images, passes = config.cohort * config.batch_size, config.passes_per_image
    client = operations(model.client, (3, config.image_size, config.image_size), of_images=True)
    own = passes * client.products(views=config.views_sent, graded=config.views_graded)
    server = operations(model.server, model.smashed_shape).products(**config.server_passes)
    return {"clients": images * own, "server": images * server}


def _peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Return the floating-point operations per second of the fastest of several large matrix products."""
    size = 2048 if device.type == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best, begin = float("inf"), time.perf_counter()
    while time.perf_counter() - begin < _SECONDS_OF_PRODUCTS:
        start = time.perf_counter()
        a @ b
        _synchronise(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def _peak_copies(device: torch.device) -> float:
    """Return the bytes per second that the fastest of several large copies reads and writes."""
    source = torch.zeros(1 << 26, device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        target.copy_(source)
        _synchronise(device)
        best = min(best, time.perf_counter() - start)
    return 2 * source.nbytes / best


def _scale(config: RunConfig, steps: int) -> None:
    """Time `steps` steps with one image per client, and print the memory in use once every client has taken part."""
    dataset = _many_shapes(config.clients)
    data = dataset.train.pixels.nbytes
    begin = time.perf_counter()
    simulation = Simulation(replace(config, rounds=steps + 3, partition="iid", batch_size=1), dataset)
    _take_part(simulation)
    start = time.perf_counter() - begin
    times = []
    for _ in simulation.rounds():  # one image per client: each round is one step
        times.append(time.perf_counter())
    partition = simulation.parts.partition
    kept = _kept_bytes(simulation) + partition.indices.nbytes + partition.offsets.nbytes
    _emit(
        {
            "step_seconds": np.diff(times)[2:].tolist(),
            "start_seconds": start,
            "resident_bytes": resident_bytes(),
            "peak_bytes": peak_memory_bytes(simulation.parts.device),
            "data_bytes": data,
            "bytes_per_client": kept / config.clients,
        }
    )


def _kept_bytes(simulation: Simulation) -> int:
    """Return the bytes of what this rank keeps for its clients from round to round, once all have taken part."""
    clients = simulation.state.clients
    return sum(tensor.nbytes for tensor in (clients.momentum, clients.velocity, clients.participation))


def _take_part(simulation: Simulation) -> None:
    """Give every client a state of its own, as if it had taken part."""
    clients = simulation.state.clients
    clients.participation.fill_(1)
    size = max(1, len(clients.velocity) // 100)
    for stack, value in ((clients.momentum, clients.initial), (clients.velocity, torch.tensor(1e-6))):
        for rows in stack.split(size):
            rows.copy_(value)
            clients.storage.release()


def _ranks(config: RunConfig, steps: int) -> None:
    """Train on the ranks that this process is one of; print what `steps` steps took, after one that is not counted."""
    with Stop() as stop, joined(stop) as world:
        config = replace(config, rounds=10**6, device=device_for(config.device, world))
        simulation = Simulation(config, _dataset_of(config), world=world)
        device, step, measured = simulation.parts.device, _simulated_step(simulation), []
        for _ in range(1 + steps):
            _synchronise(device)
            begin, told, sent = time.perf_counter(), world.seconds, world.bytes
            step()
            _synchronise(device)
            measured.append((time.perf_counter() - begin, world.seconds - told, world.bytes - sent))
        everyone = world.tell((measured[1:], _kept_bytes(simulation), peak_memory_bytes(device)))
        if world.rank == 0:
            times, kept, peaks = zip(*everyone, strict=True)
            seconds, told, sent = zip(*[max(one) for one in zip(*times, strict=True)], strict=True)
            of_steps = {"step_seconds": seconds, "told_seconds": told, "sent_bytes": sent}
            _emit(of_steps | {"kept_bytes": kept, "peak_bytes": peaks})
    leave(0, world)


def _start(config: RunConfig) -> None:
    """Print the seconds that importing torch takes, then all else until the run can train, then the first step."""
    simulation = Simulation(config, _dataset_of(config))
    ready = time.perf_counter()
    next(simulation.round())
    done = time.perf_counter()
    _emit({"import_torch": _TORCH - _BEGIN, "ready": ready - _TORCH, "first_step": done - ready})


def _many_shapes(count: int) -> Dataset:
    """Return the built-in data set with `count` training images."""
    return make_dataset("shapes", "built in", shapes(0, train=count, test=10))


def _dataset_of(config: RunConfig) -> Dataset:
    """Return the configured data set; of the built-in shapes, as many as there are clients, or more."""
    if config.dataset == "shapes" and config.clients > DATASETS["shapes"].images:
        return _many_shapes(config.clients)
    return load_images(config)


def _synchronise(device: torch.device) -> None:
    """Wait until the device has done all work given to it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _emit(value: dict) -> None:
    """Print a value as one line of JSON."""
    print(json.dumps(value), flush=True)


def main(what: str, fields: str, *rest: str) -> None:
    """Do one of the measurements.

    Args:
        what: "engine", "scale", "ranks", "start" or "peaks".
        fields: a `RunConfig` as JSON.
        rest: the engine's name, or the number of steps of "scale" or "ranks".
    """
    plugins.load_all()
    config = RunConfig.from_dict(json.loads(fields))
    if what == "engine":
        _engine(rest[0], config)
    elif what == "scale":
        _scale(config, int(rest[0]))
    elif what == "ranks":
        _ranks(config, int(rest[0]))
    elif what == "start":
        _start(config)
    else:
        device = torch.device(device_of(config.device))
        peaks = {}
        for name, precision in PRECISIONS.items():
            if precision.anywhere or has_tf32(device_of(config.device)):
                with arithmetic(name):
                    peaks[f"{name}_flops"] = _peak_flops(device, getattr(torch, precision.dtype))
        _emit(peaks | {"bytes": _peak_copies(device), "step_flops": _flops(config)})


if __name__ == "__main__":
    main(*sys.argv[1:])
