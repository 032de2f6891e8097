"""A sampler that knows the clients' devices: it prefers fast ones, and does without those that miss a deadline."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path

import numpy as np

from simsfl.algorithm.plan import Group, client_groups
from simsfl.config import RunConfig
from simsfl.config.values import option
from simsfl.cost.model import client_cost
from simsfl.fleet.costs import Costs
from simsfl.fleet.settings import read_fleet
from simsfl.samplers import Drawn, Sampler
from simsfl.setup import assembly


@dataclass(frozen=True)
class FleetSampler(Sampler):
    """Draws more clients than a cohort has and keeps the fastest, of whom those who miss a deadline do not come.

    A step of a client is what its device computes, sends and receives, as ``simsfl fleet`` tells it, without the time
    in which it waits for others and for the server. The options' defaults draw uniformly.
    """

    file: str | None = option(None, "TOML file of the fleet, as docs/fleet.md describes it.", file=True)
    deadline: float | None = option(
        None, "Seconds of a step, without the server's; a client that takes longer does not come.", within=(0, 1e9)
    )
    over_select: float = option(
        1.0, "How many times as many clients as a cohort has are drawn, of which the fastest are kept.", within=(1, 1e6)
    )
    costs: Costs | None = field(default=None, repr=False, compare=False)
    """What a step takes the clients; known once a config is."""
    groups: list[Group] = field(default_factory=list, repr=False, compare=False)
    """All clients, by batch size."""

    @classmethod
    def of(cls, config: RunConfig) -> Sampler:
        """Return the sampler that a config with every rule applied means.

        Raises:
            ValueError: the file is not given or no fleet, or nobody meets the deadline.
        """
        chosen = super().of(config)
        if chosen.file is None:
            raise ValueError("sampler.file: is not given; allowed: a fleet file")
        groups = client_groups(config.clients, config.cohort, config.batch_size, config.inequality)
        batches = [group.batch_size for group in groups for _ in range(group.cohort)]
        fleet, model = read_fleet(Path(chosen.file)), assembly.network(config, weights=False)
        cost = client_cost(
            model,
            number_bytes=2 if config.precision == "bf16" else 4,
            align_momentum=assembly.aggregation(config).aligns_momentum,
            defence=assembly.defence(config),
        )
        sampler = replace(chosen, costs=Costs(config, model, cost, batches, fleet), groups=groups)
        if chosen.deadline is not None:
            fastest = min(sampler.seconds(np.array(own.clients), config.cohort).min() for own in groups)
            if fastest > chosen.deadline:
                raise ValueError(
                    f"sampler.deadline: {chosen.deadline:g} is less than the {fastest:.3g} s of the fastest client; "
                    "allowed: more"
                )
        return sampler

    def draw(self, clients: range, count: int, round_index: int, images: np.ndarray, rng: np.random.Generator) -> Drawn:
        """Return the fastest of those that are drawn; those that miss the deadline do not come."""
        many = min(len(clients), ceil(self.over_select * count))
        drawn = super().draw(clients, many, round_index, images, rng).clients
        seconds = self.seconds(drawn, count)
        kept = np.sort(np.argsort(seconds, kind="stable")[:count])  # in the order in which they were drawn
        late = () if self.deadline is None else drawn[kept][seconds[kept] > self.deadline]
        return Drawn(drawn[kept], tuple(int(client) for client in late))

    def seconds(self, clients: np.ndarray, sharing: int) -> np.ndarray:
        """Return the seconds ``[n]`` of a step of some clients with the same batch size, without the server's.

        Args:
            clients: ``[n]`` their ids.
            sharing: how many clients share the server's link.
        """
        first = 0 if clients[0] in self.groups[0].clients else self.groups[0].cohort  # a position of theirs
        own = self.costs.devices(clients, [first] * len(clients), sharing=sharing)
        return own.before + own.up + own.down + own.after
