"""What the page of results has: its sections and their cells, each a setting that is run with several seeds.

Every cell changes `base`: the laptop preset on CIFAR-10 for one epoch, which is 10 rounds of 50 steps of 100 images. To
add a cell, add a line to one of the functions here; to add a section, write a function and add it to `SECTIONS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from simsfl import RunConfig
from simsfl.cli.sweep.cells import Attack, Cell
from simsfl.cli.table.cells import TABLES
from simsfl.config.presets import laptop

_DEFAULT = "the default"
"""What is beside the name of the setting that a section's other cells are compared with."""
_ATTACK = Attack(decoder="conv_normN0C16", share=0.02, epochs=20)
"""Attack on the defences: small enough for a laptop."""
_ROUND = "Rounds have 50 steps and end with an averaging, so that models are averaged as often as published."


@dataclass(frozen=True)
class Section:
    """A section of the page: a table of cells that are compared."""

    title: str
    about: str
    """What is compared, and what has to be known about it."""
    cells: list[Cell]
    found: str = ""
    """What the figures show, in words that hold while these figures do."""

    @property
    def attacked(self) -> bool:
        """Return whether the runs are attacked."""
        return any(cell.attack for cell in self.cells)


def base() -> RunConfig:
    """Return the config that every cell changes."""
    return replace(laptop(), dataset="cifar10", epochs=1, eval_every=0)


def config_of(cell: Cell, seed: int = 0) -> RunConfig:
    """Return the config of a cell's run; raise a ValueError if it is not possible."""
    if cell.problem:
        raise ValueError(f"{cell.name}: {cell.problem}")
    return replace(base(), **cell.settings, seed=seed)


def _cell(
    row: str, column: str = "", *, published: float | None = None, attack: Attack | None = None, **settings: Any
) -> Cell:
    """Return a cell with these settings beside those of `base`."""
    return Cell(row, column, settings, published, attack=attack)


def _of_table(name: str, chosen: Callable[[Cell], bool] = lambda cell: True) -> list[Cell]:
    """Return cells of a table of the paper, in rounds of 50 steps that end with an averaging.

    Args:
        name: the table's name in `simsfl.cli.table.cells.TABLES`.
        chosen: whether a cell is taken.
    """
    return [replace(cell, settings=_steps_of_50(cell.settings)) for cell in TABLES[name]().cells if chosen(cell)]


