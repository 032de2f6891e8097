"""Where the time of a step goes, engine by engine, side by side: ``python experiments/bench.py``.

Engines run in processes of their own and take turns of a few steps, the first of which is not timed: so neither one's
memory nor whatever else the machine does falls on one alone, and a step finds the caches as it does in a run. ``loop``
is the published way of working (`published.py`): a module, an optimiser, a schedule and a pipeline of PIL views per
client, with PyTorch's own choice of where to use TF32. ``+tf32`` or ``+bf16`` behind another engine is its precision,
else fp32.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from statistics import median, quantiles
from tempfile import TemporaryFile
from typing import Any

from rich.console import Console
from rich.table import Table

from simsfl.cli.flags import add_config_flags, config_values
from simsfl.cli.presets import named
from simsfl.cli.progress import watched
from simsfl.config import ENGINES as KINDS
from simsfl.config import PRECISIONS
from simsfl.system.messages import unknown
from simsfl.ui.arguments import Parser, fail, path, whole_number

CLIENTS = (1_000, 10_000, 100_000, 1_000_000)
ENGINES = ("loop", "vmap", "fused", "fused+bf16")
CLIENT_PHASES = ("data", "client forward", "client backward")
ORDER = (
    *("data", "replay", "client forward", "server", "client backward", "sync", "the rest", "client phase", "step"),
)
"""Of the rows; an engine has no phase that is not among them."""
TURN = 5
"""Steps timed in a row."""
REST = 0.5
"""Seconds between turns: threads wait for more work by spinning for a while, which would slow the next engine down."""
PAPER_STEPS = 100_000
"""Of 200 epochs with 1,000 clients of 50 images, 100 at a time."""

NO_MATTER = (
    *("rounds", "epochs", "engine", "precision", "checkpoint_every"),
    *("eval_every", "eval_features", "knn_bank", "knn_test", "linear_probe", "semi_supervised", "probe_epochs"),
)
"""Config fields that no step depends on, or that are told otherwise."""

IDLE = {
    "scale": ("engines", "clients", "dataset", "data_dir", "batch_size", "partition"),
    "start": ("engines", "steps", "partition"),
}
"""Flags that have no effect, by mode."""

Json = dict[str, Any]


def parser() -> Parser:
    """All flags of this program."""
    result = Parser(prog="bench.py", description=__doc__.splitlines()[0])
    what = result.add_argument_group("what to measure")
    what.add_argument(
        "--engines", help=f"by comma; +tf32 or +bf16 behind one is its precision (default: {','.join(ENGINES)})"
    )
    what.add_argument(
        "--scale",
        type=whole_number,
        nargs="?",
        const=max(CLIENTS),
        metavar="N",
        help="step time and memory for 1,000 clients to N (default: 1,000,000) instead",
    )
    what.add_argument("--start", action="store_true", help="time from the start to the first step instead")
    what.add_argument("--steps", type=whole_number, help="steps timed (default: 10)")
    what.add_argument("--json", type=path, metavar="FILE", help="write the figures here too")
    what.add_argument("--preset", default="paper", help="as in run.py (default: paper)")
    add_config_flags(result, without=NO_MATTER)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print tables, write JSON; the exit code."""
    try:
        arguments = parser().parse(argv)
        values = config_values(arguments)
        check(arguments, values)
        config = replace(named(arguments.preset)[0], **values)
        config.check_effect(values)
        names, steps = engine_names(arguments.engines or ",".join(ENGINES)), arguments.steps or 10
        fields = config.to_dict()
        from simsfl.setup.defaults import check_device  # noqa: PLC0415  (imports torch: other mistakes answer at once)

        check_device(config.device)
        report = {"machine": machine(), "config": fields}
        if arguments.scale:
            report["scale"] = scale(fields, steps, arguments.scale)
        elif arguments.start:
            report["start"] = start(fields)
        else:
            report["engines"] = engines(fields, names, steps)
            report["peaks"] = one("peaks", fields)
        for table in tables(report):
            Console(width=max(100, Console().width)).print(table)
        if arguments.json:
            from simsfl.system.files import write_json  # noqa: PLC0415

            write_json(arguments.json, report)
    except (ValueError, OSError) as error:
        return fail(error)
    return 0


def check(arguments: Any, values: Json) -> None:
    """Raise a ValueError for flags that cannot work, or that have no effect beside the others."""
    file = arguments.json
    if file and not file.parent.is_dir():
        raise ValueError(f"json: there is no directory {file.parent}; allowed: one that exists")
    if file and (file.is_dir() or not os.access(file.parent, os.W_OK)):
        raise ValueError(f"json: {file} cannot be written; allowed: a file in a writable directory")
    if arguments.scale and arguments.start:
        raise ValueError("start: cannot be given with --scale; allowed: one of the two")
    given = {name for name in ("engines", "steps") if getattr(arguments, name)} | set(values)
    for mode, idle in IDLE.items():
        for name in idle:
            if getattr(arguments, mode) and name in given:
                raise ValueError(f"{name}: has no effect with --{mode}; allowed without it")


