"""Simulator of split federated self-supervised learning: thousands of clients, one process, one program."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simsfl.config import RunConfig

if TYPE_CHECKING:
    from simsfl.simulation import Simulation

__all__ = ["RunConfig", "Simulation"]


def __getattr__(name: str) -> type[Simulation]:
    """`Simulation`, imported when it is first asked for: it brings torch along, which takes seconds."""
    if name == "Simulation":
        from simsfl.simulation import Simulation  # noqa: PLC0415

        return Simulation
    raise AttributeError(f"module 'simsfl' has no attribute {name!r}")
