"""Simulator of split federated self-supervised learning: thousands of clients, one process, one program."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from simsfl.config import RunConfig
    from simsfl.simulation import Simulation

__all__ = ["RunConfig", "Simulation"]

_HERE = Path(__file__).parent
_HOMES = {"RunConfig": "simsfl.config", "Simulation": "simsfl.simulation"}

if not (_HERE / "kernels").is_dir():  # a checkout, where kernels/ and hw_profile/ lie beside this package
    __path__.append(str(_HERE.parent))


def __getattr__(name: str) -> type:
    """Import a public class when it is first asked for: torch takes seconds, and a board has little memory."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'simsfl' has no attribute {name!r}")