def _steps_of_50(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings with rounds of 50 steps: an epoch of a client has 500 steps if there are 100 clients or fewer."""
    return {**settings, "local_epochs": max(100, settings["clients"]) / 1000, "syncs_per_round": 1}


def _published(table: str, name: str) -> float:
    """Return the published figure of a cell of the paper."""
    return next(cell.published for cell in TABLES[table]().cells if cell.name == name)


def _many_clients() -> Section:
    """Return Table 3's cells of CIFAR-10."""
    return Section(
        "Many clients (Table 3)",
        "Clients hold one image a step; 1 or 3 convolutions are theirs. " + _ROUND,
        _of_table("3", lambda cell: cell.settings["dataset"] == "cifar10"),
    )


_FIVE = {"clients": 5, "batch_size": 20, "local_epochs": 0.1}
"""Five clients, which together have 100 images a step."""
_METHODS: dict[str, dict[str, Any]] = {
    "MocoSFL": {"method": "mocosfl", "syncs_per_round": 1},
    "FL-MoCo": {"method": "fl-moco"},
    "FL-BYOL": {"method": "fl-byol"},
    "FedEMA": {"method": "fl-byol", "divergence_tau": 0.7},
}


def _equal_steps() -> Section:
    """Return split and federated learning with as many steps."""
    published = {name: _published("2", f"{row}, CIFAR-10 N=5") for name, row in _ROWS_OF_TABLE_2.items()}
    few = [
        _cell(name, "5 clients", published=published.get(name), **_FIVE, **settings)
        for name, settings in _METHODS.items()
    ]
    in_one_place = {"method": "fl-moco", "clients": 1, "partition": "iid", "batch_size": 100, "local_epochs": 0.1}
    return Section(
        "Methods at equal steps",
        "Each method takes 500 steps of 100 images, in 10 rounds; clients are non-IID. Of 5 clients each has 20 images "
        "a step. With labels, the clients and the cut are those of MocoSFL with 1,000 clients. MoCo in one place is "
        "FL-MoCo with one client, whose bytes are those of its model. FL-BYOL and FedEMA have BYOL's head with "
        "BatchNorm, as published: beside this small network, its 4,096 hidden units are nearly all that they send.",
        [
            *few,
            _cell("MocoSFL", "1,000 clients", published=_published("3", "MocoSFL-1 CIFAR-10 non-IID, 1,000 clients")),
            _cell("MoCo in one place", **in_one_place),
            _cell("supervised", "1,000 clients", objective="supervised"),
            _cell("untrained", lr=0.0, client_lr=0.0, rounds=1),
        ],
    )


_ROWS_OF_TABLE_2 = {"MocoSFL": "MocoSFL-1", "FL-BYOL": "FL-BYOL"}
"""Rows of Table 2 that have a published figure of a method, by its name."""


def _equal_bytes() -> Section:
    """Return split and federated learning with as many bytes sent, up and down."""
    reference, many = bytes_of(_FIVE | _METHODS["MocoSFL"]), bytes_of({})
    cells = [_cell("MocoSFL", "5 clients, 10 rounds", **_FIVE, **_METHODS["MocoSFL"])]
    for name in ("FL-MoCo", "FL-BYOL", "FedEMA"):
        rounds = round(reference / bytes_of(_FIVE | _METHODS[name] | {"rounds": 1}))
        cells.append(_cell(name, f"5 clients, {rounds} rounds", **_FIVE, **_METHODS[name], rounds=rounds))
    rounds = round(many / bytes_of({"objective": "supervised", "rounds": 1}))
    cells += [
        _cell("MocoSFL", "1,000 clients, 10 rounds"),
        _cell("supervised", f"1,000 clients, {rounds} rounds", objective="supervised", rounds=rounds),
    ]
    return Section(
        "Methods at equal bytes",
        "Each method has as many rounds of 50 steps as send the bytes of MocoSFL's 10 rounds, up and down, of all "
        f"clients together, by the cost model: {reference / 1e9:.2f} GB with 5 clients, {many / 1e9:.2f} GB with "
        "1,000. A larger network costs federated learning more, MocoSFL the same.",
        cells,
    )


@cache
def _estimated(config: RunConfig) -> int:
    """Return the bytes that the clients of a run send and receive together, by the cost model."""
    from simsfl.cli.cost.tables import estimate  # noqa: PLC0415  (imports torch)

    figures = estimate(config, None)
    return sum(figures["bytes_per_round"].values()) * figures["rounds"] * (config.cohort or min(config.clients, 100))


def bytes_of(settings: dict[str, Any]) -> int:
    """Return the bytes that the clients of a cell send and receive together, by the cost model."""
    return _estimated(replace(base(), **settings))


def _alignment() -> Section:
    """Return cut layers with and without averaged momentum models."""
    cells = [
        _cell(
            f"cut layer {cut}",
            "aligned" if align else "as published",
            cut_layer=cut,
            align_momentum=align,
            **_steps_of_50({"clients": 20}),
        )
        for cut in range(1, 5)
        for align in (False, True)
    ]
    return Section(
        "Deep cuts and aligned momentum models",
        "MonAcoSFL (Przewięźlikowski et al., ECML-PKDD 2024) averages the clients' momentum models, too "
        "(`--align-momentum`), which it finds to matter at deep cuts. 20 clients, non-IID. " + _ROUND,
        cells,
        "With each seed and at each cut layer, the network with aligned momentum models is the better one: by less "
        "than a point at cut layer 1, and by one to four from cut layer 2 on, as MonAcoSFL has it.",
    )


def _cuts() -> Section:
    """Return the ablation of the cut layer."""
    possible = _of_table("cuts", lambda cell: cell.settings["cut_layer"] <= 4)  # resnet8 has no more
    return Section("Cut layers", "100 clients. " + _ROUND, possible)


def _syncs() -> Section:
    """Return the ablation of how often models are averaged."""
    return Section(
        "Averagings",
        "100 clients. Here the 500 steps are one round, which has as many averagings as the cell says, and a learning "
        "rate that does not fall.",
        TABLES["sync"]().cells,
    )


def _participation() -> Section:
    """Return the ablation of participation."""
    return Section(
        "Participation",
        "The share of 200 clients that train in a round. All cells see as many images: with a tenth of the clients, "
        "there are ten times as many steps, of a tenth of the images. " + _ROUND,
        _of_table("participation"),
    )


def _objectives() -> Section:
    """Return the objectives, and those that need BatchNorm in their head also without it."""
    return Section(
        "Objectives",
        "1,000 clients, non-IID. BYOL, SimSiam and Barlow Twins are published with BatchNorm in their heads, and have "
        "it by rule (`--head large-mlp`). Settings are those that suit MoCo; none was tuned for an objective.",
        [
            _cell("MoCo", _DEFAULT),
            _cell("SimCLR", objective="simclr"),
            _cell("BYOL", objective="byol"),
            _cell("BYOL", "no BatchNorm", objective="byol", head="mlp"),
            _cell("SimSiam", objective="simsiam"),
            _cell("SimSiam", "no BatchNorm", objective="simsiam", head="mlp"),
            _cell("Barlow Twins", objective="barlow-twins"),
            _cell("Barlow Twins", "no BatchNorm", objective="barlow-twins", head="mlp"),
            _cell("labels", objective="supervised"),
        ],
    )


def _aggregations() -> Section:
    """Return the aggregations, and what else changes how clients' models become one."""
    names = ("by-images", "trimmed-mean", "median", "fedavgm", "fedadam")
    return Section(
        "Aggregations",
        "1,000 clients, non-IID, none of which is malicious. At cut layer 1 a client has 464 weights, so little can "
        "be gained here.",
        [
            _cell("mean", _DEFAULT),
            *(_cell(name, aggregation=name) for name in names),
            _cell("mean, aligned momentum models", align_momentum=True),
            _cell("mean, divergence-aware mixing", divergence_tau=0.7),
            _cell("mean, proximal term 0.01", proximal=0.01),
        ],
    )


def _defences() -> Section:
    """Return the defences, and how well a decoder reconstructs images from what clients send."""
    cells = {
        ("none", _DEFAULT): {},
        ("Gaussian noise", ""): {"defence": "gaussian"},
        ("Gaussian noise", "deviation 1"): {"defence": "gaussian", "options": {"defence.deviation": 1.0}},
        ("Laplacian noise", ""): {"defence": "laplacian"},
        ("clipping", ""): {"defence": "clip"},
        ("int8", ""): {"defence": "int8"},
        ("fp16", ""): {"defence": "fp16"},
        ("top-k", ""): {"defence": "top-k"},
        ("none", "34 clients of 3 images"): {"batch_size": 3, "cohort": 34},
        ("NoPeek", "correlation 10, 34 clients of 3 images"): {
            **{"batch_size": 3, "cohort": 34},
            **{"defence": "nopeek", "options": {"defence.correlation": 10.0}},
        },
        ("none", "bottleneck C4S2"): {"bottleneck": "C4S2"},
        ("TAResSFL", "bottleneck C4S2, frozen clients of the expert laptop-cifar10"): {
            **{"bottleneck": "C4S2", "init_client": "laptop-cifar10", "client_lr": 0.0},
        },
    }
    return Section(
        "Defences",
        "1,000 clients, non-IID. The attacker trains a small decoder (`conv_normN0C16`, 20 epochs) on 2 % of the "
        "training images and what clients would send for them, defended. Less similarity (SSIM) and more error (MSE) "
        "is more private; SSIM is that of images padded with zeros, as published, and in brackets of mirrored ones. "
        "The expert's clients have learnt before: 390 steps with 500 of these images and 50,000 of the built-in "
        "shapes. So its kNN tells less of the defence than its SSIM does.",
        [_cell(*names, attack=_ATTACK, **settings) for names, settings in cells.items()],
    )


def _replicas() -> Section:
    """Return several servers, each with a part of the cohort."""
    clients = {"clients": 100, "partition": "iid", "local_epochs": 0.1, "syncs_per_round": 1}
    return Section(
        "Several servers",
        "100 IID clients, of which each quarter has a server and a key queue of its own, against one server for all: "
        "what a program computes that has a server on each of four GPUs which are never averaged, and the first of "
        "which is evaluated. An independent implementation on four GPUs reports 79 to 82 % where the paper has 87.29 %."
        " A queue of a quarter has keys four times as old, unless its length is a quarter, too.",
        [
            _cell("one server", "", **clients),
            _cell("four servers", "never averaged", **clients, server_replicas=4),
            _cell("four servers", "never averaged, queues of 500", **clients, server_replicas=4, queue_length=500),
            _cell("four servers", "averaged each round", **clients, server_replicas=4, average_replicas=True),
        ],
        "A gap of the reported kind is what four servers leave, and a larger one. But averaging them each round does "
        "not close it, and neither does a queue as fresh as one server's: what it costs is that each server takes its "
        "steps on a quarter of the images, not that the four know nothing of each other.",
    )


SECTIONS: dict[str, Callable[[], Section]] = {
    "table-3": _many_clients,
    "equal-steps": _equal_steps,
    "equal-bytes": _equal_bytes,
    "alignment": _alignment,
    "cuts": _cuts,
    "sync": _syncs,
    "participation": _participation,
    "objectives": _objectives,
    "aggregations": _aggregations,
    "defences": _defences,
    "replicas": _replicas,
}
"""Functions that build the sections, by the name that ``--run`` takes."""


def sections() -> dict[str, Section]:
    """Return the sections by name; the directories of their cells' runs are named by section and cell."""
    found = {name: build() for name, build in SECTIONS.items()}
    return {name: replace(section, cells=list(_named(name, section.cells))) for name, section in found.items()}


def _named(section: str, cells: Iterable[Cell]) -> Iterable[Cell]:
    """Yield the cells of a section with the begin of the names of their directories."""
    for cell in cells:
        words = "".join(c if c.isascii() and c.isalnum() else " " for c in f"{section} {cell.name}")
        yield replace(cell, directory="-".join(words.lower().split()))
