"""Trackers: programs of others, such as TensorBoard, that get the records of a run (``--track``).

`simsfl.config.catalogue.TRACKERS` has them by name, and `simsfl.runs.tracking.feed` hands them the records.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simsfl.config import RunConfig
from simsfl.runs.tracking.rows import EVENTS, Row

OWN_FILES = (
    *(f"csv/{event}.csv" for event in EVENTS),
    "tensorboard/events.out.tfevents.*.simsfl",
    "wandb/simsfl.json",
    "mlflow/simsfl.json",
)
"""Patterns of the files in a run directory that belong to the run that is there, and go when it is replaced.

What W&B and MLflow have kept stays: a new run there is another one for them, beside the earlier one.
"""


@dataclass(frozen=True)
class Tracked:
    """The run that a tracker follows."""

    path: Path
    """Its run directory, absolute."""
    config: dict[str, Any]
    """The fields of its config, by name."""

    @classmethod
    def of(cls, path: Path, config: RunConfig) -> Tracked:
        """Return the run in the directory `path`, with this config, in which every rule is applied."""
        return cls(path.resolve(), config.to_dict())

    @property
    def name(self) -> str:
        """Return what the run is called: the name of its directory."""
        return self.path.name


class Tracker:
    """The base class of trackers, of which each session of a run has its own object.

    In every session a tracker gets all rows of the run, from the first record on. It replaces what it has written
    of them earlier, or skips them, so that no step is there twice however often the run was interrupted, and a tracker
    that comes later has the earlier steps, too. It may raise whatever it likes: it is closed then, and the run goes on.

    Args:
        run: the run; the tracker records its config.

    Attributes:
        images: whether the tracker takes images.
    """

    images = True

    def __init__(self, run: Tracked):
        self.run = run

    def log(self, rows: Sequence[Row]) -> None:
        """Take the next rows, so that they can be seen."""
        raise NotImplementedError

    def image(self, name: str, file: Path) -> None:
        """Take an image of the finished run.

        Args:
            name: its name, such as "partition".
            file: a PNG file, which is gone afterwards.
        """

    def close(self, *, finished: bool) -> None:
        """Bring what was taken to where it is kept.

        Args:
            finished: whether the run has come to its end.
        """
