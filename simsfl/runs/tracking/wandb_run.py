"""A run of Weights & Biases, offline unless the user has set ``WANDB_MODE``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from simsfl.runs.tracking import Tracked, Tracker
from simsfl.runs.tracking.mark import Mark
from simsfl.runs.tracking.rows import Row


class WandB(Tracker):
    """A run of Weights & Biases in RUN/wandb, offline unless WANDB_MODE says; ``wandb sync`` uploads it."""

    def __init__(self, run: Tracked):
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # nothing leaves the machine unasked
        import wandb  # noqa: PLC0415  (an extra)

        super().__init__(run)
        self._mark, self._image = Mark(run.path / "wandb" / "simsfl.json"), wandb.Image
        self._own = wandb.init(
            dir=str(run.path),
            project=os.environ.get("WANDB_PROJECT", "simsfl"),
            id=self._mark.named(),
            name=run.name,
            config=run.config,
            resume="allow",
            mode=os.environ.get("WANDB_MODE", "offline"),
            settings=wandb.Settings(silent=True, console="off"),
        )
        self._own.define_metric("*", step_metric="steps")  # its own count of steps must not go back, as ours may

    def log(self, rows: Sequence[Row]) -> None:
        """Log those rows that it does not have, each at its number."""
        for row in self._mark.new(rows):
            self._own.log({"steps": row.steps, "round": row.round, **row.numbers()}, step=row.number)

    def image(self, name: str, file: Path) -> None:
        """Log an image behind all rows, unless it has the image already."""
        if self._mark.is_new(name, file):
            self._own.log({name: self._image(str(file))}, step=self._mark.given - 1)

    def close(self, *, finished: bool) -> None:
        """Wait until everything is written."""
        self._own.finish()
