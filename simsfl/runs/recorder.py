"""A client's part in a run, recorded as it happens (`simsfl.runs.client_trace`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from simsfl.algorithm.communication import Exchange
from simsfl.algorithm.observer import Observer
from simsfl.algorithm.plan import RoundPlan, draw_cohort
from simsfl.algorithm.step import Batch, Outcome
from simsfl.cost.model import COLOURS, memory, operations
from simsfl.models import FlatModule
from simsfl.runs.client_trace import STATE, VIEWS, Arrays, TraceWriter, checksums
from simsfl.system.files import replacing

if TYPE_CHECKING:
    from simsfl.simulation import Simulation


class Recorder(Observer):
    """Writes a trace while it is entered; the file is there when it is left without an error.

    What goes wrong in writing it does not stop the run.

    Args:
        simulation: which it observes.
        client: whose part it is; None for one of the first cohort.
        path: of the file.

    Raises:
        ValueError: there is no such client, it takes part in no round to come, or what it does is not recorded.

    Attributes:
        problem: why there is no trace, if there is none.
    """

    def __init__(self, simulation: Simulation, client: int | None, path: str | Path):
        self.simulation, self.path = simulation, Path(path)
        self.client = chosen_client(simulation, client)

    def __enter__(self) -> Recorder:
        self._open = ExitStack()
        self._writer = TraceWriter(self._open.enter_context(replacing(self.path)))
        self._position: int | None = None
        self.problem: Exception | None = None
        self.simulation.observers.append(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._leave()
        if error is None and self.problem is None:
            with self._writing():
                self._finish_visit()
                if not self._writer.visits:
                    raise OSError("the client has done no step")
                self._writer.close(about_part(self.simulation, self.client))
        with suppress(OSError):  # the run's own error, if there is one, or the problem, is what is told
            failed = error or self.problem
            self._open.__exit__(type(failed) if failed else None, failed, at)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Stop recording where it cannot go on."""
        try:
            yield
        except OSError as error:
            self.problem, self._position = error, None
            self._leave()

    def _leave(self) -> None:
        """Be told no more."""
        if self in self.simulation.observers:
            self.simulation.observers.remove(self)

    def round_begins(self, plan: RoundPlan) -> None:
        """See `Observer`."""
        with self._writing():
            self._begin_visit(plan.cohort.tolist())

    def _begin_visit(self, cohort: Sequence[int]) -> None:
        """A round begins, perhaps with the client."""
        self._finish_visit()
        if self.client not in cohort:
            return
        self._position = cohort.index(self.client)
        self._learns = self.simulation.parts.hyper.clients_learn and (
            self.simulation.progress.communication.state is Exchange.BOTH_WAYS
        )
        self._steps: list[Arrays] = []
        self._syncs: list[int] = []
        self._had: Arrays = {}  # before the averaging behind the latest step, if there was one
        self._writer.put_all("begin", self._have())

    def stepped(self, batch: Batch, outcome: Outcome) -> None:
        """See `Observer`."""
        if self._position is None:
            return
        hyper, group, within = self.simulation.parts.hyper, 0, self._position
        while within >= len(batch.pixels[group]):
            within, group = within - len(batch.pixels[group]), group + 1
        first, count = sum(hyper.batches[: self._position]), hyper.batches[self._position]
        own = slice(first, first + count)
        views = batch.views[group].map(lambda tensor: tensor[:, within])
        sent = outcome.smashed.unflatten(0, (-1, sum(hyper.batches)))[:, own]
        step = len(self._steps)
        if self._learns:
            with self._writing():
                self._writer.put(f"gradients/{step}", array(outcome.gradient[own]))
        self._steps.append(
            {
                "pixels": array(batch.pixels[group][within]),
                "lr": array(batch.client_lr[self._position, 0]),
                "checksums": np.stack([checksums(array(view)) for view in sent]),
                **{f"views/{name}": array(getattr(views, name)) for name in VIEWS},
            }
        )
        self._had = {}

    def averaging(self) -> None:
        """See `Observer`."""
        if self._position is not None:
            self._had = self._have()

    def averaged(self) -> None:
        """See `Observer`."""
        if self._position is None:
            return
        step, have, names = len(self._steps) - 1, self._have(), averaged(self.simulation, learns=self._learns)
        with self._writing():
            self._writer.put_all(f"sync-{step}/sent", {name: self._had[name] for name in names})
            self._writer.put_all(f"sync-{step}/received", {name: have[name] for name in names})
        self._syncs.append(step)

    def _have(self) -> Arrays:
        """What the client has now."""
        cohort = self.simulation.state.cohort
        return {name: array(getattr(cohort, name)[self._position]) for name in STATE}

    def _finish_visit(self) -> None:
        """Write what is left of the visit under way, if there is one."""
        if self._position is None:
            return
        if self._steps:
            for name in self._steps[0]:
                self._writer.put(name, np.stack([step[name] for step in self._steps]))
            self._writer.put("learns", np.array(self._learns))
            self._writer.put("syncs", np.array(self._syncs, dtype=np.int64))
            self._writer.put_all("end", self._had or self._have())
            self._writer.visits += 1
        self._position = None


