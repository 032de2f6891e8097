"""What ``table.py`` runs: a config for each cell and seed, how long it will take, and a schedule that fits a budget."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from simsfl import RunConfig, Simulation
from simsfl.algorithm.plan import steps_per_round
from simsfl.cli.table.cells import Cell
from simsfl.config.notation import Decoder
from simsfl.engine.precision import arithmetic
from simsfl.privacy.decoders import decoder
from simsfl.privacy.inversion import train_decoder
from simsfl.runs.directory import RunDirectory
from simsfl.setup.defaults import resolve
from simsfl.system.memory import keep_memory

STEPS = 3
"""Timed in a probe, after one to warm up."""
EPOCHS = 200
"""Passes over the data that the paper's runs make."""
ROUNDS = 10
"""At least so many, if there are as many steps: a learning rate has to come down."""
ATTACK_EPOCHS, DECODER = 50, Decoder.parse("res_normN4C64")
"""Of the published attack."""
PROBE_STEP_SECONDS = 0.0005
"""Of a linear probe."""
PROCESS = 4.0
"""Seconds until a process can begin to set its run up."""
MARGIN = 1.1
"""Machines are slower than when they were probed."""

WORK = (
    *("method", "cohort", "arch", "width", "cut_layer", "bottleneck", "image_size", "head", "key_dim"),
    *("client_lr", "ressfl_lambda", "ressfl_decoder"),
)
"""What else than images a step's time depends on."""

Json = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """A run of the grid: a cell with a seed."""

    cell: Cell
    seed: int
    config: RunConfig
    published_steps: int
    """Of the published schedule; 0 where it is not known."""
    seconds: float
    """That it will take."""
    problem: str = ""
    """Why it cannot be run."""
    steps: int = 0
    """Of its own schedule."""
    attack_epochs: int = 0
    """Of the attack on it, if there is one."""

    @property
    def name(self) -> str:
        """Of its directory."""
        words = "".join(c if c.isalnum() or c == "-" else " " for c in f"{self.cell.name} seed {self.seed}")
        return "-".join(words.lower().split())

    def expert_has_ended(self, out: Path) -> bool:
        """Whether there is what it starts from, if anything."""
        if self.cell.expert is None:
            return True
        return RunDirectory(out / replace(self, cell=self.cell.expert).name).summary.exists()

    def config_in(self, out: Path) -> RunConfig:
        """As it is run there: clients start from an expert, where the cell has one."""
        if self.cell.expert is None:
            return self.config
        expert = replace(self, cell=self.cell.expert)
        return replace(self.config, init_client=str(out / expert.name), init_server=True)

    def share(self) -> float:
        """Of the steps of the published schedule."""
        return self.steps / self.published_steps

    def to_dict(self) -> Json:
        """What is kept of it, so that it is the same when it goes on."""
        kept = ("published_steps", "seconds", "problem", "steps", "attack_epochs")
        return {"config": self.config.to_dict(), **{name: getattr(self, name) for name in kept}}

    @classmethod
    def kept(cls, cell: Cell, seed: int, content: Json) -> Plan:
        """From what `to_dict` gave."""
        return cls(cell, seed, **content | {"config": RunConfig.from_dict(content["config"])})


