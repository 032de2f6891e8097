"""Time the phases of a training step, engines side by side.

Each engine runs in a process of its own, so that no engine's memory affects another. The engines take turns of a few
steps, so that other load on the machine falls on all of them; the first step of a turn is not timed, so that the others
find the caches as in a run. ``loop`` is the published way of working (`published.py`): a module, an optimiser, a
schedule and a pipeline of PIL views per client, with PyTorch's own choice of where to use TF32. Another engine runs in
fp32, or in the precision that its name ends with: ``+tf32`` or ``+bf16``.
"""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from statistics import median, quantiles
from tempfile import TemporaryFile
from typing import Any

from simsfl.cli.flags import add_config_flags, asked_config, config_values
from simsfl.config import ENGINES as KINDS
from simsfl.config import PRECISIONS
from simsfl.config.catalogue import DATASETS
from simsfl.system import programs
from simsfl.system.console import Output
from simsfl.system.messages import unknown
from simsfl.system.outputs import Outputs
from simsfl.system.progress import watched
from simsfl.ui.arguments import Parser, fail, path, whole_number

_SMALL = ("auto", "cifar10", "shapes")
"""Data sets that are replaced by the built-in shapes where clients are more than their images."""
_MANY = 100_000
"""Number of clients that ``--start`` measures besides the configured one, where shapes can replace the data set."""
_CLIENTS = (1_000, 10_000, 100_000, 1_000_000)
"""Numbers of clients that ``--scale`` measures."""
_ENGINES = ("loop", "vmap", "fused", "fused+bf16")
"""Engines that are timed by default."""
_CLIENT_PHASES = ("data", "client forward", "client backward")
"""Phases whose sum is called "client phase"."""
_TURN = 5
"""Steps of a turn that are timed."""
_REST = 0.5
"""Seconds between turns: idle threads spin for a while, which would slow down the next engine."""
_SAID = re.compile(r"^(?:\[rank\d+\]: )?(?:error|ValueError): (.+)$", re.MULTILINE)
"""What a process that measures, or one of its ranks, says when it ends for an error."""
_NO_MATTER = (
    *("rounds", "epochs", "engine", "precision", "checkpoint_every", "track"),
    *(
        "eval_every",
        "eval_features",
        "knn_bank",
        "knn_test",
        "knn_k",
        "knn_temperature",
        "linear_probe",
        "semi_supervised",
        "probe_epochs",
    ),
)
"""Config fields without a flag: no step depends on them, or another flag sets them."""

_IDLE = {
    "scale": ("engines", "clients", "dataset", "data_dir", "batch_size", "partition"),
    "start": ("engines", "steps", "partition"),
    "ranks": ("engines",),
}
"""Flags that have no effect with ``--scale``, ``--start`` or ``--ranks``."""

_Json = dict[str, Any]


def _counts(text: str) -> list[int]:
    """Return the numbers of ranks in a text, where commas separate them."""
    return list(dict.fromkeys(whole_number(part) for part in text.split(",")))


