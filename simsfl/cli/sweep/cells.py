"""What a sweep runs: cells, which are the settings of a grid of flags or the figures of a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Attack:
    """The attack on a run, in which a decoder is trained; the defaults are the published ones."""

    decoder: str = "res_normN4C64"
    """Name of the decoder, after which the file of its result is named."""
    share: float = 0.01
    """Share of the training images that the attacker has."""
    epochs: int = 50
    """Epochs of the decoder."""


@dataclass(frozen=True)
class Cell:
    """A setting that is run once for each seed: one figure of a table, or a point of a grid of flags."""

    row: str
    column: str
    settings: dict[str, Any]
    """Config fields that this cell sets."""
    published: float | None = None
    """Published accuracy of the linear probe in percent; None where no published figure is known."""
    rounds: int | None = None
    """Rounds of the published schedule; None where they follow from the preset's rule."""
    expert: Cell | None = None
    """Cell whose run comes first and gives this one its initial client; None where there is no such run."""
    attack: Attack | None = None
    """The attack that ``attack.py`` makes on the result; None for none."""
    published_mse: float | None = None
    """Published mean squared error of that attack."""
    directory: str | None = None
    """Begin of the names of the cell's run directories, empty for none; None where they follow from its own name."""
    problem: str = ""
    """Why the cell cannot be run; empty where that is not known."""

    def concerned(self, flags: dict[str, Any]) -> dict[str, Any]:
        """Return those of the flags that apply to this cell.

        An expert takes flags of its own training and of its network, and other flags where its settings say nothing.
        A cell that starts from an expert takes all flags but those of the expert's training; any other cell takes all.

        Args:
            flags: config fields that the user gave, by name.
        """
        of_network = ("dataset", "cut_layer", "bottleneck")
        if "aux_dataset" in self.settings:
            return {n: v for n, v in flags.items() if _of_experts(n) or n in of_network or n not in self.settings}
        return {n: v for n, v in flags.items() if not (self.expert and _of_experts(n))}

    @property
    def name(self) -> str:
        """Return row and column, such as ``MocoSFL-1, CIFAR-10 N=5``."""
        return ", ".join(filter(None, (self.row, self.column)))


def _of_experts(flag: str) -> bool:
    """Return whether a flag affects the training of experts only."""
    return flag == "aux_dataset" or flag.startswith("ressfl_")
