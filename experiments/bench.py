"""Memory and step time against the number of clients: ``python experiments/bench.py``.

Each setting runs in a process of its own, so that one's memory is not counted to another, and the settings take
turns, so that whatever else the machine does falls on all alike. Images are random; what is measured does not
depend on them.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from flags import Parser, add_config_flags, config_values, fail, path
from presets import named
from simsfl import Simulation
from simsfl.data import Arrays, make_dataset
from simsfl.files import write_json

CLIENTS = (1_000, 10_000, 100_000)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table, write JSON; the exit code."""
    parser = Parser(prog="bench.py", description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3, help="processes per setting (default: 3)")
    parser.add_argument("--steps", type=int, default=20, help="steps timed in each process (default: 20)")
    parser.add_argument("--json", type=path, metavar="FILE", help="write the figures here too")
    parser.add_argument("--one", type=int, metavar="CLIENTS", help="measure one setting in this process, print JSON")
    parser.add_argument("--preset", default="auto", help="as in run.py (default: auto)")
    add_config_flags(parser, without=("clients", "cohort", "rounds", "dataset", "partition"))
    try:
        arguments = parser.parse(argv)
        named(arguments.preset)
        if min(arguments.repeats, arguments.steps) < 1:
            raise ValueError("repeats, steps: allowed: 1 or more")
        if arguments.one:
            print(json.dumps(measure(arguments)))
            return 0
    except ValueError as error:
        return fail(error)
    turns = [clients for _ in range(arguments.repeats) for clients in CLIENTS]
    results: dict[int, list[dict]] = {clients: [] for clients in CLIENTS}
    for clients in track(turns, description="Measuring", console=Console(stderr=True), transient=True):
        command = [sys.executable, __file__, *(sys.argv[1:] if argv is None else argv), "--one", str(clients)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(done.stderr, end="", file=sys.stderr)
            return done.returncode
        results[clients].append(json.loads(done.stdout.splitlines()[-1]))
    report = {
        "machine": {
            "processor": processor(),
            "threads": torch.get_num_threads(),
            "system": platform.platform(),
        },
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "results": {str(clients): summary(runs) for clients, runs in results.items()},
    }
    show(report)
    if arguments.json:
        write_json(arguments.json, report)
    return 0


def measure(arguments) -> dict[str, float]:
    """Time single steps of one round and read the memory held, in this process."""
    config = replace(named(arguments.preset)[0], **config_values(arguments))
    clients = arguments.one
    before = resident_bytes()
    images = np.random.default_rng(0).integers(0, 256, (clients, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(clients) % 10
    dataset = make_dataset("random", "made up", Arrays(images, labels, images[:10], labels[:10], tuple("0123456789")))
    del images
    setting = {"clients": clients, "cohort": min(100, clients), "partition": "iid", "rounds": arguments.steps + 3}
    simulation = Simulation(replace(config, **setting), dataset)
    times = []
    for _ in range(simulation.config.rounds):  # one image per client: each round is one step
        begin = time.perf_counter()
        next(simulation.rounds())
        times.append(time.perf_counter() - begin)
    state = simulation.state.clients
    held = [state.momentum, state.velocity, state.participation, dataset.train_labels]
    indices = [simulation.partition.indices, simulation.partition.offsets]
    per_client = sum(t.nbytes for t in held) + sum(a.nbytes for a in indices)
    return {
        "step_seconds": median(times[3:]),
        "resident_bytes": resident_bytes() - before,
        "persisting_bytes": per_client + dataset.train.pixels.nbytes,
        "bytes_per_client": per_client / clients,
    }


def resident_bytes() -> int:
    """Memory of this process that is in use now (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def summary(runs: list[dict[str, float]]) -> dict[str, float]:
    """Medians, and the spread of the step time."""
    times = [run["step_seconds"] for run in runs]
    return {key: median(run[key] for run in runs) for key in runs[0]} | {
        "step_seconds_min": min(times),
        "step_seconds_max": max(times),
        "runs": len(runs),
    }


def processor() -> str:
    """Name of the processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def show(report: dict) -> None:
    """Print the table."""
    table = Table(title=f"one round of one step; torch {report['versions']['torch']}, {report['machine']['processor']}")
    for column in (
        "clients",
        "step [ms]",
        "min to max",
        "memory [MB]",
        "of which persists",
        "bytes per client",
    ):
        table.add_column(column, justify="right")
    for clients, row in report["results"].items():
        table.add_row(
            f"{int(clients):,}",
            f"{1000 * row['step_seconds']:.1f}",
            f"{1000 * row['step_seconds_min']:.1f} to {1000 * row['step_seconds_max']:.1f}",
            f"{row['resident_bytes'] / 1e6:,.0f}",
            f"{row['persisting_bytes'] / 1e6:,.0f}",
            f"{row['bytes_per_client']:,.0f}",
        )
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
