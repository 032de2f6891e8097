"""Event files of a run, which TensorBoard shows."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from simsfl.runs.tracking import Tracked, Tracker
from simsfl.runs.tracking.rows import Row

_SUFFIX = ".simsfl"
"""End of the names of the files, by which they are told from those of others."""


class TensorBoard(Tracker):
    """Event files in RUN/tensorboard, which ``tensorboard --logdir`` shows."""

    def __init__(self, run: Tracked):
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415  (an extra)

        super().__init__(run)
        place = run.path / "tensorboard"
        earlier = list(place.glob(f"events.out.tfevents.*{_SUFFIX}"))
        # a TensorBoard that is open forgets what it has read of the earlier files
        others, self._hook = threading.enumerate(), threading.excepthook
        self._writer = SummaryWriter(str(place), purge_step=0 if earlier else None, filename_suffix=_SUFFIX)
        self._threads = [thread for thread in threading.enumerate() if thread not in others]
        threading.excepthook = self._failed
        for file in earlier:
            file.unlink()
        self._writer.add_text("config", f"```\n{json.dumps(run.config, indent=2)}\n```", 0)
        self._steps = 0

    def log(self, rows: Sequence[Row]) -> None:
        """Write the numbers of the rows."""
        for row in rows:
            self._steps = max(self._steps, row.steps)
            for name, value in row.numbers().items():
                self._writer.add_scalar(name, value, row.steps)
        self._writer.flush()

    def image(self, name: str, file: Path) -> None:
        """Write an image."""
        with Image.open(file) as picture:
            self._writer.add_image(name, np.asarray(picture.convert("RGB")), self._steps, dataformats="HWC")

    def close(self, *, finished: bool) -> None:
        """Close the file."""
        try:
            self._writer.close()
        finally:
            threading.excepthook = self._hook

    def _failed(self, failure: threading.ExceptHookArgs) -> None:
        """Pass over an error in the writer's own thread, such as a full disk, which it raises here at the next call."""
        if failure.thread not in self._threads:
            self._hook(failure)
