"""Simulator of split federated self-supervised learning: thousands of clients, one process, one program."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from simsfl.config import RunConfig

if TYPE_CHECKING:
    from simsfl.simulation import Simulation

__all__ = ["RunConfig", "Simulation"]

_HERE = Path(__file__).parent
if not (_HERE / "kernels").is_dir():  # a checkout, where kernels/ and hw_profile/ lie beside this package
    __path__.append(str(_HERE.parent))


def __getattr__(name: str) -> type[Simulation]:
    """Import `Simulation` when it is first asked for, since it brings torch along, which takes seconds."""
    if name == "Simulation":
        from simsfl.simulation import Simulation  # noqa: PLC0415

        return Simulation
    raise AttributeError(f"module 'simsfl' has no attribute {name!r}")