def parser() -> Parser:
    """Return the parser of this program's flags."""
    result = Parser(description=__doc__.splitlines()[0])
    what = result.add_argument_group("what to measure")
    what.add_argument(
        "--engines",
        metavar="NAME,NAME",
        help=f"engines; +tf32 or +bf16 sets one's precision (default: {','.join(_ENGINES)})",
    )
    what.add_argument(
        "--scale",
        type=whole_number,
        nargs="?",
        const=max(_CLIENTS),
        metavar="N",
        help="measure step time and memory for 1,000 to N clients (default: 1,000,000) instead",
    )
    what.add_argument(
        "--start",
        action="store_true",
        help=f"measure the time to the first step instead, with small images also that of {_MANY:,} clients",
    )
    what.add_argument(
        "--ranks",
        type=_counts,
        metavar="N,N",
        help="measure step time, exchange and memory for these numbers of ranks instead; on a CPU each has one thread",
    )
    what.add_argument("--steps", type=whole_number, help="number of timed steps (default: 10)")
    what.add_argument("--json", type=path, metavar="FILE", help="write the figures into this file too")
    add_config_flags(result, preset="paper", group=what, without=_NO_MATTER)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print tables and write them as JSON if asked; return the exit code."""
    try:
        arguments = parser().parse(argv)
        out = Outputs.of(arguments.json, "json") if arguments.json else None
        _check(arguments, config_values(arguments))
        config = asked_config(arguments)
        names, steps = _engine_names(arguments.engines or ",".join(_ENGINES)), arguments.steps or 10
        fields = _with_enough(config.to_dict())
        from simsfl.setup.checks import check_device  # noqa: PLC0415  (imports torch: other mistakes are reported first)

        check_device(config.device)
        report = {"machine": _machine(), "config": fields}
        if arguments.scale:
            report["scale"] = _scale(fields, steps, arguments.scale)
        elif arguments.start:
            report["start"] = _start(fields)
        elif arguments.ranks:
            report["ranks"] = _ranks(fields, steps, arguments.ranks)
        else:
            report["engines"] = _engines(fields, names, steps)
            report["peaks"] = _one("peaks", fields)
        if out:
            out.write_json(arguments.json.name, report)
        from simsfl.cli.bench.tables import tables  # noqa: PLC0415  (imports torch)

        for table in tables(report):
            Output(width=max(100, Output().width)).print(table)
    except (ValueError, OSError) as error:
        return fail(error)
    return 0


def _check(arguments: Any, values: _Json) -> None:
    """Raise a ValueError for flags that cannot work, or that have no effect beside the others."""
    modes = [mode for mode in _IDLE if getattr(arguments, mode)]
    if len(modes) > 1:
        raise ValueError(f"{modes[1]}: cannot be given with --{modes[0]}; allowed: one of the two")
    given = {name for name in ("engines", "steps") if getattr(arguments, name)} | set(values)
    for mode, idle in _IDLE.items():
        for name in idle:
            if getattr(arguments, mode) and name in given:
                raise ValueError(f"{name}: has no effect with --{mode}; allowed without it")


def _engine_names(text: str) -> list[str]:
    """Return the names of engines, each with its precision, in `text`, where commas separate them.

    Raises:
        ValueError: an engine or precision is not known, or ``loop`` has a precision.
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


def _engines(fields: _Json, names: Sequence[str], steps: int) -> _Json:
    """Time engines in turns; return the median and quartiles of each phase in seconds, with other facts, by engine.

    Args:
        fields: the config as a dict.
        names: engines with their precision.
        steps: number of timed steps of each engine.
    """
    with ExitStack() as stack:
        workers, facts = {}, {}
        for name in watched(names, "Starting"):  # one by one: each times operators to choose among them
            workers[name] = stack.enter_context(_Worker("engine", fields, name))
            facts[name] = workers[name].answer()
        measured: dict[str, list[_Json]] = {name: [] for name in names}
        turns = [(length, name) for length in _turn_lengths(steps) for name in names]
        for length, name in watched(turns, "Measuring"):
            time.sleep(_REST)
            measured[name] += [workers[name].step() for _ in range(1 + length)][1:]
    results = {}
    for name, runs in measured.items():
        times = {"step": [run["step"] for run in runs]}
        for phase in (phase for phase in runs[0]["phases"] if phase != "capture"):  # it happens before the timed steps
            times["replay" if phase == "step" else phase] = [run["phases"][phase] for run in runs]
        if "client forward" in times:  # a step that is replayed as a whole has no such phases
            times["client phase"] = [sum(run["phases"].get(phase, 0.0) for phase in _CLIENT_PHASES) for run in runs]
        results[name] = facts[name] | {
            "seconds": {phase: _summary(values) for phase, values in times.items()},
            "steps": steps,
            "peak_bytes": runs[-1]["peak_bytes"],
            "loss": runs[-1]["loss"],
        }
    return results


def _turn_lengths(steps: int) -> list[int]:
    """Return the lengths of turns of at most `_TURN` steps that make up `steps`, such as 5, 5 and 2."""
    return [min(_TURN, steps - done) for done in range(0, steps, _TURN)]


