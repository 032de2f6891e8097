"""Following the records of a run while another process adds to them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from simsfl.runs.metrics_log import read_records


class Tail:
    """What ``metrics.jsonl`` has got since it was read last.

    Args:
        path: path of the file, which need not exist yet.
    """

    def __init__(self, path: Path):
        self.path, self._offset = path, 0

    def cut_back(self) -> bool:
        """Return whether the file has become shorter, as when a run is resumed; then it is read from its beginning."""
        cut = bool(self._offset) and (not self.path.exists() or self.path.stat().st_size < self._offset)
        self._offset = 0 if cut else self._offset
        return cut

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield the records that have not been read yet, as dicts; a ValueError if a line is not a record."""
        if self.path.exists():
            for record, offset in read_records(self.path, self._offset):
                self._offset = offset
                yield record
