"""The progress of a run: finished rounds and steps, and the figures of the current round."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from simsfl.algorithm.communication import Communication, Exchange
from simsfl.config import RunConfig
from simsfl.cost.model import Missed, Traffic
from simsfl.runs.checkpoint import Standing, Timed
from simsfl.runs.metrics import AbsenceCount, AbsenceRecord, RoundRecord, StepRecord, SyncRecord
from simsfl.runs.metrics_log import NOTHING, Extent
from simsfl.setup.parts import Parts


class NonFiniteLossError(FloatingPointError):
    """The error that training has diverged; the message names the round, the step and the learning rates."""

    @classmethod
    def of(cls, what: str, round_index: int, step: int, config: RunConfig) -> NonFiniteLossError:
        """Return the error, with the rates that the run was asked for and lower ones to try.

        Args:
            what: what is not finite, such as "loss is nan".
            round_index: the round, counted from 0.
            step: the step, counted from 1.
            config: config of the run, with every rule applied.
        """
        rates = {"--lr": config.lr, "--client-lr": config.client_lr}
        if rates["--client-lr"] in (0, rates["--lr"]):  # frozen, or by rule the server's
            del rates["--client-lr"]
        with_, try_ = (" ".join(f"{flag} {f * rate:g}" for flag, rate in rates.items()) for f in (1, 0.1))
        advice = f"training diverged with {with_}; begin a new run with a lower rate, such as {try_}"
        return cls(f"{what} in round {round_index + 1}, step {step}: {advice}")


@dataclass
class Progress:
    """How many rounds and steps of a run are finished, and the figures of its current round."""

    figures: Tensor
    """Loss, contrastive accuracy in percent, and F figures of the defences of each step of the round, ``[S, 2 + F]``,
    on the device."""
    round_index: int = 0
    """Number of rounds that are finished, including their evaluation."""
    step_index: int = 0
    """Number of finished steps of the current round."""
    seconds: float = 0.0
    """Seconds spent training, over all sessions of the run."""
    metrics: Extent = NOTHING
    """The part of ``metrics.jsonl`` that belongs to the checkpoint that the run was loaded from."""
    peak_memory_bytes: int = 0
    """The most memory held in earlier sessions of the run, in bytes."""
    communication: Communication = field(default_factory=Communication)
    """What clients and server exchange in the current round: less than usual if communication is saved."""
    traffic: Traffic = field(default_factory=Traffic)
    """Bytes sent in finished rounds, by all clients together."""
    usual: Traffic = field(default_factory=Traffic)
    """Bytes that they would have sent if no communication had been saved."""
    missed: Missed = field(default_factory=Missed)
    """What absent clients have missed in the current round."""
    absent: AbsenceCount | None = field(default_factory=AbsenceCount)
    """How often clients were absent so far; None where an earlier version of simsfl did not count it."""
    absences: dict[int, list[int]] = field(default_factory=dict)
    """Ids of the clients that are absent from a step on, by the step counted from 1; only those not yet recorded."""
    divergences: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Ids of the cohort and their divergences, both ``[C]``, at the averaging after a step, by the step counted from 1;
    only those not yet recorded."""

    @classmethod
    def of(cls, parts: Parts) -> Progress:
        """Return the progress of a run that has not begun."""
        columns = 2 + len(parts.hyper.defence.figures)
        return cls(torch.zeros(parts.steps, columns, device=parts.device, dtype=parts.dtype))

    @property
    def steps(self) -> int:
        """Return the number of steps in a round."""
        return len(self.figures)

    @property
    def round_is_over(self) -> bool:
        """Return whether all steps of the round under way are finished."""
        return self.step_index == self.steps

    @property
    def finished_rounds(self) -> int:
        """Return the number of rounds all of whose steps are finished."""
        return self.round_index + self.round_is_over

    def finish_step(self, *figures: Tensor) -> None:
        """Finish a step: keep its figures, scalars in the order of the columns of `figures`."""
        for column, figure in enumerate(figures):
            self.figures[self.step_index, column] = figure
        self.step_index += 1

    def records(self, first: int, config: RunConfig) -> Iterator[StepRecord | SyncRecord | AbsenceRecord]:
        """Yield the records of the finished steps of the round, which makes the host wait for the device.

        Args:
            first: step, counted from 0, to begin with.
            config: config of the run, with every rule applied.

        Raises:
            NonFiniteLossError: the loss of a step is not finite.
            ValueError: only its accuracy is not, so that the objective computes it wrongly.
        """
        now = self.round_index + 1
        for s, (loss, top1, *_) in enumerate(self.figures[first : self.step_index].tolist(), start=first + 1):
            if not math.isfinite(loss):
                raise NonFiniteLossError.of(f"loss is {loss}", self.round_index, s, config)
            if not math.isfinite(top1):
                raise ValueError(
                    f"objective: {config.objective} has an accuracy of {top1} beside a finite loss, in round {now}, "
                    f"step {s}; allowed: a finite number, such as 0 where there is none"
                )
            # absences and divergences come first, so that a run that stops after a step's record has them all
            if s in self.absences:
                yield AbsenceRecord(now, s, self.absences.pop(s))
            if s in self.divergences:
                ids, own = self.divergences.pop(s)
                own = own.double().cpu()
                mean, std = own.mean().item(), own.std(correction=0).item()
                yield SyncRecord(now, s, mean, std, ids.tolist(), own.tolist())
            yield StepRecord(now, s, loss, top1)

    def count_absent(self, more: AbsenceCount) -> None:
        """Add to how often clients were absent, unless what came before is not known."""
        if self.absent is not None:
            self.absent += more

    def note_absent(self, clients: Iterable[int], known: list[int]) -> list[int]:
        """Note which clients are absent after the latest step, unless they are the `known`; return their sorted ids."""
        absent = sorted(clients)
        if absent != known:
            self.absences[self.step_index] = absent
        return absent

    def finish_round(self, parts: Parts) -> RoundRecord:
        """Go on to the next round; return the record of the current one, whose steps are all finished."""
        config, exchange = parts.config, self.communication.state
        loss, top1, *figures = self.figures.mean(dim=0).tolist()
        lr = parts.server_lr(self.round_index)
        usual, spent = (_traffic(parts, one, self.missed) for one in (Exchange.BOTH_WAYS, exchange))
        self.traffic, self.usual, self.missed = self.traffic + spent, self.usual + usual, Missed()
        self.round_index, self.step_index = self.round_index + 1, 0
        if config.loss_threshold:
            self.communication = self.communication.after(self.round_index, loss, config.loss_threshold)
        up, down, kept_up, kept_down = (
            round(total / config.clients)
            for total in (
                self.traffic.up,
                self.traffic.down,
                self.usual.up - self.traffic.up,
                self.usual.down - self.traffic.down,
            )
        )
        learnt = exchange is Exchange.BOTH_WAYS and parts.hyper.clients_learn  # otherwise there was no gradient
        reported = dict(zip(parts.hyper.defence.figures, figures, strict=True)) if learnt else {}
        bytes_sent = up, down, exchange.value, kept_up + kept_down
        return RoundRecord.with_figures(reported, self.round_index, loss, top1, lr, *bytes_sent)

    def standing(self, metrics: Extent, run: str) -> Standing:
        """Return what a checkpoint keeps of the progress beside the tensors.

        Args:
            metrics: the part of ``metrics.jsonl`` that belongs to it.
            run: the run (`simsfl.runs.records.RunRecord.identity`).
        """
        own = self.communication, self.traffic, metrics, run, self.usual, self.missed, self.absent
        return Standing(self.round_index, self.step_index, *own)

    def restore(self, parts: Parts, standing: Standing, timed: Timed) -> None:
        """Take over what a checkpoint of a run with these parts has kept beside the tensors.

        Raises:
            ValueError: that is beyond the end of the run.
        """
        if standing.step > self.steps:
            raise ValueError(f"step {standing.step} is beyond the end of a round")
        self.round_index, self.step_index = standing.round, standing.step
        self.communication, self.traffic, self.metrics = standing.communication, standing.traffic, standing.metrics
        rounds_before = (_traffic(parts, Exchange.BOTH_WAYS, Missed()) for _ in range(self.round_index))
        self.usual, self.missed = standing.usual or sum(rounds_before, Traffic()), standing.missed
        begins = standing.round == standing.step == 0
        self.absent = AbsenceCount() if begins else standing.absences
        self.seconds, self.peak_memory_bytes = timed.seconds, timed.peak_memory_bytes


def _traffic(parts: Parts, exchange: Exchange, missed: Missed) -> Traffic:
    """Return the bytes that travel in a round with this exchange, in which clients miss something."""
    config = parts.config
    return parts.cost.round_traffic(
        parts.groups,
        parts.steps,
        config.syncs_per_round,
        exchange=exchange,
        frozen=not parts.hyper.clients_learn,
        views=config.views_sent,
        graded=config.views_graded,
        missed=missed,
    )
