"""What simsfl has written into a directory: only that is ever replaced or deleted."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from simsfl.system.files import check_writable, digest, naming, replacing, sweep

_LIST = "written-by-simsfl.txt"
"""Name of the file in a directory that lists what simsfl has written into it, as ``sha256sum`` does."""
_LINE = re.compile(r"([0-9a-f]{64})  (\S.*)")


class Outputs:
    """A directory that programs write results into, beside whatever else it holds.

    Each file is listed with its SHA-256 before it appears. A file is simsfl's own as long as it is listed with the
    checksum of its present content. Every other file is a user's, or has been changed by one: it is neither replaced
    nor deleted. The list only grows, a line for each version of a file, so that programs may write at the same time.

    Args:
        path: the directory, which is created when it is first written into.
        flag: name of the flag that gave it, for errors.
    """

    def __init__(self, path: Path, flag: str = "out"):
        self.path, self.flag = path, flag

    @classmethod
    def of(cls, file: Path, flag: str) -> Outputs:
        """Return the directory of a file that will be written, and that a flag names.

        Raises:
            ValueError: the file cannot be written, or is there but is not simsfl's own.
        """
        check_writable(file, flag)
        outputs = cls(file.parent, flag)
        outputs.check(file.name)
        return outputs

    @property
    def listed(self) -> bool:
        """Return whether there is a list, which directories from before it was introduced do not have."""
        return (self.path / _LIST).is_file()

    def is_empty(self) -> bool:
        """Sweep away what killed processes left; return whether the directory is missing, or holds the list alone."""
        if not self.path.is_dir():
            return True
        sweep(self.path)
        return all(path.name == _LIST for path in self.path.iterdir())

    def owns(self, name: str) -> bool:
        """Return whether the file `name` is there as simsfl has written it."""
        file = self.path / name
        return file.is_file() and not file.is_symlink() and (digest(file), name) in self._lines()

    def check(self, *names: str) -> None:
        """Raise a ValueError if one of the files `names` is there, but is not simsfl's own, or this is no directory."""
        if os.path.lexists(self.path) and not self.path.is_dir():
            raise ValueError(f"{self.flag}: {self.path} is no directory; allowed: a directory, also a new one")
        for name in names:
            if os.path.lexists(self.path / name) and not self.owns(name):
                raise ValueError(
                    f"{self.flag}: {self.path / name} was not written by simsfl, or has been changed since; allowed: "
                    "another place, or to move that file away"
                )

    @contextmanager
    def replacing(self, name: str) -> Iterator[Path]:
        """Yield a temporary path; it becomes the file `name` when the block ends without an error.

        Raises:
            ValueError: there is such a file, which is not simsfl's own.
            OSError: the file cannot be written.
        """
        self.check(name)
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            yield temporary
            with naming(path):
                self._add(digest(temporary), name)

    def write_text(self, name: str, text: str) -> None:
        """Write a text into the file `name`; it raises what `replacing` does."""
        with self.replacing(name) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def write_json(self, name: str, value: Any) -> None:
        """Write a value into the file `name` as indented JSON; it raises what `replacing` does."""
        self.write_text(name, json.dumps(value, indent=2) + "\n")

    def adopt(self, names: Iterable[str]) -> None:
        """List those of the files `names` that are there, in a directory that has no list because it is older."""
        if not self.listed:
            for name in names:
                if (self.path / name).is_file():
                    self._add(digest(self.path / name), name)

    def owned(self, *names: str) -> list[str]:
        """Return the files that are simsfl's own among files called `names`, and those in directories called so."""
        listed = dict.fromkeys(name for _, name in self._lines())
        return [name for name in listed if Path(name).parts[0] in names and self.owns(name)]

    def clear(self, *names: str) -> None:
        """Delete files and what is in directories called `names`, the latest first, as far as it is simsfl's own.

        Directories that are empty then are deleted, too, and so is the list if nothing is left that it has.
        """
        for name in reversed(self.owned(*names)):
            (self.path / name).unlink()
            for directory in Path(name).parents[:-1]:
                with suppress(OSError):  # it holds other files
                    (self.path / directory).rmdir()
        if not any(self.owns(name) for _, name in self._lines()):
            (self.path / _LIST).unlink(missing_ok=True)

    def _add(self, checksum: str, name: str) -> None:
        """Add a line to the list, and force it onto the disk."""
        with (self.path / _LIST).open("ab", buffering=0) as file:
            file.write(f"{checksum}  {name}\n".encode(errors="surrogateescape"))
            os.fsync(file.fileno())

    def _lines(self) -> list[tuple[str, str]]:
        """Return checksum and name of each version of a file, in the order in which they were written."""
        try:
            lines = (self.path / _LIST).read_text(encoding="utf-8", errors="surrogateescape").split("\n")
        except FileNotFoundError:
            return []
        found = (match.groups() for line in lines if (match := _LINE.fullmatch(line)))
        return [(checksum, name) for checksum, name in found if ".." not in Path(name).parts and name[0] != "/"]
