"""The work of ``run.py`` after its flags are read: set up a run, announce it, train, and print the results."""

from __future__ import annotations

import argparse
import os
import time
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch

from simsfl import RunConfig, Simulation
from simsfl.cli.announcement import announce, conclude
from simsfl.cli.choices import print_choices
from simsfl.cli.flags import asked_config, config_values
from simsfl.cli.fleet.story import described
from simsfl.cli.fleet.table import fleet_table
from simsfl.cli.ranks import Follower, check_same, device_for
from simsfl.cli.session import UNTRACED, Session, ended
from simsfl.config import plugins
from simsfl.config.presets import named
from simsfl.rounds.recorder import Recorder
from simsfl.rounds.saving import PLACES
from simsfl.runs.directory import RunDirectory
from simsfl.runs.metrics_log import check_goes_on
from simsfl.runs.tracking.feed import check_installed
from simsfl.setup.parts import absolute
from simsfl.system.console import Output
from simsfl.system.errors import is_foreseen
from simsfl.system.files import check_writable
from simsfl.system.memory import is_out_of_memory
from simsfl.system.messages import count_text
from simsfl.system.programs import command, pasted
from simsfl.system.signals import Stop
from simsfl.system.streams import print_error
from simsfl.system.world import ALONE, World

_CHOICES = ("preset", "dataset", "device", "precision", "engine")
"""Fields whose values may be chosen automatically, so that the output states the reason."""
_TRACED = "fp32", "a trace is recorded, for devices that may lack bf16"
"""The precision that "auto" means where a client trace is recorded, and the reason."""


class Guests(Protocol):
    """Participants from outside the simulation, such as real devices (hw_profile/)."""

    auto_precision: tuple[str, str]
    """The precision that "auto" means in a run that they take part in, and the reason."""

    def prepare(self, simulation: Simulation) -> None:
        """Raise a ValueError unless they can take part in this simulation; called before anything is written."""

    def resuming(self) -> list[str]:
        """Return the words of the command that resumes a run, without the run directory that follows them."""

    def during(self, session: Session) -> AbstractContextManager[object]:
        """Return a context that is entered while the session trains."""


def launch(
    arguments: argparse.Namespace,
    stop: Stop,
    guests: Guests | None = None,
    world: World = ALONE,
) -> int:
    """Do what the flags ask for; return the exit code of the program.

    Args:
        arguments: the flags of ``simsfl run``, parsed.
        stop: entered already; says when the user wants the run to end.
        guests: participants from outside the simulation, if any.
        world: the ranks that do it together.

    Returns:
        0 if all went well, 1 if training failed or stdout cannot be written, 128 plus the number of the signal if one
        stopped the run.

    Raises:
        ValueError: the flags ask for something impossible, or for more memory than there is.
        OSError: the run directory cannot be written, before training.
        KeyboardInterrupt: the user stopped the program before training.
    """
    console = Output(arguments.dashboard)
    if arguments.list:
        print_choices(console)
        return 0
    try:
        session = (_resumed if arguments.resume else _fresh)(arguments, console, stop, guests, world)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise ValueError(f"memory: this run does not fit ({error}); allowed: a smaller network or queue") from error
    if not isinstance(session, Session):
        return session.go() if session else 0
    if stop.received:  # an import may have swallowed the KeyboardInterrupt
        raise KeyboardInterrupt
    if timeline := session.simulation.parts.timeline:
        groups = range(len(timeline.costs.groups))
        console.print(fleet_table([described(timeline.costs, index) for index in groups]))
    try:
        with guests.during(session) if guests else nullcontext():
            finished = session.go(live=console.live, profile=arguments.profile)
    except Exception as error:
        if not is_foreseen(error):
            raise
        if world.speaks():
            print_error(f"{error}; the last good checkpoint is kept in {session.directory.checkpoints}")
        return 1
    if not finished:
        begin = guests.resuming() if guests else [*command("run"), *plugins.flags(), "--resume"]
        again = [*begin, str(session.directory.path)]
        console.say_command(f"stopped by {stop.received.name}; resume with:", again)
        _print_trace(console, session.recorder)
        if console.lost and not isinstance(console.lost, BrokenPipeError):
            print_error(f"output: stdout cannot be written ({console.lost.strerror}); resume with: {pasted(again)}")
            return 1
        return 128 + stop.received
    conclude(console, session.directory, session.result)
    return 0 if _print_trace(console, session.recorder) else 1


def _print_trace(console: Output, recorder: Recorder | None) -> bool:
    """Print where the client trace is, or an error that it could not be written; return whether all is well."""
    if recorder is None:
        return True
    if recorder.problem:
        print_error(f"record_trace: {recorder.path} could not be written ({recorder.problem})")
        return False
    console.say(f"  {recorder.path}  ", (f"the work of client {recorder.client}", "dim"))
    console.say_command("repeat this client's work with:", [*command("pi-bench"), "--replay", str(recorder.path)])
    return True


