"""Records of a run's results, and what is known of one that goes on.

Records hold only what the seed determines, so that a run that was interrupted and resumed has the same file, byte for
byte, as one that was not; if plugins have changed meanwhile, a record says so. Everything timed goes into ``live.json``
and ``summary.json`` instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args

from simsfl.algorithm.wire import DeviceStatus
from simsfl.config.plugins import Plugin
from simsfl.system.decoding import Amount, Count, Ordinal, Percent, Range, decode, read_json

__all__ = [
    "AbsenceCount",
    "AbsenceRecord",
    "ChangeRecord",
    "EvaluationRecord",
    "ProbeRecord",
    "Record",
    "RoundRecord",
    "StepRecord",
    "SyncRecord",
    "to_dict",
]

_Similarity = Annotated[float, Range(-1.001, 1.001)]
"""A structural similarity (SSIM), which may have been rounded."""


Added = bool | int | float | str | None
"""A figure that a callback adds to a record."""


@dataclass(frozen=True, kw_only=True)
class _Record:
    """What records of all kinds have."""

    added: dict[str, Added] = field(default_factory=dict)
    """Figures that callbacks (`simsfl.rounds.callback`) and plugins' defences have added, by name."""


@dataclass(frozen=True)
class StepRecord(_Record):
    """One training step. In all records, rounds and steps are counted from 1."""

    event: ClassVar[str] = "step"
    round: Ordinal
    step: Ordinal
    loss: float
    contrast_top1: Percent
    """Contrastive accuracy: percentage of queries whose own key scores higher than all others; a tie is no hit."""


@dataclass(frozen=True)
class RoundRecord(_Record):
    """One finished round; the record comes after that of the round's evaluation, if there is one."""

    event: ClassVar[str] = "round"
    round: Ordinal
    loss: float
    """Mean loss over the round's steps."""
    contrast_top1: Percent
    """Mean contrastive accuracy over the round's steps, in percent."""
    server_lr: Amount
    """Learning rate of the server in the round."""
    bytes_up_per_client: Count
    """Bytes that a client has sent so far, averaged over all clients of the run."""
    bytes_down_per_client: Count
    """Bytes that a client has received so far, averaged over all clients of the run."""
    communication: Literal["A", "B", "C"]
    """What the round exchanged, a value of `simsfl.algorithm.communication.Exchange`: "A" if nothing was saved."""
    bytes_saved_per_client: int
    """Bytes, up and down together, that a client has sent and received less so far than if all rounds were "A", with
    the same clients absent; none counts as absent in silent rounds."""
    attackers_ssim_before: _Similarity | None = None
    """SSIM of the simulated attackers' reconstructions before they learn from a step, averaged over the round.

    None without simulated attackers, and in rounds in which clients get no gradients."""
    attackers_ssim: _Similarity | None = None
    """SSIM of the simulated attackers' reconstructions after they have learnt from a step, averaged over the round, or
    None like `attackers_ssim_before`."""

    @classmethod
    def with_figures(cls, figures: Mapping[str, float], *values: Any) -> RoundRecord:
        """Return the record with these values of its first fields, and figures of defences by name.

        Figures that have no field of their own are among the added ones.
        """
        own = {"attackers_ssim_before", "attackers_ssim"} & figures.keys()
        fields: dict[str, Any] = {name: figures[name] for name in own}
        return cls(*values, **fields, added={name: figure for name, figure in figures.items() if name not in own})


@dataclass(frozen=True)
class EvaluationRecord(_Record):
    """What the network is worth after a round; round 0 is the untrained network."""

    event: ClassVar[str] = "evaluation"
    round: Count
    knn_top1: Percent
    """kNN accuracy in percent of the test images."""
    pixel_knn_top1: Percent | None = None
    """kNN accuracy on raw pixels in percent, for comparison; only in round 0, otherwise None."""
    output_std: Amount | None = None
    """Standard deviation of the normalised outputs over the test images, averaged over their D dimensions: 0 if the
    network has collapsed, at most ``1 / sqrt(D)``. None in runs of versions that did not record it."""
    class_top1: list[Percent | None] | None = None
    """kNN accuracy in percent of each class, None for one that is not tested; not in round 0."""
    clients_top1: list[Percent] | None = None
    """Mean, mean of the lowest tenth, and standard deviation of the clients' accuracies, each on the classes that it
    holds (`simsfl.evaluation.groups`); not in round 0, and not where clients hold images without labels."""


