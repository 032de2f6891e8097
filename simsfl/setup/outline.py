"""The outline of a run: what follows from its config and the sizes of its data, before there are weights or images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from simsfl.algorithm.plan import Group, client_groups, steps_per_round
from simsfl.config import RunConfig
from simsfl.setup.defaults import with_rules


@dataclass(frozen=True)
class Outline:
    """The size of a run."""

    config: RunConfig
    """The config with every rule applied."""
    groups: list[Group]
    """The clients, grouped by batch size."""
    steps: int
    """Steps in a round."""


def outline(asked: RunConfig, held: Sequence[int], *, smallest: int, classes: int) -> Outline:
    """Return the outline of a run.

    Args:
        asked: the config, whose device and precision have been checked.
        held: number of images that all clients together hold, of the data set and of the auxiliary one; a data set of
            which they hold none is left out.
        smallest: number of images of the client that holds the fewest.
        classes: number of classes of the data set.
    """
    config = with_rules(asked, smallest, classes)
    groups = client_groups(config.clients, config.cohort, len(held) * config.batch_size, config.inequality)
    return Outline(config, groups, steps_per_round(held, groups, config.local_epochs))
