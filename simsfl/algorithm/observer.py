"""What others may know of a simulation while it trains: told to its observers, where there are any."""

from __future__ import annotations

from simsfl.algorithm.plan import RoundPlan
from simsfl.algorithm.step import Batch, Outcome


class Observer:
    """Is told, and does nothing; the simulation's `state` is then as each method says.

    On CUDA steps are recorded once and replayed (`simsfl.engine.cuda_graph`), which an observer need not care about as
    long as it reads, or writes into the tensors of the state. What it is given of an outcome is overwritten by the next
    step: it copies what it wants to keep.

    Attributes:
        needs_eager_steps: whether every step has to be carried out by Python while this observes, since it puts other
            objects in the place of what takes part in steps, or has them call it.
    """

    needs_eager_steps: bool = False

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
