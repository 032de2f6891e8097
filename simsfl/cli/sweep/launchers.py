"""Where the runs of a sweep are carried out: side by side on this machine, or as jobs of a cluster.

A run is a few processes of ``simsfl``, one after another. Whoever carries it out holds a lock on its log file, so that
no run is carried out twice at a time, also by programs that know nothing of each other; the system releases the lock of
a process that has ended, however it did.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, TextIO

from simsfl.cli.sweep.cells import Attack
from simsfl.cli.sweep.grid import ATTEMPT, Plan
from simsfl.runs.directory import RunDirectory
from simsfl.setup.checks import check_device
from simsfl.system import programs
from simsfl.system.files import lock
from simsfl.system.messages import shortened
from simsfl.system.outputs import Outputs

_MANY = 100
"""Jobs of a cluster that wait or go on at a time, at most, unless ``--jobs`` says."""
_SETTINGS = {"timeout_min": 24 * 60}
"""Settings of a cluster's jobs unless the user has others: Slurm's executor would end them after five minutes."""
JOBS = "jobs"
"""Directory, in that of a sweep, for the files of a cluster's jobs."""


class Started(Protocol):
    """A run that has been started; a context at whose end it no longer uses anything of this process."""

    plan: Plan
    """The run."""
    text: str
    """Name of the run that is shown while it goes on."""
    begin: float
    """When it was started, by ``time.perf_counter``."""

    def __enter__(self) -> Started: ...

    def __exit__(self, *error: object) -> None: ...

    def goes_on(self) -> bool:
        """Do what is to be done now, such as to start the next process; return whether the run goes on."""


class Launcher(Protocol):
    """Starts runs."""

    places: int
    """How many runs can go on at a time."""
    planned: int
    """How many of them share this machine and the time of a budget."""

    def start(self, plan: Plan, text: str, outputs: Outputs) -> Started:
        """Start a run.

        Args:
            plan: the run.
            text: what it is called.
            outputs: the directory that holds the run directories.

        Raises:
            BlockingIOError: somebody else is carrying it out.
        """

    def started(self) -> None:
        """Take note that all runs are started that can be for now."""


def launcher_of(arguments: Any, out: Path) -> Launcher:
    """Return the launcher that the flags of a program ask for.

    Args:
        arguments: flags with `launcher`, `jobs`, `devices` and `job`.
        out: the directory that holds the run directories.

    Raises:
        ValueError: flags contradict each other, a device is not there, or submitit is not.
    """
    devices = [name.strip() for name in arguments.devices.split(",")] if arguments.devices is not None else []
    if arguments.launcher == "submitit":
        if devices:
            raise ValueError("devices: has no effect with --launcher submitit; allowed: --job gpus_per_node=1")
        return Cluster(out, arguments.jobs, _SETTINGS | dict(arguments.job or ()))
    if arguments.job:
        raise ValueError("job: has no effect with --launcher local; allowed with --launcher submitit")
    if devices and arguments.jobs:
        raise ValueError("jobs: cannot be given with --devices, each of which has one run; allowed: one of the two")
    for name in devices:
        try:
            check_device(name)
        except ValueError as error:
            raise ValueError(f"devices: {str(error).removeprefix('device: ')}") from error
    return Local(arguments.jobs or 1, devices)


class Local:
    """Carries out runs on this machine.

    Args:
        jobs: how many go side by side, and share the cores.
        devices: devices such as "cuda:0", each of which has one run at a time; none for that of the config.
    """

    def __init__(self, jobs: int = 1, devices: Sequence[str] = ()):
        self.places = self.planned = len(devices) or jobs
        self._free = list(devices)

    def start(self, plan: Plan, text: str, outputs: Outputs) -> Started:
        """Start a run in processes of this machine; see `Launcher`."""
        return _Processes(plan, text, outputs, self.places, self._free)

    def started(self) -> None:
        """Do nothing: processes have begun already."""


class _Processes:
    """A run on this machine.

    Args:
        plan: the run.
        text: what it is called.
        outputs: the directory that holds the run directories.
        jobs: how many runs share the cores of this machine.
        free: devices that no run is on, one of which this run takes, and gives back; none for that of the config.
    """

    def __init__(self, plan: Plan, text: str, outputs: Outputs, jobs: int, free: list[str]):
        self.plan, self.text, self.begin = plan, text, time.perf_counter()
        self.environment = programs.environment() | ({"OMP_NUM_THREADS": str(threads_of(jobs))} if jobs > 1 else {})
        self.stack = ExitStack()
        self.log = self.stack.enter_context(locked(outputs.path / f"{plan.name}.log"))
        device = free.pop(0) if free else None
        if device:
            self.stack.callback(free.append, device)
        self.stages = stages(plan, outputs, device)
        self.process: subprocess.Popen | None = None

    def __enter__(self) -> _Processes:
        return self

    def __exit__(self, *error: object) -> None:
        self.stack.close()

    def goes_on(self) -> bool:
        """Start the next process if it is time to; return whether the run goes on."""
        if self.process is None or self.process.poll() == 0:
            argv = next(self.stages, None)
            if argv is None:
                self.stack.close()
                return False
            self.process = self.stack.enter_context(running(argv, self.log, self.environment))
            return True
        if self.process.poll() is None:
            return True
        self.stack.close()
        return False