def engine_names(text: str) -> list[str]:
    """Engines by name, each with its precision.

    Raises:
        ValueError: one of them is none.
    """
    names = [name.strip() for name in text.split(",")]
    for name in names:
        kind, plus, precision = name.partition("+")
        if kind not in KINDS or (plus and precision not in PRECISIONS):
            raise unknown("engines", name, KINDS, also="one with +tf32 or +bf16")
        if kind == "loop" and plus:
            raise ValueError(
                f"engines: {name} is not the published way of working; allowed: loop, or {precision} of others"
            )
    return list(dict.fromkeys(names))


def engines(fields: Json, names: Sequence[str], steps: int) -> Json:
    """Median and quartiles of each phase by engine, the engines taking turns."""
    with ExitStack() as stack:
        workers, facts = {}, {}
        for name in watched(names, "Starting"):  # one by one: each finds out which versions of operators are fastest
            workers[name] = stack.enter_context(Worker("engine", fields, name))
            facts[name] = workers[name].answer()
        measured: dict[str, list[Json]] = {name: [] for name in names}
        turns = [(length, name) for length in turn_lengths(steps) for name in names]
        for length, name in watched(turns, "Measuring"):
            time.sleep(REST)
            measured[name] += [workers[name].step() for _ in range(1 + length)][1:]
    results = {}
    for name, runs in measured.items():
        times = {"step": [run["step"] for run in runs]}
        for phase in (phase for phase in runs[0]["phases"] if phase != "capture"):  # that is before what is timed
            times["replay" if phase == "step" else phase] = [run["phases"][phase] for run in runs]
        if "client forward" in times:  # in a step that is replayed as a whole, phases cannot be told apart
            times["client phase"] = [sum(run["phases"].get(phase, 0.0) for phase in CLIENT_PHASES) for run in runs]
        results[name] = facts[name] | {
            "seconds": {phase: summary(values) for phase, values in times.items()},
            "steps": steps,
            "peak_bytes": runs[-1]["peak_bytes"],
            "loss": runs[-1]["loss"],
        }
    return results


def turn_lengths(steps: int) -> list[int]:
    """`steps` in turns of `TURN` at most."""
    return [min(TURN, steps - done) for done in range(0, steps, TURN)]


def scale(fields: Json, steps: int, most: int) -> Json:
    """Step time and memory by number of clients, at most so many, each in a process of its own."""
    results = {}
    for clients in watched([clients for clients in CLIENTS if clients < most] + [most], "Measuring"):
        run = one("scale", fields | {"clients": clients, "dataset": "shapes"}, str(steps))
        results[str(clients)] = run | {"step": summary(run["step_seconds"])}
    return results


def start(fields: Json) -> Json:
    """Seconds to the first step, for as many clients as configured and for 100,000 of shapes; the median of three."""
    results = {}
    many = {100_000} if fields["dataset"] in ("auto", "cifar10", "shapes") else set()  # of which there are images
    for clients in watched(sorted({fields["clients"], *many}), "Measuring"):
        runs = [one("start", fields | {"clients": clients, "partition": "iid"}) for _ in range(3)]
        results[str(clients)] = {key: median(run[key] for run in runs) for key in runs[0]}
    return results


def summary(seconds: Sequence[float]) -> Json:
    """Median and quartiles."""
    low, middle, high = quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else [seconds[0]] * 3
    return {"median": middle, "q1": low, "q3": high}


class Worker:
    """A process of ``measure.py``; it ends with the context."""

    def __init__(self, what: str, fields: Json, *rest: str):
        command = [sys.executable, "-m", "simsfl.cli.bench.measure", what, json.dumps(fields), *rest]
        self.errors = TemporaryFile("w+")  # noqa: SIM115  (a pipe that nobody empties would stop the process)
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        with suppress(BrokenPipeError):
            self.process.communicate()
        self.errors.close()

    def answer(self) -> Json:
        """The next line; a ValueError with its last words if there is none."""
        if line := self.process.stdout.readline():
            return json.loads(line)
        self.errors.seek(0)
        words = self.errors.read().strip().rpartition("\n")[2].removeprefix("ValueError: ")
        raise ValueError(words or f"a process that measures ended with {self.process.wait()}")

    def step(self) -> Json:
        """What it reports of its next step."""
        with suppress(BrokenPipeError):  # it has ended, and says why
            print("step", file=self.process.stdin, flush=True)
        return self.answer()


