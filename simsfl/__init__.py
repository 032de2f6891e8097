"""Simulator of split federated self-supervised learning: thousands of clients, one process, one program."""

from simsfl.config import RunConfig
from simsfl.simulation import Simulation

__all__ = ["RunConfig", "Simulation"]