class Cluster:
    """Carries out runs as jobs of a Slurm cluster, by submitit; without Slurm, as processes of this machine.

    Jobs that have been submitted go on when this program is stopped. The same command submits them again, and those
    that are carried out already, or have ended, do nothing.

    Args:
        out: the directory of the sweep, which all nodes have.
        jobs: how many go side by side, at most; None for `_MANY`, of which none shares the time of a budget.
        settings: settings of a job, by their names in submitit, such as "timeout_min" and "slurm_partition".

    Raises:
        ValueError: submitit is not installed, or has no such setting.
    """

    def __init__(self, out: Path, jobs: int | None, settings: dict[str, Any]):
        if find_spec("submitit") is None:
            raise ValueError("launcher: submitit is not installed; allowed: local, or pip install simsfl[sweep]")
        self.places, self.planned = jobs or _MANY, jobs or 1
        self._out, self._settings = out, {"slurm_array_parallelism": self.places} | settings
        self._executor, self._pending = None, []
        with tempfile.TemporaryDirectory() as scratch:
            try:
                self._executor_in(Path(scratch))
            except (NameError, TypeError, AssertionError) as error:
                reason = shortened(" ".join(str(error).split()), 200)
                raise ValueError(f"job: {reason}; allowed: what submitit.AutoExecutor takes") from error

    def _executor_in(self, folder: Path) -> Any:
        """Return submitit's executor with files in a folder, which it makes."""
        import submitit  # noqa: PLC0415  (an extra)

        executor = submitit.AutoExecutor(folder=folder)
        executor.update_parameters(name="simsfl", **self._settings)
        return executor

    def start(self, plan: Plan, text: str, outputs: Outputs) -> Started:
        """Have a job carry out a run, once it is submitted; see `Launcher`."""
        with locked(outputs.path / f"{plan.name}.log"):
            pass  # nobody else is at it
        self._pending.append(_Job(plan, text))
        return self._pending[-1]

    def started(self) -> None:
        """Submit the jobs of all runs that were started since, as one array."""
        if not self._pending:
            return
        self._executor = self._executor or self._executor_in(self._out / JOBS)
        with self._executor.batch():
            for run in self._pending:
                run.job = self._executor.submit(_carry_out, run.plan, self._out.resolve())
        self._pending = []


class _Job:
    """A run that is a job of a cluster.

    Args:
        plan: the run.
        text: what it is called.

    Attributes:
        job: submitit's job, once it is submitted.
    """

    def __init__(self, plan: Plan, text: str):
        self.plan, self.text, self.begin, self.job = plan, text, time.perf_counter(), None

    def __enter__(self) -> _Job:
        return self

    def __exit__(self, *error: object) -> None:
        """Leave the job to the cluster."""

    def goes_on(self) -> bool:
        """Return whether the job waits or goes on."""
        return not self.job.done()


def _carry_out(plan: Plan, out: Path) -> None:
    """Carry out a run in a job, unless somebody else does."""
    try:
        with locked(out / f"{plan.name}.log") as log:
            for argv in stages(plan, Outputs(out), None):
                with running(argv, log) as process:
                    if process.wait():
                        return  # the log says why
    except BlockingIOError:
        return


@contextmanager
def locked(log: Path) -> Iterator[TextIO]:
    """Open a run's log file to be continued, as the only one who carries out the run, with its processes.

    Raises:
        BlockingIOError: somebody else is carrying it out.
    """
    with log.open("a", encoding="utf-8") as file:
        lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # processes that write into the file hold it, too
        yield file


def threads_of(jobs: int) -> int:
    """Return the threads of each of several runs that share the cores of this machine."""
    return max(1, len(os.sched_getaffinity(0)) // jobs) if hasattr(os, "sched_getaffinity") else 1


def stages(plan: Plan, outputs: Outputs, device: str | None) -> Iterator[list[str]]:
    """Yield the arguments of ``simsfl`` for what is left of a run: begin or resume its training, then attack it.

    Args:
        plan: the run.
        outputs: the directory that holds the run directories.
        device: device of the run instead of the config's.
    """
    out, config, on = outputs.path, f"{plan.name}.json", ["--device", device] if device else []
    run = out / plan.name
    if not (run / "summary.json").exists():
        outputs.write_json(config, plan.config_in(out).to_dict())
        begun = (run / "config.json").exists()
        where = ["--resume", str(run)] if begun else ["--config", str(out / config), "--out", str(run)]
        yield ["run", *where, "--dashboard", "off", *on]
    if plan.attack_epochs and not (RunDirectory(run).attacks / f"{plan.cell.attack.decoder}.json").exists():
        yield attack_argv(plan, out, device)


def attack_argv(plan: Plan, out: Path, device: str | None = None) -> list[str]:
    """Return the arguments of ``simsfl`` for the attack on a run; see `stages`."""
    how = [*attack_flags(plan.cell.attack), "--attack-epochs", str(plan.attack_epochs)]
    return ["attack", str(out / plan.name), *how, "--device", device or plan.config.device]


def attack_flags(attack: Attack) -> list[str]:
    """Return the flags of ``simsfl attack`` for decoder and share, as far as they are not the published ones."""
    usual = Attack()
    decoder = ["--decoder", attack.decoder] if attack.decoder != usual.decoder else []
    return decoder + (["--attacker-data", str(attack.share)] if attack.share != usual.share else [])


@contextmanager
def running(argv: list[str], log: TextIO, environment: dict[str, str] | None = None) -> Iterator[subprocess.Popen]:
    """Start ``simsfl`` with the given arguments in a process of its own, which writes to the log file `log`.

    Interrupt the process at the end of the context, and wait for it.
    """
    print(f"{ATTEMPT}{shlex.join(argv)}", file=log, flush=True)
    words = [sys.executable, "-m", "simsfl", *argv]
    process = subprocess.Popen(words, stdout=log, stderr=log, start_new_session=True, env=environment)
    try:
        yield process
    finally:
        process.terminate()  # not by SIGINT: a job in the background ignores that, and so do its processes
        process.wait()
