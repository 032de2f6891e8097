"""The runs of a sweep: a config for each cell and seed, its estimated time, and a schedule that fits a budget."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from simsfl import RunConfig, Simulation
from simsfl.algorithm.plan import steps_per_round
from simsfl.attacks.inversion import train_decoder
from simsfl.cli.sweep.cells import Attack, Cell
from simsfl.config.notation import Decoder
from simsfl.engine.precision import arithmetic
from simsfl.privacy.decoders import decoder
from simsfl.runs.directory import RunDirectory
from simsfl.setup.defaults import resolve
from simsfl.system.decoding import Amount, Count, decode, read_json
from simsfl.system.memory import keep_memory
from simsfl.system.outputs import Outputs

_STEPS = 3
"""Steps timed in a timing probe, after one that warms up."""
_EPOCHS = 200
"""Passes over the data in the paper's runs."""
_ROUNDS = 10
"""Fewest rounds of a shortened schedule, if it has as many steps: the learning rate falls from round to round."""
_PROBE_STEP_SECONDS = 0.0005
"""Seconds assumed for a step of a linear probe."""
_PROCESS = 4.0
"""Seconds from the start of a process until it begins to set up its run."""
_MARGIN = 1.1
"""Factor on estimated times: a machine may be slower in a run than in its timing probe."""

_WORK = (
    *("method", "cohort", "arch", "width", "cut_layer", "bottleneck", "image_size", "head", "key_dim"),
    *("client_lr", "ressfl_lambda", "ressfl_decoder"),
)
"""Config fields that the time of a step depends on, besides the number of images."""

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
    budget: float | None = None
    """Minutes for all runs together; None for no limit."""

    @property
    def values(self) -> _Json:
        """Return all of it by name, without what is not given."""
        own = {"table": self.table, "preset": self.preset, **self.flags, "budget": self.budget}
        return {name: value for name, value in own.items() if value is not None}


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

    grid: Identity
    """Which grid it is."""
    runs: dict[str, Kept]
    """The planned runs by name."""


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