def _scale(fields: _Json, steps: int, most: int) -> _Json:
    """Return step time and memory by number of clients, each measured in a process of its own.

    Args:
        fields: the config as a dict.
        steps: number of timed steps.
        most: the largest number of clients; the others are the smaller ones of `_CLIENTS`.
    """
    results = {}
    for clients in watched([clients for clients in _CLIENTS if clients < most] + [most], "Measuring"):
        run = _one("scale", fields | {"clients": clients, "dataset": "shapes"}, str(steps))
        results[str(clients)] = run | {"step": _summary(run["step_seconds"])}
    return results


def _ranks(fields: _Json, steps: int, sizes: Sequence[int]) -> _Json:
    """Return step time, time and bytes of exchange, and memory of the largest rank, by number of ranks.

    Args:
        fields: the config as a dict.
        steps: number of timed steps.
        sizes: numbers of ranks.
    """
    results = {}
    for size in watched(sizes, "Measuring"):
        with _Worker("ranks", fields, str(steps), ranks=size) as worker:
            run = worker.answer()
        times = {name: _summary(run[f"{name}_seconds"]) for name in ("step", "told")}
        most = {f"{name}_bytes": max(run[f"{name}_bytes"]) for name in ("kept", "peak")}
        results[str(size)] = times | {"sent_bytes": median(run["sent_bytes"])} | most
    return results


def _with_enough(fields: _Json) -> _Json:
    """Return a config, as a dict, with shapes instead of a data set that has fewer images than there are clients."""
    few = fields["dataset"] in _SMALL and fields["clients"] > DATASETS[fields["dataset"]].images
    return fields | {"dataset": "shapes"} if few else fields


def _start(fields: _Json) -> _Json:
    """Return the seconds to the first step by number of clients, the medians of three processes.

    The numbers of clients are the configured one and, where shapes can replace the data set, `_MANY`.
    """
    results = {}
    many = {_MANY} if fields["dataset"] in _SMALL else set()
    for clients in watched(sorted({fields["clients"], *many}), "Measuring"):
        own = _with_enough(fields | {"clients": clients, "partition": "iid"})
        runs = [_one("start", own) for _ in range(3)]
        results[str(clients)] = {key: median(run[key] for run in runs) for key in runs[0]}
    return results


def _summary(seconds: Sequence[float]) -> _Json:
    """Return median and quartiles, which are equal where there is a single value."""
    low, middle, high = quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else [seconds[0]] * 3
    return {"median": middle, "q1": low, "q3": high}


class _Worker:
    """A process of ``measure.py``, which is killed at the end of the context.

    Args:
        what: the measurement.
        fields: the config as a dict.
        rest: further arguments of the measurement.
        ranks: number of ranks that the process starts to measure; None for the process alone.
    """

    def __init__(self, what: str, fields: _Json, *rest: str, ranks: int | None = None):
        start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks else []
        command = [sys.executable, *start, "-m", "simsfl.cli.bench.measure", what, json.dumps(fields), *rest]
        environment = programs.environment() | ({"OMP_NUM_THREADS": "1"} if ranks else {})
        self.errors = TemporaryFile("w+")  # noqa: SIM115  (a pipe that nobody empties would stop the process)
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True, env=environment
        )

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()  # and thus the ranks that it has started
        with suppress(BrokenPipeError):
            self.process.communicate()
        self.errors.close()

    def answer(self) -> _Json:
        """Return the next line that the process prints, parsed.

        Raises:
            ValueError: the process has ended; the message is the error that it reported on stderr, or its last line.
        """
        if line := self.process.stdout.readline():
            return json.loads(line)
        self.errors.seek(0)
        text = self.errors.read().strip()
        said = _SAID.search(text)  # torchrun writes more lines after it
        words = said[1] if said else text.rpartition("\n")[2]
        raise ValueError(words or f"a process that measures ended with {self.process.wait()}")

    def step(self) -> _Json:
        """Have the process train a step; return its report. Raise a ValueError where the process has ended."""
        with suppress(BrokenPipeError):  # the process has ended, and `answer` reports why
            print("step", file=self.process.stdin, flush=True)
        return self.answer()


def _one(what: str, fields: _Json, *rest: str) -> _Json:
    """Return the only answer of a process; the arguments are those of `_Worker`."""
    with _Worker(what, fields, *rest) as worker:
        return worker.answer()


def _machine() -> _Json:
    """Return the hardware and software of this machine, and the commit of this code."""
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
