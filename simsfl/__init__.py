"""Simulator of split federated self-supervised learning: thousands of clients, one process, one program."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simsfl.cli.api import resume, run
    from simsfl.config import RunConfig
    from simsfl.simulation import Simulation

__all__ = ["RunConfig", "Simulation", "__version__", "resume", "run"]

_HERE = Path(__file__).parent
_HOMES = {
    "RunConfig": "simsfl.config",
    "Simulation": "simsfl.simulation",
    "resume": "simsfl.cli.api",
    "run": "simsfl.cli.api",
}

if not (_HERE / "kernels").is_dir():  # a checkout, where kernels/ and hw_profile/ lie beside this package
    __path__.append(str(_HERE.parent))


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: torch takes seconds, and a board has little memory."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415  (2 MB, too much for a small board)

        try:
            return version("simsfl")
        except PackageNotFoundError:
            return "0+checkout"
    raise AttributeError(f"module 'simsfl' has no attribute {name!r}")
