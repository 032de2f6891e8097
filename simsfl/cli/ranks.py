"""A run on several ranks, as ``torchrun`` starts them: they find each other, agree on what to do, and stop together.

The first rank is the program that a user sees. The others follow it silently.
"""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

import simsfl
from simsfl.rounds.progress import NonFiniteLossError
from simsfl.runs.metrics import RankStatus, Record, RoundRecord, StepRecord
from simsfl.runs.records import lasting, sources
from simsfl.simulation import Simulation
from simsfl.system.errors import is_foreseen
from simsfl.system.programs import ranks
from simsfl.system.signals import Stop
from simsfl.system.streams import print_error
from simsfl.system.world import ALONE, AgreedError, RankLostError, World

log = logging.getLogger(__name__)
_NEEDED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""Variables of the environment by which ranks find each other."""
_PORTS = 1 << 16
"""Numbers of a port, from 0."""
_PATIENCE = timedelta(minutes=10)
"""How long ranks wait for each other, such as for one that writes a checkpoint to a slow disk."""
_TURN = timedelta(seconds=5)
"""How long they wait at a time until they have found each other."""
_GRACE_SECONDS = 30.0
"""Seconds in which a signal is the same as one before: ``torchrun`` passes on what a terminal has sent to all ranks."""


@contextmanager
def joined(stop: Stop) -> Iterator[World]:
    """Return a context with the ranks that ``torchrun`` has started, or that of a single process without it.

    Only the first rank writes to stdout and stderr inside. An error that ranks agree on, or that one of them has ended,
    is said by one on stderr, and ends all of them here. After the context, they end by `leave`.

    Args:
        stop: entered already; a signal that comes twice within a short time counts once inside.

    Raises:
        ValueError: the environment is that of some launcher, but not whole, or the ranks do not find each other.
    """
    if "RANK" not in os.environ:
        yield ALONE
        return
    store, rank, size = _met()
    if size == 1:
        yield ALONE
        return
    stop.grace_seconds = _GRACE_SECONDS
    dist.init_process_group(store=store, rank=rank, world_size=size, timeout=_PATIENCE)
    streams = sys.stdout, sys.stderr
    with Path(os.devnull).open("w") as nowhere:
        if rank:
            sys.stdout = sys.stderr = nowhere
            logging.getLogger().setLevel(logging.CRITICAL)
        world = World(rank, size, store)
        try:
            yield world
            dist.destroy_process_group()
        except RankLostError as error:
            sys.stdout, sys.stderr = streams
            if error.first and world.speaks():
                print_error(f"ranks: {error}; --resume goes on from the last checkpoint, on any number of ranks")
            leave(1, world)
        except KeyboardInterrupt:
            sys.stdout, sys.stderr = streams
            if world.speaks():
                print_error("interrupted before training")
            leave(128 + (stop.received or signal.SIGINT), world)
        except (ValueError, OSError) as error:  # of all ranks, or of this one
            sys.stdout, sys.stderr = streams
            if world.speaks():
                print_error(str(error))
            leave(2, world)
        finally:
            sys.stdout, sys.stderr = streams


def _met() -> tuple[dist.Store, int, int]:
    """Return the store that the ranks share, the number of this rank, and how many there are.

    It is waited for in short turns, between which a signal can end the process.

    Raises:
        ValueError: the environment is not that of a rank, or the others have not been found in time.
    """
    if missing := [name for name in _NEEDED if name not in os.environ]:
        raise ValueError(
            f"ranks: RANK is set, but not {', '.join(missing)}; allowed: all of them, as torchrun sets them, or none"
        )
    for name in _NEEDED:
        if name != "MASTER_ADDR" and not os.environ[name].isdecimal():
            raise ValueError(f"ranks: {name} is {os.environ[name]!r}; allowed: a whole number, as torchrun sets it")
    rank, size, port = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
    if rank >= size:
        raise ValueError(f"ranks: RANK is {rank}, and WORLD_SIZE {size}; allowed: ranks from 0 to WORLD_SIZE - 1")
    if not 0 < port < _PORTS:
        raise ValueError(f"ranks: MASTER_PORT is {port}; allowed: 1 to {_PORTS - 1}")
    end, where = (
        time.monotonic() + _PATIENCE.total_seconds(),
        f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}",
    )
    waited = False
    while True:
        try:
            store, rank, size = next(dist.rendezvous("env://", timeout=_TURN))
        except (RuntimeError, ValueError) as error:
            if time.monotonic() > end:
                raise ValueError(f"ranks: nobody answers at {where}; allowed: where the first rank is") from error
            if not waited:
                log.warning("rank %s waits for the others at %s", os.environ["RANK"], where)
            waited = True
            time.sleep(0.1)
        else:
            store.set_timeout(_PATIENCE)
            return store, rank, size


def check_alone(name: str) -> None:
    """Raise a ValueError if this process is one of several ranks: what `name` says is for a single one."""
    if ranks() > 1:
        raise ValueError(
            f"ranks: {name} is for one rank, and there are {ranks()}; allowed: torchrun -m simsfl run --config FILE, "
            "with a --plugin for what is your own"
        )


def device_for(name: str, world: World) -> str:
    """Return the device that a rank computes on, given what the config says.

    Raises:
        ValueError: all ranks would have the same CUDA device.
    """
    if world.alone or name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return name
    if name in ("auto", "cuda"):
        return f"cuda:{os.environ['LOCAL_RANK']}"
    raise ValueError(f"device: {name} is a single device, and there are {world.size} ranks; allowed: auto, cpu, cuda")


def check_same(simulation: Simulation) -> None:
    """Raise an AgreedError if what the ranks are about to train differs."""
    world, config, state = simulation.parts.world, simulation.config, simulation.state
    if world.alone:
        return
    plugins, files = sources(config)
    weights = torch.cat([state.server.online, state.clients.online]).detach().cpu()
    mine = {
        "simsfl": simsfl.__version__,
        "torch": torch.__version__,
        "dataset": simulation.dataset.checksum,
        **{f"plugin {plugin.name}": plugin.sha256 for plugin in plugins},
        **{f"file of {name}": sha256 for name, sha256 in files.items()},
        **lasting(config),
        "weights": hashlib.sha256(weights.numpy().data).hexdigest(),
    }
    everyone = world.tell(mine)
    first = everyone[0]
    for rank, other in enumerate(everyone):
        for name in [*first, *other]:
            if first.get(name) != other.get(name):
                raise AgreedError(
                    f"ranks: rank {rank} has {name} {other.get(name)!r}, and rank 0 {first.get(name)!r}; allowed: the "
                    "same on all ranks"
                )


def is_checkpoint_due(simulation: Simulation, record: Record) -> bool:
    """Return whether a checkpoint is to be written after a record."""
    config = simulation.config
    return isinstance(record, RoundRecord) and (
        record.round % config.checkpoint_every == 0 or record.round == config.rounds
    )


def stops_after(simulation: Simulation, record: Record, stop: Stop) -> bool:
    """Return whether the run stops after a record, as a user of any rank wants; then its state may be saved."""
    if isinstance(record, StepRecord):
        may_save = record.step == simulation.progress.step_index  # the state is the one right after the record
    else:
        may_save = isinstance(record, RoundRecord)
    number = simulation.parts.world.largest(stop.received or 0) if may_save else 0
    if number:
        stop.received = signal.Signals(number)  # also if it came to another rank
    return bool(number)  # what all ranks know: a signal that has come meanwhile counts the next time


class Stopwatch:
    """Measures how each rank spends a round.

    Args:
        simulation: the simulation of this rank, before training.

    Attributes:
        ranks: how each rank has spent the latest round; empty before it is over, and for a single rank.
    """

    def __init__(self, simulation: Simulation):
        self._simulation, self.ranks = simulation, []
        self._begun = self._ended = self._now()

    def see(self, record: Record) -> None:
        """Note the time where a record ends the steps of a round, and tell the other ranks where it ends the round."""
        world, steps = self._simulation.parts.world, self._simulation.progress.steps
        if isinstance(record, StepRecord) and record.step == steps:
            self._ended = self._now()  # an evaluation may follow, and then the record of the round
        if isinstance(record, RoundRecord) and not world.alone:
            trained, told = (end - begin for begin, end in zip(self._begun, self._ended, strict=True))
            self.ranks = world.tell(RankStatus(trained / steps, min(1.0, told / max(trained, 1e-9))))
            self._begun = self._now()

    def _now(self) -> tuple[float, float]:
        """Return the seconds that the rank has trained, and those in which it told others something meanwhile."""
        return self._simulation.progress.seconds, self._simulation.parts.world.seconds


@dataclass(frozen=True)
class Follower:
    """A rank that trains as the first does in a `simsfl.cli.session.Session`, without output."""

    simulation: Simulation
    """The simulation of this rank."""
    directory: Path
    """The run directory, into which the first rank writes."""
    stop: Stop
    """Says when the user wants the run to end."""

    def go(self) -> int:
        """Train to the end, or until the user stops the run; return the exit code.

        Raises:
            RankLostError: this rank alone cannot go on.
        """
        simulation, stop = self.simulation, self.stop
        stop.patient, stopwatch = True, Stopwatch(simulation)
        try:
            for record in simulation.train():
                stopwatch.see(record)
                if is_checkpoint_due(simulation, record):
                    simulation.save(self.directory)
                if stops_after(simulation, record, stop):
                    simulation.save(self.directory)
                    return 128 + stop.received
        except KeyboardInterrupt:  # a second signal; the first rank says it
            return 128 + (stop.received or signal.SIGINT)
        except (NonFiniteLossError, AgreedError):  # all ranks have it, and the first one says it
            return 1
        except Exception as error:
            if not is_foreseen(error):
                raise
            raise RankLostError(f"rank {simulation.parts.world.rank}: {error}", first=True) from error
        return 0


def leave(code: int, world: World) -> int:
    """End one of several ranks with an exit code at once; return it where there is a single one.

    Otherwise PyTorch 2.14 ends a process now and then with SIGABRT while it exits ("terminate called without an active
    exception"), after gloo was used, and ``torchrun`` then takes the run for a failed one.
    """
    if world.alone:
        return code
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
