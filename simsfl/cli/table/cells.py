"""The tables of the paper (Li et al., ICLR 2023): the settings of each cell and the figure published for it.

The settings are those of the published scripts; they change the preset that ``table.py`` is given. Accuracies are those
of the linear probe, in percent. To add a table, write a function that returns its cells and add a line to `TABLES`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

from simsfl.cli.sweep.cells import Attack, Cell

PUBLISHED = "ResNet-18, full schedule, linear probe"
"""Network, schedule and measure of the published figures."""
_TITLES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "imagenet12": "ImageNet-12"}
_SPLITS = {"IID": True, "non-IID": False}
"""Whether each partition is IID; non-IID is as published, by the rule that a client holds a fifth of the classes."""
_VARIANTS = {"MocoSFL-1": 1, "MocoSFL-3": 2}
"""Cut layer of each variant, which is named after its convolutions on the client: a block behind the stem has two."""


@dataclass(frozen=True)
class Table:
    """A table of the paper: its title and its cells."""

    title: str
    cells: list[Cell]
    context: str = ""
    """Results that others report for the same setting."""


def _data(dataset: str, *, iid: bool) -> dict[str, Any]:
    """Return the config fields that choose a data set and its partition."""
    return {"dataset": dataset, "partition": "iid" if iid else "shards", "supervised": False}


def _cross_silo() -> Table:
    """Return Table 2: 5 clients, or 20 of which 5 train in a round; non-IID."""
    few = {"clients": 5}
    more = {"clients": 20, "cohort": 5, "batch_size": 20, "syncs_per_round": 10}
    federated = {"method": "fl-byol", "local_epochs": 5, "batch_size": 128, "syncs_per_round": 1}
    published = {
        "FL-BYOL": (83.34, 75.77, 61.78, 52.78),
        "MocoSFL-1": (87.81, 85.84, 58.78, 57.80),
        "MocoSFL-3": (87.29, 85.32, 57.70, 57.52),
    }
    cells = []
    for row, figures in published.items():
        columns = [(dataset, clients) for dataset in ("cifar10", "cifar100") for clients in (few, more)]
        for (dataset, clients), figure in zip(columns, figures, strict=True):
            split = row in _VARIANTS
            method = {"method": "mocosfl", "cut_layer": _VARIANTS[row]} if split else federated
            column = f"{_TITLES[dataset]} N={clients['clients']}"
            rounds = None if split else 100  # of 5 local epochs, as in Zhuang et al.
            cells.append(Cell(row, column, {**clients, **_data(dataset, iid=False), **method}, figure, rounds))
    return Table("Table 2: few clients, non-IID", cells)


def _cross_client() -> Table:
    """Return Table 3: 100, 200 and 1,000 clients, IID and non-IID."""
    published = {
        ("MocoSFL-1", "cifar10", True): (87.29, 87.38, 87.51),
        ("MocoSFL-1", "cifar10", False): (87.71, 87.39, 86.46),
        ("MocoSFL-1", "cifar100", True): (58.91, 59.15, 58.85),
        ("MocoSFL-1", "cifar100", False): (59.22, 58.90, 56.75),
        ("MocoSFL-1", "imagenet12", True): (92.02, 91.73, 91.76),
        ("MocoSFL-1", "imagenet12", False): (92.24, 91.44, 91.28),
        ("MocoSFL-3", "cifar10", True): (87.29, 87.15, 87.25),
        ("MocoSFL-3", "cifar10", False): (87.10, 85.22, 84.75),
        ("MocoSFL-3", "cifar100", True): (58.41, 58.30, 58.80),
        ("MocoSFL-3", "cifar100", False): (58.69, 58.59, 56.88),
        ("MocoSFL-3", "imagenet12", True): (92.08, 92.24, 92.02),
        ("MocoSFL-3", "imagenet12", False): (92.60, 91.83, 91.28),
    }
    cells = []
    for (variant, dataset, iid), figures in published.items():
        row = f"{variant} {_TITLES[dataset]} {'IID' if iid else 'non-IID'}"
        for clients, figure in zip((100, 200, 1000), figures, strict=True):
            settings = {"method": "mocosfl", "clients": clients, "cut_layer": _VARIANTS[variant]}
            cells.append(Cell(row, f"{clients:,} clients", settings | _data(dataset, iid=iid), figure))
    return Table(
        "Table 3: many clients",
        cells,
        "for comparison, CIFAR-10: COALA (application/splitFL) reports 81.50 by linear probe for 100 IID clients, cut "
        "layer 1, 400 rounds; lightly 83.8 by kNN for MoCo in one place, 200 epochs, batch 128",
    )


def _on_cifar10(row: str, column: str, *, iid: bool, **settings: Any) -> Cell:
    """Return a cell of an ablation on CIFAR-10, with 100 clients unless `settings` give another number."""
    return Cell(row, column, {"method": "mocosfl", "clients": 100, **settings, **_data("cifar10", iid=iid)})


def _cuts() -> Table:
    """Return the ablation of the cut layer."""
    cells = [
        _on_cifar10(f"cut layer {cut}", split, iid=iid, cut_layer=cut)
        for cut, (split, iid) in product(range(1, 6), _SPLITS.items())
    ]
    return Table("Cut layers, CIFAR-10, 100 clients", cells)


def _syncs() -> Table:
    """Return the ablation of how often the clients' models are averaged in a round."""
    cells = [
        _on_cifar10(f"{variant}, {split}", f"{count} per round", iid=iid, cut_layer=cut, syncs_per_round=count)
        for (variant, cut), (split, iid), count in product(_VARIANTS.items(), _SPLITS.items(), (1, 2, 5, 10, 20))
    ]
    return Table("Averagings per round, CIFAR-10, 100 clients", cells)