def _fresh(
    arguments: argparse.Namespace, console: Output, stop: Stop, guests: Guests | None, world: World
) -> Session | Follower:
    """Set up a new run from a preset or a config file, and the flags that override it.

    Of several ranks, the first has a session, and the others follow it.

    Raises:
        ValueError: the flags ask for something impossible, or the run directory is not free.
        OSError: the run directory cannot be written.
    """
    with world.agreeing():
        if arguments.overwrite and not arguments.out:
            raise ValueError("overwrite: has no effect without --out; allowed with --out DIR")
        config, why = _chosen_config(arguments)
        check_installed(config.trackers)
        config = replace(config, device=device_for(config.device, world))
        directory = RunDirectory(arguments.out or "runs")
        directory.check_free(overwrite=arguments.overwrite)
        usual = guests.auto_precision if guests else _TRACED if arguments.record_trace else None
        simulation = Simulation(config, auto_precision=usual, world=world)
        _check_profile(arguments.profile, simulation)
        recorder = _recorder_of(arguments, simulation)
        if guests:
            guests.prepare(simulation)
    check_same(simulation)
    directory = begun(simulation, arguments.out, overwrite=arguments.overwrite)
    with world.agreeing():
        session = _taking_part(simulation, directory, console, stop, recorder)
    if isinstance(session, Follower):
        return session
    origin = f"from {arguments.config}" if arguments.config else "by default"
    asked = {name: f"--{name}" if hasattr(arguments, name) else origin for name in _CHOICES}
    if config.dataset == "auto":
        asked["dataset"] = "auto"
    if config.device == "auto":
        asked["device"] = f"auto, {'a' if torch.cuda.is_available() else 'no'} CUDA device here"
    if config.precision == "auto":
        asked["precision"] = simulation.parts.reasons["precision"]
    announce(session, asked | {"preset": why, "batch_size": simulation.parts.reasons.get("batch_size", "")})
    return session


def _taking_part(
    simulation: Simulation, directory: RunDirectory, console: Output, stop: Stop, recorder: Recorder | None
) -> Session | Follower:
    """Return the session of the first rank, and of the others what follows it."""
    if simulation.parts.world.rank:
        return Follower(simulation, directory.path, stop)
    return Session(simulation, directory, console, stop, recorder)


def begun(simulation: Simulation, out: Path | None, *, overwrite: bool) -> RunDirectory:
    """Create the run directory of a new simulation, with its first checkpoint; return it.

    Args:
        simulation: the simulation, which has not begun.
        out: path of the directory; None for a new one in ``runs``, which is called by the time and the preset.
        overwrite: whether to replace a run that is there.

    Raises:
        ValueError: the directory is not free.
        OSError: it cannot be written.
    """
    new, world = out is None or not out.exists(), simulation.parts.world
    directory = RunDirectory(out or "runs")
    with world.agreeing():
        if world.rank == 0:
            if out is None:
                stamp = time.strftime("%Y%m%d-%H%M%S")
                directory = RunDirectory.claim(Path("runs") / f"{stamp}-{simulation.config.preset}")
            else:
                directory.check_free(overwrite=overwrite)
            directory.clear()
    directory = RunDirectory(world.tell(directory.path)[0])  # the one that the first rank has claimed
    try:
        simulation.save(directory.path)
    except BaseException:
        if new and world.rank == 0:
            with suppress(OSError):  # it was not made, or is not empty
                directory.path.rmdir()
        raise
    return directory