@dataclass(frozen=True)
class Cost:
    """What a run's parts take, in seconds."""

    start: float
    step: float
    image: float
    """To encode one."""
    steps: int
    """In a round."""
    steps_of_pass: int
    """In a round of one pass over the data."""
    train: int
    """Images."""
    images: int
    """Of training and test."""
    compared: int
    """Of them in a kNN evaluation."""
    attack: float = 0.0
    """An epoch of an attack."""

    def probe(self, config: RunConfig) -> float:
        """A linear probe."""
        return self.image * self.images + PROBE_STEP_SECONDS * config.probe_epochs * self.train / 128

    def total(self, config: RunConfig, steps: int) -> float:
        """A run of so many steps."""
        evaluations = 2 + (config.rounds // config.eval_every if config.eval_every else 0)
        seconds = PROCESS + self.start + steps * self.step + evaluations * self.image * self.compared
        return MARGIN * (seconds + (self.probe(config) if config.linear_probe else 0.0))


def measured(config: RunConfig, known: dict[tuple, tuple[float, float]], *, attacked: bool) -> tuple[RunConfig, Cost]:
    """What a run will cost, with its config resolved.

    Args:
        attacked: it will be.
        known: seconds of a step and of an image, for runs that do the same work; added to.

    Raises:
        ValueError: it cannot be run.
    """
    begin = time.perf_counter()
    simulation = Simulation(config)
    simulation.flush_seconds = 0.0
    start = time.perf_counter() - begin
    config = simulation.config
    work = (*(getattr(config, name) for name in WORK), sum(group.images for group in simulation.parts.groups))
    if work not in known:
        known[work] = step_seconds(simulation), image_seconds(simulation)
    pass_ = steps_per_round(simulation.parts.sources, simulation.parts.groups)
    data, evaluation = simulation.dataset, simulation.parts.evaluation
    images, compared = len(data.train_labels) + len(data.test), len(evaluation.bank) + len(evaluation.test)
    attack = attack_seconds(simulation) if attacked else 0.0
    return config, Cost(
        start, *known[work], simulation.parts.steps, pass_, len(data.train_labels), images, compared, attack
    )


def step_seconds(simulation: Simulation) -> float:
    """Of the fastest of a few steps: the first finds memory, and draws a whole round."""

    def steps() -> Iterator[object]:
        while simulation.progress.round_index < simulation.config.rounds:
            yield from (record for record in simulation.round() if record.event == "step")

    times, begin = [], time.perf_counter()
    for _ in islice(steps(), 1 + STEPS):
        end = time.perf_counter()
        times.append(end - begin)
        begin = end
    return min(times[1:] or times)


def image_seconds(simulation: Simulation) -> float:
    """To encode an image for an evaluation."""
    images, encode = simulation.dataset.test, simulation.encoder()
    rows = torch.arange(min(200, len(images)))

    def features() -> torch.Tensor:
        with arithmetic(simulation.config.precision):
            return simulation.parts.evaluation.features(encode, images, rows).cpu()

    return min(timed(features) for _ in range(STEPS)) / len(rows)


def timed(function: Callable[[], object]) -> float:
    """Seconds of a call."""
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def attack_seconds(simulation: Simulation) -> float:
    """Of an epoch of an attack with its usual decoder and images."""
    size, shape = simulation.dataset.image_size, simulation.model.smashed_shape
    network = decoder(DECODER, shape, size, "batch", torch.Generator()).to(simulation.parts.device)
    smashed, images = (torch.zeros(32, *s, device=simulation.parts.device) for s in (shape, (3, size, size)))
    steps = 0.01 * len(simulation.dataset.train_labels) / 32

    def step() -> float:
        return train_decoder(network, smashed, images, torch.Generator(), epochs=1).train[0]

    return steps * min(timed(step) for _ in range(2))


def planned(
    cells: Iterable[tuple[Cell, int]], base: RunConfig, flags: Json, budget: float | None, spent: float = 0.0
) -> list[Plan]:
    """A plan for each cell with its seed.

    Args:
        base: a preset, over which cells set what makes them, and `flags` what the user wants in all of them.
        budget: minutes for all.
        spent: seconds of it that are others'.

    Raises:
        ValueError: the budget is too small for a step of each.
    """
    known: dict[tuple, tuple[float, float]] = {}
    plans, costs = [], []
    for cell, seed in cells:
        try:
            asked = cell.concerned(flags)
            config = replace(base, **{"linear_probe": True, **cell.settings, "seed": seed, **asked})
            config = with_rounds(config, cell)
            costs.append((cell, seed, config, *measured(config, known, attacked=cell.attacked)))
        except (ValueError, OSError, MemoryError, RuntimeError, ArithmeticError) as error:
            plans.append(Plan(cell, seed, base, 0, 0.0, str(error).partition("\n")[0]))
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # for those who run
    keep_memory()  # what the probes had goes back
    share = (60.0 * budget - spent) / max(1, len(costs)) if budget else None
    if share is not None:
        needed = max((cost.total(shortest(config), 1) + cost.attack for *_, config, cost in costs), default=0.0)
        if needed > share:
            least = needed * len(costs) / 60
            raise ValueError(
                f"budget: {budget:g} minutes are too few for one step in each of {len(costs)} runs; allowed: "
                f"{least + 0.05:.1f} or more"
            )
    for cell, seed, asked, config, cost in costs:
        steps = config.rounds * cost.steps
        published = (cell.rounds or resolve(replace(asked, rounds=None, epochs=EPOCHS)).rounds) * cost.steps
        epochs = ATTACK_EPOCHS if cell.attacked else 0
        begin = MARGIN * (PROCESS + cost.start) if cell.attacked else 0.0
        whole = cost.total(config, steps) + begin + epochs * cost.attack
        if share is not None and whole > share:
            if cell.attacked:
                epochs = max(1, min(epochs, int(share / 3 / cost.attack)))
            left = share - begin - epochs * cost.attack
            plan = fitted(Plan(cell, seed, asked, published, share), config, cost, left)
            plans.append(replace(plan, attack_epochs=epochs))
        else:
            plans.append(Plan(cell, seed, asked, published, whole, steps=steps, attack_epochs=epochs))
    return plans


def with_rounds(config: RunConfig, cell: Cell) -> RunConfig:
    """The same, where a cell has rounds of its own with as many of them as the preset has of the published epochs."""
    if cell.rounds is None or config.rounds is not None:
        return config
    return replace(config, rounds=max(1, round(cell.rounds * config.epochs / EPOCHS)))


def shortest(config: RunConfig) -> RunConfig:
    """Evaluated as little as can be."""
    return replace(config, linear_probe=False, semi_supervised=False, eval_every=0)


def fitted(plan: Plan, config: RunConfig, cost: Cost, share: float) -> Plan:
    """The same run with a schedule that takes `share` seconds."""
    short = replace(shortest(config), linear_probe=config.linear_probe and MARGIN * cost.probe(config) < share / 2)
    steps = int((share - cost.total(short, 0)) / (MARGIN * cost.step))
    rounds = min(steps // cost.steps, config.rounds)
    epochs = config.local_epochs
    if rounds < ROUNDS:
        rounds = min(ROUNDS, max(1, steps))
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


def read_grid(path: Path, identity: Json) -> dict[str, Json]:
    """What is run already, by name.

    Raises:
        ValueError: the directory is of another grid, or of something else.
    """
    if not path.exists():
        if path.parent.exists() and any(path.parent.iterdir()):
            raise ValueError(f"out: {path.parent} holds something else; allowed: an empty or a new directory")
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        held, runs = content["grid"], content["runs"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"out: {path} is damaged ({error}); allowed: another directory") from error
    for name, value in identity.items():
        if held.get(name) != value:
            raise ValueError(
                f"out: {path.parent} is of another grid, with {name} {held.get(name)!r} and not {value!r}; "
                "allowed: another directory"
            )
    return runs
