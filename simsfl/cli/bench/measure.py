"""What ``bench.py`` runs in processes of their own: each prints one JSON object a line.

``engine``: one training step for each line on stdin, so that engines can take turns. ``scale``: a few steps with so
many clients. ``start``: how long it takes to the first step. ``peaks``: what the machine can do.
"""

from __future__ import annotations

import gc
import json
import resource
import sys
import time
from dataclasses import replace
from pathlib import Path

BEGIN = time.perf_counter()

import numpy as np  # noqa: E402  (imports are part of what is measured)
import torch  # noqa: E402

TORCH = time.perf_counter()

from simsfl import RunConfig, Simulation  # noqa: E402
from simsfl.cost.model import operations  # noqa: E402
from simsfl.data import Dataset, make_dataset  # noqa: E402
from simsfl.data.load import load_dataset  # noqa: E402
from simsfl.data.shapes import shapes  # noqa: E402
from simsfl.engine.precision import arithmetic, has_tf32  # noqa: E402
from simsfl.setup.assembly import network  # noqa: E402
from simsfl.setup.defaults import device_of, resolve  # noqa: E402
from simsfl.system.clock import PhaseClock  # noqa: E402
from simsfl.system.memory import peak_memory_bytes  # noqa: E402

SECONDS_OF_PRODUCTS = 1.0
"""Spent on finding the peak of matrix products."""


def engine(name: str, config: RunConfig) -> None:
    """Train a step whenever asked to; report the seconds of each phase."""
    engine, _, precision = name.partition("+")
    config = replace(config, rounds=10**6, precision=precision or "fp32")
    if engine == "loop":
        (step, clock), facts = published(config), {}
    else:
        simulation = Simulation(replace(config, engine=engine), dataset_of(config))
        step, clock = simulated_step(simulation), simulation.clock
        facts = {"chunk": simulation.parts.hyper.chunk, "choices": simulation.parts.choices}
    device = torch.device(device_of(config.device))
    emit(facts | {"start_bytes": peak_memory_bytes(device)})
    before: dict[str, float] = {}
    for _ in sys.stdin:
        begin = time.perf_counter()
        loss = step()
        synchronise(device)
        seconds = time.perf_counter() - begin
        phases = clock.seconds()
        spent = {phase: phases[phase] - before.get(phase, 0.0) for phase in phases}
        spent["the rest"] = seconds - sum(spent.values())
        emit({"step": seconds, "loss": loss, "phases": spent, "peak_bytes": peak_memory_bytes(device)})
        before = phases


def simulated_step(simulation: Simulation):
    """The next step of a simulation, of whatever round; gives its loss."""

    def records():
        while True:
            yield from simulation.round()

    simulation.flush_seconds = 0.0
    steps = (record for record in records() if record.event == "step")
    return lambda: next(steps).loss


def published(config: RunConfig):
    """A step of the published way of working, and its clock."""
    from simsfl.cli.bench.published import Published  # noqa: PLC0415  (imports torchvision)

    dataset = dataset_of(config)
    config = replace(resolve(config), image_size=dataset.image_size)
    device = torch.device(config.device)
    images, clock = dataset.train.to(device), PhaseClock(device)
    cohort = Published(config, network(config), images)
    rng = np.random.default_rng(0)

    def step() -> float:
        indices = torch.from_numpy(rng.integers(0, len(images), (config.cohort, config.batch_size)))
        loss = cohort.step(indices, clock)
        gc.collect()  # as it does after every step
        return loss

    return step, clock


