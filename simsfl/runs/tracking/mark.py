"""How far a tracker has come that cannot replace what it has been given, such as one on a server."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from simsfl.runs.tracking.rows import Row
from simsfl.system.decoding import Count, decode, read_json
from simsfl.system.files import digest, write_json


@dataclass(frozen=True)
class _Content:
    """The content of the file."""

    id: str | None = None
    """What the tracker calls the run; None before it has a name."""
    rows: Count = 0
    """Number of rows that it has been given."""
    images: dict[str, str] = field(default_factory=dict)
    """Checksums of the images that it has been given, by name."""
    replaced: Count = 0
    """Number of images that others of the same name have come after."""


class Mark:
    """A small file in a run directory that says what a tracker has of the run already.

    It is written before the tracker is given anything, so that a process that is killed in between may have left
    out a second of the run, but nothing is ever given twice.

    Args:
        path: path of the file, which may not exist yet.

    Raises:
        ValueError: the file is damaged.
    """

    def __init__(self, path: Path):
        self._path = path
        self._now = decode(_Content, read_json(path)) if path.exists() else _Content()

    @property
    def id(self) -> str | None:
        """Return what the tracker calls the run, None if it does not know the run yet."""
        return self._now.id

    def named(self, id: str | None = None) -> str:
        """Return what the tracker calls the run; if it has no name yet, keep this one, or a random one."""
        if self._now.id is None:
            self._set(id=id or uuid.uuid4().hex[:8])
        return self._now.id

    def new(self, rows: Sequence[Row]) -> list[Row]:
        """Return the rows that the tracker has not been given, and count them as given."""
        others = [row for row in rows if row.number >= self._now.rows]
        if others:
            self._set(rows=others[-1].number + 1)
        return others

    def is_new(self, name: str, file: Path) -> bool:
        """Return whether the tracker has not been given this image by this name, and count it as given."""
        checksum = digest(file)
        if self._now.images.get(name) == checksum:
            return False
        again = name in self._now.images
        self._set(images=self._now.images | {name: checksum}, replaced=self._now.replaced + again)
        return True

    @property
    def given(self) -> int:
        """Return the number of rows and images that the tracker has been given."""
        return self._now.rows + len(self._now.images) + self._now.replaced

    def _set(self, **changes: object) -> None:
        """Write the file with other values."""
        self._now = replace(self._now, **changes)
        self._path.parent.mkdir(exist_ok=True)
        write_json(self._path, asdict(self._now), durable=False)
