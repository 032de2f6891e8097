"""Opening files that others made, whose paths may lead to something that is no file."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO


def open_regular(path: Path) -> BinaryIO:
    """Open a file to read its bytes; links are followed.

    A FIFO would make the program wait for somebody who writes into it, and a device may never end, so they are refused.

    Raises:
        OSError: the file cannot be opened, or the path leads to a FIFO, a socket, a device or a directory.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return open(path, "rb", opener=_without_waiting)


def text_of(path: Path) -> str:
    """Return what a text file in UTF-8 holds.

    Raises:
        OSError: as `open_regular`.
        UnicodeError: it is not UTF-8.
    """
    with open_regular(path) as file:
        return file.read().decode("utf-8")


def _without_waiting(path: str, flags: int) -> int:
    """Open a path that may have become a FIFO since it was looked at."""
    return os.open(path, flags | os.O_NONBLOCK)