def about_part(simulation: Simulation, client: int) -> dict[str, Any]:
    """What is to be said of a client's part in a run: see `about_client`."""
    config, hyper = simulation.config, simulation.parts.hyper
    (group,) = (group for group in simulation.parts.groups if client in group.clients)
    visits = config.rounds * group.cohort / len(group.clients)
    traffic = simulation.parts.cost.round_traffic(
        [group],
        simulation.parts.steps,
        config.syncs_per_round,
        frozen=not hyper.clients_learn,
        views=config.views_sent,
    )
    return about_client(
        simulation.model.client,
        client=client,
        network=config.network(),
        mean=simulation.dataset.train.mean,
        std=simulation.dataset.train.std,
        batch_size=group.batch_size,
        learns=hyper.clients_learn,
        optimiser={
            "tau": hyper.tau,
            "momentum": hyper.momentum,
            "weight_decay": hyper.weight_decay,
            "precision": config.precision,
        },
        session={
            "steps": round(visits * simulation.parts.steps),
            "bytes_up": round(visits * traffic.up / group.cohort),
            "bytes_down": round(visits * traffic.down / group.cohort),
        },
    )


def about_client(
    model: FlatModule,
    *,
    client: int,
    network: Mapping[str, Any],
    mean: Tensor,
    std: Tensor,
    batch_size: int,
    learns: bool,
    optimiser: Mapping[str, Any],
    session: Mapping[str, int],
) -> dict[str, Any]:
    """What ``trace.json`` says besides its format.

    Args:
        network: the settings that say how the network is made.
        mean, std: that images are normalised by.
        optimiser: tau, momentum and weight decay, and the precision of what is computed.
        session: steps of the client in a whole run, and bytes that it sends and receives.
    """
    shape = (COLOURS, network["image_size"], network["image_size"])
    one = operations(model, shape, of_images=True)
    return {
        "client": client,
        "network": dict(network),
        "images": {"mean": mean.flatten().tolist(), "std": std.flatten().tolist()},
        "shapes": {name: list(own) for name, own in model.shapes.items()},
        "statistic_shapes": {name: list(own) for name, own in model.statistic_shapes.items()},
        "optimiser": dict(optimiser),
        "session": dict(session),
        "cost": {
            "flops": {"query": one.forward, "key": one.forward, "backward": one.backward if learns else 0},
            "memory": asdict(memory(model, shape, batch_size, learns=learns)),
        },
    }


def averaged(simulation: Simulation, *, learns: bool) -> list[str]:
    """What travels at an averaging, of `STATE`; of clients that do not learn, running statistics alone."""
    aligned = learns and simulation.config.align_momentum
    names = ["online"] * learns + ["online_statistics"] + ["momentum", "momentum_statistics"] * aligned
    return [name for name in names if getattr(simulation.state.cohort, name).shape[1]]


def chosen_client(simulation: Simulation, client: int | None) -> int:
    """The client to record; see `Recorder`."""
    config = simulation.config
    if config.method != "mocosfl":
        raise ValueError(f"record_trace: clients of {config.method} send no smashed data; allowed: mocosfl")
    if simulation.model.attacker:
        raise ValueError(
            "record_trace: what simulated attackers do is not recorded; allowed: without --ressfl-lambda, such as "
            "frozen clients that start from an expert"
        )
    if config.precision == "tf32":
        raise ValueError("record_trace: devices that do it again have no TF32; allowed: --precision fp32 or bf16")
    if client is not None and not 0 <= client < config.clients:
        raise ValueError(f"trace_client: {client} is no client; allowed: 0 to {config.clients - 1}")
    first = simulation.progress.finished_rounds
    if first == config.rounds:
        raise ValueError("record_trace: the run is over; allowed: with rounds to come")
    cohorts = (
        np.concatenate(draw_cohort(simulation.parts.groups, index, config.seed))
        for index in range(first, config.rounds)
    )
    others = sorted(next(cohorts).tolist())
    if client is None:
        return others[0]
    if client not in others and not any(client in cohort for cohort in cohorts):
        raise ValueError(
            f"trace_client: {client} takes part in none of the rounds to come; allowed: "
            f"{', '.join(map(str, others[:5]))} and others, or leave it out"
        )
    return client


def array(tensor: Tensor) -> np.ndarray:
    """A copy for NumPy, which has no bfloat16."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy().copy()