@dataclass(frozen=True)
class Cost:
    """Seconds that the parts of a run take, and how often each occurs."""

    start: float
    """Seconds to set the run up."""
    step: float
    """Seconds per training step."""
    image: float
    """Seconds to encode one image."""
    steps: int
    """Steps in a round."""
    steps_of_pass: int
    """Steps in a round of one pass over the data."""
    train: int
    """Number of training images."""
    images: int
    """Number of training and test images."""
    compared: int
    """Number of images that a kNN evaluation encodes."""
    attack: float = 0.0
    """Seconds per epoch of an attack; 0 where the run is not attacked."""

    def probe(self, config: RunConfig) -> float:
        """Return the estimated seconds of a linear probe."""
        return self.image * self.images + _PROBE_STEP_SECONDS * config.probe_epochs * self.train / 128

    def total(self, config: RunConfig, steps: int) -> float:
        """Return the estimated seconds of a run of `steps` steps with its evaluations, without an attack."""
        evaluations = 2 + (config.rounds // config.eval_every if config.eval_every else 0)
        seconds = _PROCESS + self.start + steps * self.step + evaluations * self.image * self.compared
        return _MARGIN * (seconds + (self.probe(config) if config.linear_probe else 0.0))


def _measured(
    config: RunConfig, known: dict[tuple, tuple[float, float]], attack: Attack | None
) -> tuple[RunConfig, Cost]:
    """Return a run's resolved config and its cost, found by a timing probe.

    Args:
        known: seconds per step and per image, by work; what is measured here is added, for runs of the same work.
        attack: the attack that will be made on the run, None for none.

    Raises:
        ValueError: the run is not possible.
    """
    begin = time.perf_counter()
    simulation = Simulation(config)
    simulation.pace.flush_seconds = 0.0
    start = time.perf_counter() - begin
    config = simulation.config
    work = (*(getattr(config, name) for name in _WORK), sum(group.images for group in simulation.parts.groups))
    if work not in known:
        known[work] = _step_seconds(simulation), _image_seconds(simulation)
    pass_ = steps_per_round([len(source.indices) for source in simulation.parts.sources], simulation.parts.groups)
    data, evaluation = simulation.dataset, simulation.parts.evaluation
    images, compared = len(data.train_labels) + len(data.test), len(evaluation.bank) + len(evaluation.test)
    epoch = _attack_seconds(simulation, attack) if attack else 0.0
    return config, Cost(
        start, *known[work], simulation.parts.steps, pass_, len(data.train_labels), images, compared, epoch
    )


def _step_seconds(simulation: Simulation) -> float:
    """Return the seconds of the fastest of a few steps, without the first, which allocates memory and draws a round."""

    def steps() -> Iterator[object]:
        while simulation.progress.round_index < simulation.config.rounds:
            yield from (record for record in simulation.round() if record.event == "step")

    times, begin = [], time.perf_counter()
    for _ in islice(steps(), 1 + _STEPS):
        end = time.perf_counter()
        times.append(end - begin)
        begin = end
    return min(times[1:] or times)


def _image_seconds(simulation: Simulation) -> float:
    """Return the seconds to encode one image for an evaluation."""
    images, encode = simulation.dataset.test, simulation.encoder()
    rows = torch.arange(min(200, len(images)))

    def features() -> torch.Tensor:
        with arithmetic(simulation.config.precision):
            return simulation.parts.evaluation.features(encode, images, rows).cpu()

    return min(_timed(features) for _ in range(_STEPS)) / len(rows)


def _timed(function: Callable[[], object]) -> float:
    """Call a function and return the seconds that it took."""
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def _attack_seconds(simulation: Simulation, attack: Attack) -> float:
    """Return the seconds per epoch of an attack."""
    size, shape = simulation.dataset.image_size, simulation.model.smashed_shape
    form, device = Decoder.parse(attack.decoder), simulation.parts.device
    network = decoder(form, shape, size, "batch", torch.Generator()).to(device)
    smashed, images = (torch.zeros(32, *s, device=device) for s in (shape, (3, size, size)))
    steps = attack.share * len(simulation.dataset.train_labels) / 32

    def step() -> float:
        return train_decoder(network, smashed, images, torch.Generator(), epochs=1).train[0]

    return steps * min(_timed(step) for _ in range(2))


def planned(
    cells: Iterable[tuple[Cell, int]],
    base: RunConfig,
    flags: _Json,
    budget: float | None,
    spent: float = 0.0,
    jobs: int = 1,
) -> list[Plan]:
    """Return a plan for each cell and seed. A run that is not possible gets a plan that says why.

    Args:
        cells: pairs of a cell and a seed.
        base: the preset, whose fields the settings of each cell change.
        flags: config fields that the user gave for all cells.
        budget: minutes for all runs together, or None for no limit.
        spent: seconds of the budget that are taken by runs planned before.
        jobs: how many runs go side by side.

    Raises:
        ValueError: the budget is too small for one step of each run.
    """
    known: dict[tuple, tuple[float, float]] = {}
    missing: dict[tuple, str] = {}  # why data could not be loaded: they are not asked for again, which takes long
    plans, costs = [], []
    for cell, seed in cells:
        data = None
        try:
            asked = cell.concerned(flags)
            if cell.problem:
                raise ValueError(cell.problem)
            config = base.with_values({**cell.settings, "seed": seed, **asked})
            config, data = _with_rounds(config, cell), (config.dataset, config.aux_dataset)
            if data in missing:
                raise ValueError(missing[data])
            costs.append((cell, seed, config, *_measured(config, known, cell.attack)))
        except (ValueError, OSError, MemoryError, RuntimeError, ArithmeticError) as error:
            problem = str(error).partition("\n")[0]
            plans.append(Plan(cell, seed, base, 0, 0.0, problem))
            if problem.startswith("dataset:"):
                missing[data] = problem
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # for the processes of the runs
    keep_memory()  # it first returns what the timing probes freed to the system
    in_turn = max(1, math.ceil(len(costs) / jobs))
    share = (60.0 * budget - spent / jobs) / in_turn if budget else None
    if share is not None:
        needed = max((cost.total(_shortest(config), 1) + cost.attack for *_, config, cost in costs), default=0.0)
        if needed > share:
            least = (needed * in_turn + spent / jobs) / 60
            raise ValueError(
                f"budget: {budget:g} minutes are too few for one step in each of {len(costs)} runs; allowed: "
                f"{least + 0.05:.1f} or more"
            )
    for cell, seed, asked, config, cost in costs:
        steps = config.rounds * cost.steps
        published = (cell.rounds or resolve(replace(asked, rounds=None, epochs=_EPOCHS)).rounds) * cost.steps
        epochs = cell.attack.epochs if cell.attack else 0
        begin = _MARGIN * (_PROCESS + cost.start) if cell.attack else 0.0
        whole = cost.total(config, steps) + begin + epochs * cost.attack
        if share is not None and whole > share:
            if cell.attack:
                epochs = max(1, min(epochs, int(share / 3 / cost.attack)))
            left = share - begin - epochs * cost.attack
            plan = fitted(Plan(cell, seed, asked, published, share), config, cost, left)
            plans.append(replace(plan, attack_epochs=epochs))
        else:
            plans.append(Plan(cell, seed, asked, published, whole, steps=steps, attack_epochs=epochs))
    return plans


def _with_rounds(config: RunConfig, cell: Cell) -> RunConfig:
    """Return the config with the cell's own rounds, scaled as the preset scales the published epochs.

    The config stays as it is where the cell has no rounds of its own or the config has them already.
    """
    if cell.rounds is None or config.rounds is not None:
        return config
    return replace(config, rounds=max(1, round(cell.rounds * config.epochs / _EPOCHS)))


def _shortest(config: RunConfig) -> RunConfig:
    """Return the config with as few evaluations as possible."""
    return replace(config, linear_probe=False, semi_supervised=False, eval_every=0)


def fitted(plan: Plan, config: RunConfig, cost: Cost, share: float) -> Plan:
    """Return the plan with a schedule that takes at most `share` seconds, where that is enough for one step.

    Args:
        plan: the run with its full schedule.
        config: its resolved config.
        cost: the seconds of its parts.
        share: seconds for the run, without an attack.
    """
    short = replace(_shortest(config), linear_probe=config.linear_probe and _MARGIN * cost.probe(config) < share / 2)
    steps = int((share - cost.total(short, 0)) / (_MARGIN * cost.step))
    rounds = min(steps // cost.steps, config.rounds)
    epochs = config.local_epochs
    if rounds < _ROUNDS:
        rounds = min(_ROUNDS, max(1, steps))
        epochs = (max(1, steps // rounds) + 0.5) / cost.steps_of_pass  # rounded down in the run
    fitted = replace(
        plan.config,
        rounds=rounds,
        local_epochs=epochs,
        eval_every=0,
        linear_probe=short.linear_probe,
        semi_supervised=False,
    )
    return replace(plan, config=fitted, steps=rounds * max(1, int(epochs * cost.steps_of_pass)))


def read_grid(out: Outputs, identity: Identity, results: Iterable[str]) -> dict[str, Kept]:
    """Return the plans that a grid's file holds, by name; none where there is no such file.

    Args:
        out: the grid's directory.
        identity: which grid is to be continued.
        results: names of the files that are written beside what belongs to single runs.

    Raises:
        ValueError: the file is damaged, or the directory belongs to another grid or holds something else.
    """
    path = out.path / GRID
    if not path.exists():
        if not out.is_empty():
            raise ValueError(f"out: {path.parent} holds something else; allowed: an empty or a new directory")
        return {}
    try:
        content = decode(Grid, read_json(path))
    except ValueError as error:
        raise ValueError(f"out: {path} is damaged ({error}); allowed: another directory") from error
    held, asked = content.grid.values, identity.values
    for name in [*held, *asked]:
        if held.get(name) != asked.get(name):
            had, has = (f"{name} {values[name]!r}" if name in values else f"no {name}" for values in (held, asked))
            raise ValueError(
                f"out: {path.parent} is of another grid, with {had}, and this one has {has}; allowed: another directory"
            )
    out.adopt([GRID, *results, *(f"{name}.json" for name in content.runs)])
    return content.runs