@dataclass(frozen=True)
class ProbeRecord(_Record):
    """Accuracy of a probe that is trained on frozen features after the last round."""

    event: ClassVar[str] = "probe"
    round: Count
    kind: str
    """"linear", or "semi-10%" and "semi-1%" for probes with a hidden layer on that share of the labels."""
    top1: Percent
    """Accuracy after the probe's last epoch, in percent of the test images."""
    best_top1: Percent
    """Highest accuracy over the probe's epochs, chosen on the test set, in percent of the test images."""
    features: str
    """Features that the probe is trained on, "backbone" or "projector"."""


@dataclass(frozen=True)
class SyncRecord(_Record):
    """How far the cohort's models were from their average, at the averaging after a step."""

    event: ClassVar[str] = "sync"
    round: Ordinal
    step: Ordinal
    divergence_mean: Amount
    """Mean of `divergence` over the cohort."""
    divergence_std: Amount
    """Standard deviation of `divergence` over the cohort, uncorrected."""
    clients: list[Count]
    """Ids of the clients in the cohort."""
    divergence: list[Amount]
    """Divergence of each of the `clients`, in that order (`simsfl.aggregations.around.divergence`)."""


@dataclass(frozen=True)
class AbsenceRecord(_Record):
    """Clients that are absent from this step of the round on: not available, slow, late, or a device that is gone."""

    event: ClassVar[str] = "absence"
    round: Ordinal
    step: Ordinal
    clients: list[Count]
    """Ids of all clients of the cohort that are absent; empty once everyone is back."""


@dataclass(frozen=True)
class ChangeRecord(_Record):
    """What a run goes on with where plugins, or files that options name, are not as they were so far."""

    event: ClassVar[str] = "change"
    round: Count
    """Number of rounds that were finished."""
    step: Count
    """Number of finished steps of the round after these."""
    plugins: list[Plugin]
    """All plugins that the run uses from here on."""
    files: dict[str, str]
    """Checksums of all files that options name, by the names of these options."""


@dataclass(frozen=True)
class GroupStanding:
    """How a group of a fleet fared in a round."""

    drawn: Count
    """Clients of the group in the cohort."""
    late: Count
    """Clients of the group in the cohort that did not come because they would have missed the deadline."""
    away: Count
    """Clients of the group in the cohort that did not come for another reason, such as a battery that was low."""
    battery: Annotated[float, Range(0, 1)] | None
    """Charge of the batteries of all clients of the group after the round, 1 if they are full; None without batteries.
    """
    times: Literal["measured", "scaled", "published"]
    """How the times of its devices are known: from measurements of the very work, or of other work, or from a speed."""


@dataclass(frozen=True)
class FleetRecord(_Record):
    """What a round took a fleet of devices (`simsfl.fleet`), on the virtual clock; it precedes the round's record."""

    event: ClassVar[str] = "fleet"
    round: Ordinal
    seconds: Amount
    """Seconds that the round took."""
    clock: Amount
    """Seconds from the beginning of the run to the end of the round."""
    phases: dict[str, Amount]
    """Seconds of the round in which everyone waited for each of `simsfl.fleet.clock.PHASES`."""
    wh: Amount | None
    """Energy that all clients of the cohort took together, in Wh; None where the power of one is not known."""
    server_wh: Amount | None
    """Energy that the server took, in Wh; None where its power is not known."""
    bytes_up: Count
    """Bytes that all clients sent."""
    bytes_down: Count
    """Bytes that they received."""
    groups: dict[str, GroupStanding]
    """How each group of the fleet fared, by its name."""


