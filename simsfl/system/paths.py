"""Paths as users write them, and the directory of what may be made again."""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

log = logging.getLogger(__name__)


def expanded(text: str) -> str:
    """Return a path or name in which ``~`` or ``~user`` at the start is replaced by a home directory.

    Shells do so only at the start of a word, and not in ``--out=~/x``, nor in what configs and variables hold.

    Raises:
        ValueError: there is no such home directory.
    """
    result = os.path.expanduser(text)  # noqa: PTH111  (pathlib would drop the ./ that makes a path of a name)
    if text.startswith("~") and result == text:
        raise ValueError(f"there is no home directory for {text!r}; allowed: a whole path, or ./{text}")
    return result


def cache_directory() -> Path:
    """Return ``$SIMSFL_CACHE`` if it is set, else ``simsfl`` in the user's cache directory.

    Users of containers may have no home directory, or one that cannot be written. For them the cache is a temporary
    directory, which this process and those that it starts share, and which is removed in the end; a warning says so.

    Raises:
        ValueError: the variable begins with ``~`` and names no home directory.
    """
    if named := os.environ.get("SIMSFL_CACHE"):
        try:
            return Path(expanded(named))
        except ValueError as error:
            raise ValueError(f"SIMSFL_CACHE: {error}") from error
    base = None
    with suppress(ValueError):
        base = Path(expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache"))
        if _can_be_made(base / "simsfl"):
            return base / "simsfl"
    directory = tempfile.mkdtemp(prefix="simsfl-cache-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    os.environ["SIMSFL_CACHE"] = directory
    reason = f"{base} cannot be written" if base else "there is no home directory"
    log.warning("%s: the cache is temporary, in %s; SIMSFL_CACHE may name another directory", reason, directory)
    return Path(directory)


def _can_be_made(directory: Path) -> bool:
    """Return whether a directory exists, or could be made by this user."""
    existing = next(path for path in (directory, *directory.absolute().parents) if os.path.exists(path))  # noqa: PTH110
    return existing == directory or os.access(existing, os.W_OK | os.X_OK)