def one(what: str, fields: Json, *rest: str) -> Json:
    """The only answer of a process."""
    with Worker(what, fields, *rest) as worker:
        return worker.answer()


def machine() -> Json:
    """What it was measured on, and with."""
    import torch  # noqa: PLC0415  (takes seconds)

    from simsfl.engine.tuning import processor  # noqa: PLC0415
    from simsfl.runs.directory import git_commit  # noqa: PLC0415

    return {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": git_commit(),
    }


def tables(report: Json) -> Iterator[Table]:
    """The figures of a report, for people."""
    machine = report["machine"]
    where = f"{machine['device']}, {machine['processor']}, {machine['threads']} threads, torch {machine['torch']}"
    config = report["config"]
    if "engines" in report:
        yield engine_table(
            report, f"{config['arch']}, cut layer {config['cut_layer']}, {config['clients']:,} clients; {where}"
        )
    if "scale" in report:
        yield scale_table(report["scale"], f"{config['arch']}, state on {config['client_state']}; {where}")
    if "start" in report:
        yield start_table(report["start"], f"preset {config['preset']}; {where}")


def engine_table(report: Json, title: str) -> Table:
    """Phases down, engines across."""
    results = report["engines"]
    table = Table(title=title, caption="ms: median (quartiles); the ratios are of medians")
    table.add_column("")
    for name in results:
        table.add_column(name, justify="right")
    phases = {phase for run in results.values() for phase in run["seconds"]}
    for phase in sorted(phases, key=ORDER.index):
        table.add_row(phase, *(spread(run["seconds"].get(phase)) for run in results.values()))
    if "loop" in results:
        for phase in ("client phase", "step"):
            base = results["loop"]["seconds"][phase]["median"]
            own = [run["seconds"].get(phase) for run in results.values()]
            ratios = [f"{base / seconds['median']:.2f}" if seconds else "-" for seconds in own]
            table.add_row(f"{phase}, times as fast as loop", *ratios)
    table.add_row("peak memory [MB]", *(f"{run['peak_bytes'] / 1e6:,.0f}" for run in results.values()))
    work = sum(report["peaks"]["step_flops"].values())
    rates = {name: work / run["seconds"]["step"]["median"] for name, run in results.items()}
    table.add_row("GFLOP/s", *(f"{rate / 1e9:,.0f}" for rate in rates.values()))
    peaks = report["peaks"]
    shares = (rate / peaks[f"{name.partition('+')[2] or 'fp32'}_flops"] for name, rate in rates.items())
    table.add_row("share of a matrix product's", *(f"{share:.0%}" for share in shares))
    hours = (PAPER_STEPS * run["seconds"]["step"]["median"] / 3600 for run in results.values())
    table.add_row(f"hours for {PAPER_STEPS:,} such steps", *(f"{hour:,.1f}" for hour in hours))
    return table


def scale_table(results: Json, title: str) -> Table:
    """A row for each number of clients."""
    table = Table(title=title, caption="resident memory, once every client has a state of its own")
    columns = (
        "clients",
        "step [ms]",
        "quartiles",
        "start [s]",
        "memory [MB]",
        "peak",
        "above the data",
        "bytes a client",
    )
    for column in columns:
        table.add_column(column, justify="right")
    for clients, run in results.items():
        table.add_row(
            f"{int(clients):,}",
            f"{1000 * run['step']['median']:,.1f}",
            f"{1000 * run['step']['q1']:,.1f} to {1000 * run['step']['q3']:,.1f}",
            f"{run['start_seconds']:.1f}",
            f"{run['resident_bytes'] / 1e6:,.0f}",
            f"{run['peak_bytes'] / 1e6:,.0f}",
            f"{(run['resident_bytes'] - run['data_bytes']) / 1e6:,.0f}",
            f"{run['bytes_per_client']:,.0f}",
        )
    return table


def start_table(results: Json, title: str) -> Table:
    """A row for each number of clients."""
    table = Table(title=title, caption="seconds, median of three processes; data in the cache")
    for column in ("clients", "import torch", "ready to train", "first step", "beyond import torch"):
        table.add_column(column, justify="right")
    for clients, run in results.items():
        seconds = (run["import_torch"], run["ready"], run["first_step"], run["ready"] + run["first_step"])
        table.add_row(f"{int(clients):,}", *(f"{value:.2f}" for value in seconds))
    return table


def spread(seconds: Json | None) -> str:
    """Median and quartiles in ms."""
    if seconds is None:
        return "-"
    low, middle, high = (1000 * seconds[key] for key in ("q1", "median", "q3"))
    digits = 1 if middle < 100 else 0
    return f"{middle:,.{digits}f} ({low:,.{digits}f}-{high:,.{digits}f})"
