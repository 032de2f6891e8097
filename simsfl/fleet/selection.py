"""Who is chosen from a fleet: those that are available and fast enough, and samplers that know devices."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import ceil
from typing import TYPE_CHECKING

import numpy as np

from simsfl.config.values import option
from simsfl.samplers import Drawn, Sampler

if TYPE_CHECKING:
    from simsfl.fleet.timeline import Timeline


@dataclass(frozen=True)
class Selected(Sampler):
    """What a fleet makes of a sampler's draws.

    Those who are not available are passed over; of as many others as are to be drawn, the fastest are kept; who misses
    the deadline does not come, for the server knows how long devices take, as in FedCS (Nishio and Yonetani, ICC 2019).
    Where too few are available, the cohort is filled up with others, who do not come.

    Attributes:
        inner: the sampler.
        timeline: the timeline of the run.
        deadline: seconds of a step, without the server's, after which a client counts as absent; None for none.
        over_select: how many times as many clients as a cohort has are drawn.
    """

    inner: Sampler
    timeline: Timeline = field(repr=False, compare=False)
    deadline: float | None
    over_select: float

    def draw(self, clients: range, count: int, round_index: int, images: np.ndarray, rng: np.random.Generator) -> Drawn:
        """Return the clients of a round; see `Sampler.draw` for the arguments."""
        ledger, wanted = self.timeline.before(round_index), ceil(self.over_select * count)
        everyone = ledger.ready[clients.start : clients.stop].all()
        many = min(len(clients), wanted) if everyone else len(clients)
        drawn = self.inner.draw(clients, many, round_index, images, rng)
        drawn.check(clients, many, type(self.inner).__name__)
        ids = drawn.clients
        there = ledger.ready[ids] & ~np.isin(ids, list(drawn.missing))
        first = ids[there][:wanted]
        seconds = self.timeline.step_seconds(ledger, first)
        kept = np.sort(np.argsort(seconds, kind="stable")[:count])  # in the order in which they were drawn
        others = ids[~there][: count - len(kept)]
        late = first[kept][seconds[kept] > self.deadline] if self.deadline is not None else []
        return Drawn(np.concatenate([first[kept], others]), (*map(int, late), *map(int, others)))


@dataclass(frozen=True)
class FleetSampler(Sampler):
    """Prefers clients that are fast, or take little energy, and those that have come to few rounds so far.

    A client's worth is the fastest client's time for a step over its own, or the smallest energy of a step over its
    own, times the charge of its battery. The idea to weigh speed against a fair share of rounds is that of Oort (Lai et
    al., OSDI 2021), whose other part, how much a client's images have to teach, is left out: draws are to follow from
    the seed alone. Clients that are not available come last.
    """

    by: str = option(
        "seconds", "What is preferred: a step that takes few seconds, or little energy.", choices=("seconds", "energy")
    )
    fairness: float = option(
        0.5, "Weight, from 0 to 1, of coming seldom so far; 0 always takes the fastest or thriftiest.", within=(0, 1)
    )
    timeline: Timeline | None = field(default=None, repr=False, compare=False)
    """The timeline of the run."""

    def in_fleet(self, timeline: Timeline) -> Sampler:
        """Return the sampler with a timeline.

        Raises:
            ValueError: energy is preferred, and the power of some devices is not known.
        """
        if self.by == "energy":
            for group in timeline.costs.groups:
                if None in (group.idle_watts, group.busy_watts):
                    raise ValueError(
                        f"sampler.by: energy of fleet group {group.name} is not known; allowed: seconds, or a group "
                        "with idle_watts and busy_watts"
                    )
        return replace(self, timeline=timeline)

    def draw(self, clients: range, count: int, round_index: int, images: np.ndarray, rng: np.random.Generator) -> Drawn:
        """Return the clients of a round, the most worthy first; see `Sampler.draw` for the arguments."""
        ledger, ids = self.timeline.before(round_index), clients.start + rng.permutation(len(clients))
        if self.by == "seconds":
            spent, share = self.timeline.step_seconds(ledger, ids), 1.0
        else:
            spent, share = self.timeline.step_joules(ledger, ids), self.timeline.level(ledger)[ids]
        rounds = ledger.rounds[ids]
        seldom = 1 - rounds / max(1, rounds.max())
        worth = (1 - self.fairness) * share * spent.min() / np.maximum(spent, 1e-12) + self.fairness * seldom
        order = np.argsort(-np.where(ledger.ready[ids], worth, -1.0), kind="stable")  # equals in a random order
        return Drawn(ids[order[:count]])
