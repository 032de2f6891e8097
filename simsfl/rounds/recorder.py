"""Recording of what one client does in a run as a client trace (`simsfl.runs.client_trace`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simsfl.algorithm.batch import Batch, Outcome
from simsfl.algorithm.communication import Exchange
from simsfl.algorithm.observer import Observer
from simsfl.algorithm.plan import RoundPlan
from simsfl.config.constraints import RECORDING, check
from simsfl.rounds.progress import Progress
from simsfl.runs.client_description import about_client
from simsfl.runs.client_trace import STATE, VIEWS, Arrays, TraceWriter, checksums
from simsfl.setup.parts import Parts
from simsfl.system.files import replacing


class Recorder(Observer):
    """An observer that writes the client trace of one client while its context is entered.

    The file appears when the context is left without an error. An error in writing it is kept in `problem`, and the run
    goes on.

    Args:
        parts: the parts of the simulation.
        progress: how far the run has come.
        observers: the observers of the simulation, which it joins.
        client: id of the client to record; None for the lowest id of the next cohort.
        path: path of the file.

    Attributes:
        client: id of the client that is recorded.
        problem: the error that kept the file from being written; None if all went well so far.

    Raises:
        ValueError: the client does not exist or takes part in none of the remaining rounds, the run is finished, or
            runs of this kind cannot be recorded (`simsfl.config.constraints.RECORDING`).
    """

    def __init__(
        self, parts: Parts, progress: Progress, observers: list[Observer], client: int | None, path: str | Path
    ):
        self.path = Path(path)
        self._parts, self._progress, self._observers = parts, progress, observers
        self.client = _chosen_client(parts, progress, client)

    def __enter__(self) -> Recorder:
        self._open = ExitStack()
        self._writer = TraceWriter(self._open.enter_context(replacing(self.path, new=True)))
        self._position: int | None = None
        self.problem: Exception | None = None
        self._observers.append(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._observers.remove(self)
        if error is None and self.problem is None:
            with self._writing():
                self._finish_visit()
                if not self._writer.visits:
                    raise OSError("the client did no step")
                self._writer.close(about_part(self._parts, self.client))
        failed = error or self.problem
        if failed:
            self._writer.abandon()
        try:
            self._open.__exit__(type(failed) if failed else None, failed, at)
        except OSError as last:  # the error of the run, or the first of the recorder, is the one to report
            self.problem = self.problem or last

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Stop recording if an OSError is raised inside, and keep it in `problem`."""
        try:
            yield
        except OSError as error:
            self.problem, self._position = error, None

    def round_begins(self, plan: RoundPlan) -> None:
        """Begin a visit if the client is in the cohort."""
        with self._writing():
            self._begin_visit(plan.cohort.tolist())

    def _begin_visit(self, cohort: Sequence[int]) -> None:
        """Finish the visit before, and begin one if the client is in the cohort.

        Args:
            cohort: ids of the clients, in cohort order.
        """
        self._finish_visit()
        if self.problem or self.client not in cohort:
            return
        self._position = cohort.index(self.client)
        self._learns = self._parts.hyper.clients_learn and (self._progress.communication.state is Exchange.BOTH_WAYS)
        self._steps: list[Arrays] = []
        self._syncs: list[int] = []
        self._had: Arrays = {}  # its state before the averaging after the latest step
        self._writer.put_all("begin", self._have())

    def stepped(self, batch: Batch, outcome: Outcome) -> None:
        """Record the step, if the client takes part in the round."""
        if self._position is None:
            return
        hyper, group, within = self._parts.hyper, 0, self._position
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
        """Keep the state of the client before the averaging."""
        if self._position is not None:
            self._had = self._have()

    def averaged(self) -> None:
        """Record what the client has sent to be averaged, and what it has received."""
        if self._position is None:
            return
        step, have, names = len(self._steps) - 1, self._have(), averaged(self._parts, learns=self._learns)
        with self._writing():
            self._writer.put_all(f"sync-{step}/sent", {name: self._had[name] for name in names})
            self._writer.put_all(f"sync-{step}/received", {name: have[name] for name in names})
        self._syncs.append(step)

    def _have(self) -> Arrays:
        """Return copies of all parts of `STATE` of the client."""
        cohort = self._parts.state.cohort
        return {name: array(getattr(cohort, name)[self._position]) for name in STATE}

    def _finish_visit(self) -> None:
        """Write the rest of the current visit, if there is one."""
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


def about_part(parts: Parts, client: int) -> dict[str, Any]:
    """Return the content of a client's ``trace.json``, without format and visits: see `about_client`."""
    config, hyper = parts.config, parts.hyper
    (group,) = (group for group in parts.groups if client in group.clients)
    visits = config.rounds * group.cohort / len(group.clients)
    traffic = parts.cost.round_traffic(
        [group],
        parts.steps,
        config.syncs_per_round,
        frozen=not hyper.clients_learn,
        views=config.views_sent,
    )
    return about_client(
        parts.model.client,
        client=client,
        network=config.network(),
        mean=parts.dataset.train.mean,
        std=parts.dataset.train.std,
        batch_size=group.batch_size,
        learns=hyper.clients_learn,
        optimiser={
            "tau": hyper.tau,
            "momentum": config.momentum,
            "weight_decay": config.weight_decay,
            "precision": config.precision,
        },
        session={
            "steps": round(visits * parts.steps),
            "bytes_up": round(visits * traffic.up / group.cohort),
            "bytes_down": round(visits * traffic.down / group.cohort),
        },
    )


def averaged(parts: Parts, *, learns: bool) -> list[str]:
    """Return those parts of `STATE` that are sent and received at an averaging, without empty ones.

    Args:
        learns: whether clients learn; if they do not, only the running statistics are averaged.
    """
    aligned = learns and parts.aggregation.aligns_momentum
    names = ["online"] * learns + ["online_statistics"] + ["momentum", "momentum_statistics"] * aligned
    return [name for name in names if getattr(parts.state.cohort, name).shape[1]]


def _chosen_client(parts: Parts, progress: Progress, client: int | None) -> int:
    """Return the id of the client to record, or raise a ValueError; see `Recorder`."""
    config = parts.config
    check(config, RECORDING)
    if client is not None and not 0 <= client < config.clients:
        raise ValueError(f"trace_client: {client} is no client; allowed: 0 to {config.clients - 1}")
    first = progress.finished_rounds
    if first == config.rounds:
        raise ValueError("record_trace: the run is finished; allowed: a run with rounds left")
    cohorts = (parts.cohort(index) for index in range(first, config.rounds))
    others = sorted(next(cohorts).tolist())
    if client is None:
        return others[0]
    if client not in others and not any(client in cohort for cohort in cohorts):
        raise ValueError(
            f"trace_client: {client} takes part in none of the remaining rounds; allowed: "
            f"{', '.join(map(str, others[:5]))} and others, or leave it out"
        )
    return client


def array(tensor: Tensor) -> np.ndarray:
    """Return a copy of a tensor as an array; bfloat16, which NumPy lacks, becomes float32."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy().copy()
