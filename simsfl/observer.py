"""What others may know of a simulation while it trains: told to its observers, where there are any."""

from __future__ import annotations

from simsfl.plan import RoundPlan
from simsfl.step import Batch, Outcome


class Observer:
    """Is told, and does nothing; the simulation's `state` is then as each method says."""

    def round_begins(self, plan: RoundPlan) -> None:
        """The cohort has what it trains with from here on: at the start of a round, or where a run was resumed."""

    def stepped(self, batch: Batch, outcome: Outcome) -> None:
        """The cohort has done a step, and an averaging may follow."""

    def averaging(self) -> None:
        """It is about to be averaged."""

    def averaged(self) -> None:
        """Its clients have received the average."""

    def step_is_over(self) -> None:
        """A step is over, and its averaging, if there was one; or one that the server replayed, without clients."""
