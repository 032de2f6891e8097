"""The spread of a network's outputs (`simsfl.evaluation.spread`) as it is shown, and the warning of a collapse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from simsfl.runs.history import History

_NEAR_ZERO = 0.01
"""Share of the highest possible spread below which a network counts as collapsed. Untrained networks have 0.2 and more
on varied images, and a few hundredths on images that are much alike."""


@dataclass(frozen=True)
class Spread:
    """The spread of a network's outputs at an evaluation."""

    round: int
    """Round of the evaluation; 0 is the untrained network."""
    std: float
    """Standard deviation of the normalised outputs, see `simsfl.runs.metrics.EvaluationRecord`."""
    most: float
    """The highest that `std` can be."""

    @property
    def percent(self) -> float:
        """Return `std` as a percentage of the highest possible."""
        return 100.0 * self.std / self.most

    @property
    def collapsed(self) -> bool:
        """Return whether the network gives almost the same output for all images, although it has been trained."""
        return self.round > 0 and self.std < _NEAR_ZERO * self.most

    def __str__(self) -> str:
        return f"{self.std:.4f} of {self.most:.4f}"


def spreads(config: Mapping[str, Any], history: History) -> list[Spread]:
    """Return the spread at each evaluation of a run; none for runs of versions that did not record it.

    Args:
        config: fields of the run's `RunConfig`.
        history: the records so far.
    """
    recorded = [record for record in history.evaluations if record.get("output_std") is not None]
    return [Spread(record["round"], record["output_std"], config["key_dim"] ** -0.5) for record in recorded]


def collapse(found: Sequence[Spread]) -> tuple[int, str] | None:
    """Return the first round after which the network has collapsed, and a warning of it; None if it never has."""
    for spread in found:
        if spread.collapsed:
            return spread.round, (
                f"After round {spread.round}, outputs hardly differ from image to image: normalised, their standard "
                f"deviation is {spread} at most. The network has collapsed, or the images are almost the same."
            )
    return None