@dataclass(frozen=True)
class AbsenceCount:
    """How often clients of a cohort were absent, over all rounds of a run."""

    rounds_missed: Count = 0
    """Rounds that a client of the cohort did not come to, summed over clients."""
    rounds_slow: Count = 0
    """Rounds in which a client of the cohort was slow, summed over clients."""
    steps_missed: Count = 0
    """Steps in which nothing arrived from a client of the cohort, summed over clients: it did not come, was slow, or
    is a real device (hw_profile/) that was away."""
    images_missed: Count = 0
    """Images of these steps."""

    def __add__(self, other: AbsenceCount) -> AbsenceCount:
        mine, theirs = vars(self), vars(other)
        return AbsenceCount(**{name: mine[name] + theirs[name] for name in mine})


Record = (
    StepRecord | RoundRecord | EvaluationRecord | ProbeRecord | SyncRecord | AbsenceRecord | ChangeRecord | FleetRecord
)
OneRecord = TypeVar("OneRecord", bound=Record)
"""A kind of record, for functions that return the kind that they get."""
_KINDS = {kind.event: kind for kind in get_args(Record)}
"""Kinds of records by their `event`."""
ENDINGS = ("finished", "stopped", "failed")
"""Activities of a run that is over; see `Status`."""


@dataclass(frozen=True)
class RankStatus:
    """How a rank has spent the latest round (`simsfl.system.world`)."""

    step_seconds: Amount
    """Seconds per step."""
    waiting: Annotated[float, Range(0, 1)]
    """Share of these that it has spent on what ranks tell each other, waiting for others included."""


@dataclass(frozen=True)
class Status:
    """The content of ``live.json``: how far a run has come, and everything timed, which the records leave out."""

    activity: str
    """What the run is doing, for people: such as "training", the current evaluation, or one of `ENDINGS`."""
    updated: Amount
    """Time of this status, in seconds since 1970."""
    round: Count
    """Number of finished rounds."""
    step: Count
    """Number of finished steps of the current round."""
    rounds: Ordinal
    """Number of rounds of the whole run."""
    steps: Ordinal
    """Number of steps in a round."""
    seconds: Amount
    """Seconds spent training, over all sessions of the run."""
    step_seconds: Amount | None
    """Seconds per step, averaged over the latest steps; None before the first step of the session."""
    client_steps_per_second: Amount | None
    """Steps of single clients per second, over all sessions of the run; None before any time is spent."""
    images_per_second: Amount | None
    """Training images per second, over all sessions of the run; None before any time is spent."""
    phase_seconds: dict[str, Amount]
    """Seconds of training and evaluation by phase (`simsfl.system.clock.PHASES`), over all sessions of the run."""
    peak_memory_bytes: Count
    """The most memory held so far, over all sessions of the run."""
    participation: list[Count]
    """Number of clients that have completed 0, 1, 2, ... rounds."""
    queue_filled: Annotated[float, Range(0, 1)] | None = None
    """Share of the key queue that holds keys of images; with queues of clients, its mean over all clients. None where
    the objective has no queue, and in files of versions that did not measure it."""
    devices: list[DeviceStatus] = field(default_factory=list)
    """Status of each real device that takes part (hw_profile/)."""
    ranks: list[RankStatus] = field(default_factory=list)
    """Status of each rank in the latest round, where there are several; empty before the first round is over."""

    @classmethod
    def load(cls, path: Path) -> Status | None:
        """Read a status from ``live.json``; return None if there is no such file yet.

        Raises:
            ValueError: the file is damaged.
        """
        try:
            return decode(cls, read_json(path)) if path.exists() else None
        except ValueError as error:
            raise ValueError(f"live: {path} is damaged ({error}); allowed: what a run writes") from error


def to_dict(record: Record) -> dict[str, Any]:
    """Return a record as a dict of its fields, with its kind under "event", and without `added` if that is empty."""
    fields = {name: value for name, value in asdict(record).items() if name != "added" or value}
    return {"event": record.event, **fields}


def from_dict(content: Any) -> Record:
    """Return the record that `to_dict` turned into `content`; raise a ValueError if there is no such record."""
    event = content.get("event") if isinstance(content, dict) else None
    if not isinstance(event, str) or event not in _KINDS:
        raise ValueError("it has no event that is known")
    return decode(_KINDS[event], {name: value for name, value in content.items() if name != "event"})
