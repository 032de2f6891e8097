"""Names of this project's programs, as the present one was called: ``simsfl run``, or a file of a checkout."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

_HARDWARE = ("pi-bench", "server", "client", "keys")
"""Programs whose files in a checkout are in ``hw_profile/``; those of the others are in ``experiments/``."""


def door(name: str) -> Path:
    """Return the path in a checkout of the file that starts a program: ``hw_profile/pi_bench.py`` for ``pi-bench``."""
    return Path("hw_profile" if name in _HARDWARE else "experiments", f"{name.replace('-', '_')}.py")


def command(name: str) -> list[str]:
    """Return the words that start a program in the way in which this process was started.

    They are ``simsfl NAME``, or where the present program was started through its file, ``python FILE``, with a
    relative path if that was one, so that the command fits on a line.
    """
    home = checkout()
    if home is None:
        return ["simsfl", name]
    file = str(home / door(name))
    return ["python", file if Path(sys.argv[0]).is_absolute() else os.path.relpath(file)]


def environment() -> dict[str, str]:
    """Return the environment for a Python process that imports the same `simsfl`, also from a checkout."""
    package = Path(__file__).parents[1]
    if (package / "kernels").is_dir():  # installed, so that each process finds it
        return dict(os.environ)
    path = os.pathsep.join([str(package.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path}


def ranks() -> int:
    """Return how many ranks ``torchrun`` has started, of which this process is one; 1 without it."""
    size = os.environ.get("WORLD_SIZE", "1")
    return int(size) if "RANK" in os.environ and size.isdecimal() else 1


def speaks() -> bool:
    """Return whether this process says what all that ``torchrun`` has started on this machine would: the first does."""
    return "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("LOCAL_RANK", "0") == "0"


def pasted(words: Sequence[str]) -> str:
    r"""Return words as one line that a shell divides into the same words, also where it is printed first.

    A word with characters that no terminal shows (control characters, bytes that are not UTF-8) is in ``$'...'``, which
    bash, zsh and ksh read.

    >>> print(pasted(["run", "--resume", "my run", "a title\x1b]0;mine\x07"]))
    run --resume 'my run' $'a title\x1b]0;mine\x07'
    """
    return " ".join(shlex.quote(word) if word.isprintable() else f"$'{_in_bytes(word)}'" for word in words)


def _in_bytes(word: str) -> str:
    """Return a word with every byte that is not a plain character of ASCII as ``\\x`` and its two digits."""
    plain = set(range(0x20, 0x7F)) - set(b"\\'")
    return "".join(chr(byte) if byte in plain else f"\\x{byte:02x}" for byte in os.fsencode(word))


def called(name: str) -> str:
    """Return what messages call a program: ``simsfl pi-bench``, or ``pi_bench.py`` where `command` returns its file."""
    return f"simsfl {name}" if checkout() is None else door(name).name


def checkout() -> Path | None:
    """Return the checkout through one of whose files the present program was started; None if it was another way."""
    started = Path(sys.argv[0]).absolute()
    return started.parents[1] if started.parts[-2:] == door(started.stem.replace("_", "-")).parts else None