def _participation() -> Table:
    """Return the ablation of participation: the share of the clients that trains in a round."""
    cells = [
        _on_cifar10(
            f"{variant}, non-IID", f"{share:.0%}", iid=False, cut_layer=cut, clients=200, cohort=round(200 * share)
        )
        for (variant, cut), share in product(_VARIANTS.items(), (0.1, 0.25, 0.5, 1.0))
    ]
    return Table("Participation, CIFAR-10, 200 clients", cells)


def _other_archs() -> Table:
    """Return the cells of VGG-13 and MobileNetV2, cut behind their second layer, at the published learning rates."""
    rates = {("vgg13", True): 0.03, ("vgg13", False): 0.02, ("mobilenetv2", True): 0.03, ("mobilenetv2", False): 0.03}
    cells = [
        _on_cifar10(arch, split, iid=iid, arch=arch, cut_layer=2, lr=rates[arch, iid])
        for arch, (split, iid) in product(("vgg13", "mobilenetv2"), _SPLITS.items())
    ]
    return Table("Other architectures, CIFAR-10, 100 clients", cells)


def _taressfl() -> Table:
    """Return Table 4, TAResSFL: for each cell an expert, a run of frozen clients that start from it, and an attack."""
    frozen = {"method": "mocosfl", "clients": 100, "bottleneck": "C4S2", "lr": 0.001, "client_lr": 0.0}
    published = {  # accuracy and MSE, by cut layer and share of the target's data
        (1, 0.0): (81.14, 0.039),
        (1, 0.005): (80.78, 0.033),
        (1, 0.01): (79.96, 0.039),
        (2, 0.0): (81.19, 0.045),
        (2, 0.005): (80.51, 0.035),
        (2, 0.01): (83.13, 0.039),
    }
    cells = []
    for cut, weight, share in product((1, 2), (2.0, 1.0, 4.0, 0.0), (0.0, 0.005, 0.01)):
        row, column = f"cut layer {cut}, lambda {weight:g}", f"{share:.1%} of the target's data"
        party = {"method": "mocosfl", "clients": 1, "cohort": None, "batch_size": 128, "partition": "iid"}
        learnt = {"aux_dataset": "cifar100", "data_proportion": share, "ressfl_lambda": weight, "linear_probe": False}
        network = {"dataset": "cifar10", "cut_layer": cut, "bottleneck": "C4S2"}
        expert = Cell(f"expert of {row}", column, {**party, **learnt, **network})
        accuracy, mse = published[cut, share] if weight == 2.0 else (None, None)
        settings = {**frozen, **_data("cifar10", iid=False), "cut_layer": cut}
        cells.append(Cell(row, column, settings, accuracy, expert=expert, attack=Attack(), published_mse=mse))
    return Table("Table 4: clients that resist inversion", cells)


TABLES: dict[str, Callable[[], Table]] = {
    "2": _cross_silo,
    "3": _cross_client,
    "4": _taressfl,
    "cuts": _cuts,
    "sync": _syncs,
    "participation": _participation,
    "other-archs": _other_archs,
}
"""Functions that build the tables, by the name that ``table.py`` takes."""