def _resumed(
    arguments: argparse.Namespace, console: Output, stop: Stop, guests: Guests | None, world: World
) -> Session | Follower | None:
    """Load the run in ``--resume``; return None, and print its results, if it is finished already.

    Of several ranks, the first has a session, and the others follow it.

    Raises:
        ValueError: the run cannot be resumed, or a flag contradicts its config; flags may repeat it, and say where its
            images lie now.
    """
    directory = RunDirectory(arguments.resume)
    with world.agreeing():
        try:
            saved = directory.read_config()
        except ValueError as error:
            raise ValueError(f"resume: {error}") from error
        check_goes_on(directory.metrics)
        device, places = _changes(arguments, directory, saved.config)
        if not world.alone:  # the run's own device is that of the first rank, with its number
            device = device_for(device if "device" in arguments.given else device.partition(":")[0], world)
        simulation = Simulation.load(directory.path, device=device, places=places, going_on=True, world=world)
        check_installed(simulation.config.trackers)
        _check_profile(arguments.profile, simulation)
        recorder = _recorder_of(arguments, simulation)
    check_same(simulation)
    if summary := ended(directory, simulation):
        console.say(f"the run in {directory.path} is finished")
        conclude(console, directory, summary)
        return None
    for problem in simulation.damaged:
        console.say((problem, "yellow"))
    if guests:
        guests.prepare(simulation)
    with world.agreeing():
        if world.rank == 0:
            directory.reopen(profile=bool(arguments.profile))
        session = _taking_part(simulation, directory, console, stop, recorder)
    if isinstance(session, Follower):
        return session
    why = dict.fromkeys(_CHOICES, "as configured") | {"batch_size": saved.reasons.get("batch_size", "")}
    if simulation.config.precision != saved.config.precision:
        why["precision"] = f"{saved.config.precision} as configured is not available here"
    announce(session, why)
    console.say(f"resumed   after round {simulation.progress.round_index}, step {simulation.progress.step_index}")
    if simulation.parts.device.type == "cpu" and torch.get_num_threads() != saved.threads:
        began = f"The run began with {count_text(saved.threads, 'thread')}: with another number, sums are rounded "
        console.say((f"{began}differently, and the result is not the same to the last bit.", "yellow"))
    return session


def _changes(arguments: argparse.Namespace, directory: RunDirectory, config: RunConfig) -> tuple[str, dict[str, str]]:
    """Return the device on which a run goes on, and what else may differ, as the flags say.

    That is where its images lie now, by `PLACES`, and its trackers.

    Raises:
        ValueError: another flag contradicts the config of the run; flags may repeat it.
    """
    for flag in ("preset", "config", "overwrite"):
        if flag in arguments.given:
            raise ValueError(
                f"{flag}: cannot be given with --resume, which continues as configured; allowed: without it"
            )
    if arguments.out and arguments.out.resolve() != directory.path.resolve():
        raise ValueError(f"out: {arguments.out} contradicts --resume {directory.path}; allowed: without it")
    values = config_values(arguments)
    device = values.pop("device", config.device)
    places = {name: values.pop(name) for name in (*PLACES, "track") if name in values}
    values |= {name: config.meant(name, text) for name, text in arguments.options.items()}
    held = config.to_dict() | config.defaults | config.options
    for name, value in values.items():
        same = [value, absolute(value)] if isinstance(value, str) else [value]  # saved configs have absolute paths
        if value != "auto" and not (name in held and held[name] in same):
            own = f"{held[name]!r}, or " if name in held else ""  # each of several defences may have its own
            raise ValueError(
                f"{name}: {value!r} contradicts the run in {directory.path}; allowed: {own}leave the flag out"
            )
    return device, {name: value for name, value in places.items() if value != "auto"}


def _recorder_of(arguments: argparse.Namespace, simulation: Simulation) -> Recorder | None:
    """Return the recorder of the client trace that ``--record-trace`` asks for, or None.

    Raises:
        ValueError: the file exists or cannot be written, or the client or the run cannot be recorded.
    """
    file = arguments.record_trace
    if file is None:
        if arguments.trace_client is not None:
            raise ValueError("trace_client: has no effect without --record-trace; allowed with --record-trace FILE")
        return None
    if not simulation.parts.world.alone:
        raise ValueError("record_trace: a run on several ranks is not recorded; allowed: on one rank")
    check_writable(file, "record_trace")
    if os.path.lexists(file):
        raise ValueError(f"record_trace: {file} exists already; allowed: a new file")
    parts, progress, observers = simulation.parts, simulation.progress, simulation.observers
    return Recorder(parts, progress, observers, arguments.trace_client, file)


def _check_profile(steps: int | None, simulation: Simulation) -> None:
    """Raise a ValueError if the run has fewer than `steps` steps left to profile, after those to warm up."""
    left = simulation.config.rounds * simulation.parts.steps
    left -= simulation.progress.round_index * simulation.parts.steps + simulation.progress.step_index
    if steps and steps > left - UNTRACED:
        allowed = f"1 to {left - UNTRACED}" if left > UNTRACED else "no profile"
        raise ValueError(
            f"profile: {steps} steps and {UNTRACED} to warm up are more than the {left} to come; allowed: {allowed}"
        )


def _chosen_config(arguments: argparse.Namespace) -> tuple[RunConfig, str]:
    """Return the config that the flags ask for, and the reason for its preset.

    Raises:
        ValueError: a flag has no effect, or values are not allowed.
    """
    values = config_values(arguments)
    if arguments.config:
        if "preset" in arguments.given:
            raise ValueError("preset: cannot be given with --config; allowed: one of the two")
        config, why = RunConfig.load(arguments.config), f"--config {arguments.config}"
    else:
        config, why = named(arguments.preset, values.get("device", "auto"))
    return asked_config(arguments, config), why
