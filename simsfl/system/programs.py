"""Names of this project's programs, as the present one was called: ``simsfl run``, or a file of a checkout."""

from __future__ import annotations

import sys
from pathlib import Path

_HARDWARE = ("pi-bench", "server", "client", "keys")
"""Programs whose files in a checkout are in ``hw_profile/``; those of the others are in ``experiments/``."""


def door(name: str) -> Path:
    """Return the path in a checkout of the file that starts a program: ``hw_profile/pi_bench.py`` for ``pi-bench``."""
    return Path("hw_profile" if name in _HARDWARE else "experiments", f"{name.replace('-', '_')}.py")


def command(name: str) -> list[str]:
    """Return the words that start a program in the way in which this process was started.

    They are ``simsfl NAME``, or where the present program was started through its file, ``python FILE``.
    """
    checkout = _checkout()
    return ["simsfl", name] if checkout is None else ["python", str(checkout / door(name))]


def called(name: str) -> str:
    """Return what messages call a program: ``simsfl pi-bench``, or ``pi_bench.py`` where `command` returns its file."""
    return f"simsfl {name}" if _checkout() is None else door(name).name


def _checkout() -> Path | None:
    """Return the checkout through one of whose files the present program was started; None if it was another way."""
    started = Path(sys.argv[0]).absolute()
    return started.parents[1] if started.parts[-2:] == door(started.stem.replace("_", "-")).parts else None
