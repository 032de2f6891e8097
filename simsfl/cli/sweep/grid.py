"""The runs of a sweep: a config for each cell and seed with its schedule, and the file that keeps them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any

from simsfl import RunConfig
from simsfl.cli.sweep.cells import Cell
from simsfl.runs.directory import RunDirectory
from simsfl.system.decoding import Amount, Count, Range, decode, read_json
from simsfl.system.outputs import Outputs

GRID = "grid.json"
"""Name of the file that says what a grid consists of."""
ATTEMPT = "$ simsfl "
"""Begin of the line in a run's log that comes before the output of each program that was started for it."""

_Json = dict[str, Any]


@dataclass(frozen=True)
class Identity:
    """What has to be equal for a grid to be continued."""

    table: str = ""
    """Name of the table, or "sweep"."""
    preset: str = ""
    """Name of the preset."""
    flags: dict[str, bool | int | float | str | None] = field(default_factory=dict)
    """Config fields that the user gave for all cells."""

    @property
    def values(self) -> _Json:
        """Return all of it by name, without what is not given."""
        own = {"table": self.table, "preset": self.preset, **self.flags}
        return {name: value for name, value in own.items() if value is not None}


@dataclass(frozen=True)
class Shortening:
    """How a budget shortens the schedules of all runs of a grid, by the same share, so that they can be compared."""

    share: Annotated[float, Range(0, 1)]
    """The share of its steps that each run has, and of the epochs of the attack on it."""
    probes: bool
    """Whether runs have linear probes, where these are asked for."""

    def __str__(self) -> str:
        return f"schedules shortened to {self.share:.2%} of their steps"


@dataclass(frozen=True)
class Kept:
    """What ``grid.json`` keeps of a `Plan`, so that a grid that is continued uses the same schedule."""

    config: RunConfig
    published_steps: Count
    seconds: Amount
    problem: str
    steps: Count
    attack_epochs: Count


@dataclass(frozen=True)
class Grid:
    """The content of ``grid.json``."""

    identity: Identity
    """Which grid it is."""
    runs: dict[str, Kept]
    """The planned runs by name."""
    shortening: Shortening | None = None
    """How the schedules of these are shortened; None where they are whole."""

    @property
    def possible(self) -> dict[str, Kept]:
        """Return those of the runs that are possible."""
        return {name: run for name, run in self.runs.items() if not run.problem}


@dataclass(frozen=True)
class Plan:
    """A run of the grid: a cell with a seed, its schedule and its estimated time."""

    cell: Cell
    seed: int
    config: RunConfig
    published_steps: int
    """Steps of the published schedule; 0 where they are not known."""
    seconds: float
    """Estimated seconds of the run and of the attack on it."""
    problem: str = ""
    """Why the run is not possible; empty where it is."""
    steps: int = 0
    """Steps of the run's own schedule."""
    attack_epochs: int = 0
    """Epochs of the attack on the run; 0 where it is not attacked."""

    @property
    def name(self) -> str:
        """Return the name of the run directory, such as ``mocosfl-1-iid-1-per-round-seed-0`` or ``lr-0.02-seed-0``."""
        if self.cell.directory is not None:
            return f"{self.cell.directory}-seed-{self.seed}".removeprefix("-")
        words = "".join(c if c.isalnum() or c == "-" else " " for c in f"{self.cell.name} seed {self.seed}")
        return "-".join(words.lower().split())

    def expert_has_ended(self, out: Path) -> bool:
        """Return whether the expert that this run starts from has ended; True where it starts from none.

        Args:
            out: the directory that holds the run directories.
        """
        if self.cell.expert is None:
            return True
        return RunDirectory(out / replace(self, cell=self.cell.expert).name).summary.exists()

    def config_in(self, out: Path) -> RunConfig:
        """Return the config to run with: clients and server start from the expert, where the cell has one.

        Args:
            out: the directory that holds the run directories.
        """
        if self.cell.expert is None:
            return self.config
        expert = replace(self, cell=self.cell.expert)
        return replace(self.config, init_client=str(out / expert.name), init_server=True)

    def share(self) -> float:
        """Return the steps of this run as a share of the published ones."""
        return self.steps / self.published_steps

    def kept(self) -> Kept:
        """Return what ``grid.json`` keeps of the plan."""
        return Kept(**{spec.name: getattr(self, spec.name) for spec in fields(Kept)})


def read_grid(out: Outputs, identity: Identity, results: Iterable[str]) -> Grid:
    """Return what a grid's file holds; a grid without runs where there is no such file.

    Args:
        out: the grid's directory.
        identity: which grid is to be continued.
        results: names of the files that are written beside what belongs to single runs.

    Raises:
        ValueError: the file is damaged, or the directory belongs to another grid or holds something else.
    """
    path = out.path / GRID
    if out.path.exists() and not out.path.is_dir():
        raise ValueError(f"out: {out.path} is no directory; allowed: an empty or a new one")
    if not path.exists():
        if not out.is_empty():
            raise ValueError(f"out: {path.parent} holds something else; allowed: an empty or a new directory")
        return Grid(identity, {})
    try:
        content = decode(Grid, read_json(path))
    except ValueError as error:
        raise ValueError(f"out: {path} is damaged ({error}); allowed: another directory") from error
    held, asked = content.identity.values, identity.values
    for name in [*held, *asked]:
        if held.get(name) != asked.get(name):
            had, has = (f"{name} {values[name]!r}" if name in values else f"no {name}" for values in (held, asked))
            raise ValueError(
                f"out: {path.parent} is of another grid, with {had}, and this one has {has}; allowed: another directory"
            )
    out.adopt([GRID, *results, *(f"{name}.json" for name in content.runs)])
    return content
