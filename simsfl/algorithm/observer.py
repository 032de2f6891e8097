"""Observers: how other code follows a simulation while it trains."""

from __future__ import annotations

from simsfl.algorithm.batch import Batch, Outcome
from simsfl.algorithm.plan import RoundPlan


class Observer:
    """A base class whose methods a simulation calls as it trains; here they do nothing.

    When a method is called, the simulation's `state` is as the method's description says. On CUDA, steps are recorded
    once and replayed (`simsfl.engine.cuda_graph`). An observer may read the state, and write into its tensors, all the
    same. The tensors of an outcome are overwritten by the next step, so an observer copies what it wants to keep.

    Attributes:
        needs_eager_steps: whether steps must not be replayed while this observer is there, because it replaces objects
            that take part in steps, or has them call it.
    """

    needs_eager_steps: bool = False

    def round_begins(self, plan: RoundPlan) -> None:
        """React to the start of a round, or to a resumed one: the cohort has the state that it trains on from here."""

    def stepped(self, batch: Batch, outcome: Outcome) -> None:
        """React to a step of the cohort, before the averaging that may follow it."""

    def averaging(self) -> None:
        """React to the end of the cohort's training before an averaging: its models are about to be averaged."""

    def averaged(self) -> None:
        """React to an averaging: the cohort's clients have received the average."""

    def step_is_over(self) -> None:
        """React to the end of a step, with its averaging if there was one.

        This includes steps that the server replays without clients.
        """