def flops(config: RunConfig) -> dict[str, int]:
    """Operations of a step's convolutions and matrix products, two per multiply-add, of cohort and server."""
    config = resolve(replace(config, image_size=config.image_size or 32))
    model = network(config)
    own = operations(model.client, (3, config.image_size, config.image_size), of_images=True).products()
    images = config.cohort * config.batch_size
    rows = images * (2 if config.symmetric else 1)
    return {"clients": images * own, "server": rows * operations(model.server, model.smashed_shape).products()}


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of a large matrix product, the best of several."""
    size = 2048 if device.type == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best, begin = float("inf"), time.perf_counter()
    while time.perf_counter() - begin < SECONDS_OF_PRODUCTS:
        start = time.perf_counter()
        a @ b
        synchronise(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def peak_copies(device: torch.device) -> float:
    """Bytes per second that a large copy reads and writes, the best of several."""
    source = torch.zeros(1 << 26, device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        target.copy_(source)
        synchronise(device)
        best = min(best, time.perf_counter() - start)
    return 2 * source.nbytes / best


def scale(config: RunConfig, steps: int) -> None:
    """Time single steps with an image per client, and read the memory in use once every client has taken part."""
    dataset = many_shapes(config.clients)
    data = dataset.train.pixels.nbytes
    begin = time.perf_counter()
    simulation = Simulation(replace(config, rounds=steps + 3, partition="iid", batch_size=1), dataset)
    take_part(simulation)
    start = time.perf_counter() - begin
    times = []
    for _ in simulation.rounds():  # one image per client: each round is one step
        times.append(time.perf_counter())
    clients = simulation.state.clients
    held = [clients.momentum, clients.velocity, clients.participation]
    kept = (
        sum(t.nbytes for t in held)
        + simulation.parts.partition.indices.nbytes
        + simulation.parts.partition.offsets.nbytes
    )
    emit(
        {
            "step_seconds": np.diff(times)[2:].tolist(),
            "start_seconds": start,
            "resident_bytes": resident_bytes(),
            "peak_bytes": peak_memory_bytes(simulation.parts.device),
            "data_bytes": data,
            "bytes_per_client": kept / config.clients,
        }
    )


def take_part(simulation: Simulation) -> None:
    """Give every client a state of its own, as if it had taken part."""
    clients = simulation.state.clients
    clients.participation.fill_(1)
    size = max(1, len(clients.velocity) // 100)
    for stack, value in ((clients.momentum, clients.initial), (clients.velocity, torch.tensor(1e-6))):
        for rows in stack.split(size):
            rows.copy_(value)
            clients.storage.release()


def start(config: RunConfig) -> None:
    """Seconds from the start of the process to the end of the first step, beyond importing torch."""
    simulation = Simulation(config, dataset_of(config))
    ready = time.perf_counter()
    next(simulation.round())
    done = time.perf_counter()
    emit({"import_torch": TORCH - BEGIN, "ready": ready - TORCH, "first_step": done - ready})


def many_shapes(count: int) -> Dataset:
    """So many images of the built-in set."""
    return make_dataset("shapes", "built in", shapes(0, train=count, test=10))


def dataset_of(config: RunConfig) -> Dataset:
    """The images of the configured data set, or as many shapes as there are clients, where they are more."""
    if config.dataset in ("auto", "cifar10", "shapes") and config.clients > 50_000:
        return many_shapes(config.clients)
    return load_dataset(config.dataset, data_dir=config.data_dir, image_size=config.image_size, seed=config.seed)


def synchronise(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def resident_bytes() -> int:
    """Memory of this process that is in use now (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def emit(value: dict) -> None:
    """One line of JSON on stdout."""
    print(json.dumps(value), flush=True)


def main(what: str, fields: str, *rest: str) -> None:
    """Do one of the above with a config given as JSON."""
    config = RunConfig.from_dict(json.loads(fields))
    if what == "engine":
        engine(rest[0], config)
    elif what == "scale":
        scale(config, int(rest[0]))
    elif what == "start":
        start(config)
    else:
        device = torch.device(device_of(config.device))
        names = {"fp32": torch.float32, "bf16": torch.bfloat16}
        if has_tf32(device_of(config.device)):
            names["tf32"] = torch.float32
        peaks = {}
        for name, dtype in names.items():
            with arithmetic(name):
                peaks[f"{name}_flops"] = peak_flops(device, dtype)
        emit(peaks | {"bytes": peak_copies(device), "step_flops": flops(config)})


if __name__ == "__main__":
    main(*sys.argv[1:])
