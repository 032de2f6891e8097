"""The combinations of settings that cannot be run, and the settings that have an effect only with others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from simsfl.config.catalogue import (
    AGGREGATIONS,
    ARCHITECTURES,
    DATASETS,
    HUB,
    METHODS,
    OBJECTIVES,
    OPTIMIZERS,
    PARTITIONS,
    PRECISIONS,
    SAMPLERS,
    Targets,
)

SMALLEST = 8
"""Smallest height and width of images that the networks accept, in pixels."""
_Config = Any
"""A `RunConfig`, which cannot be imported here: its module imports this one."""
_SPLIT_METHODS = " or ".join(name for name, method in METHODS.items() if method.split)
"""Names of the methods in which clients send smashed data, for messages."""


@dataclass(frozen=True)
class Constraint:
    """A combination of settings that cannot be run."""

    violated: Callable[[_Config], bool]
    """Function that returns whether a config has the combination."""
    message: str
    """Error message: field, value, reason, and what is allowed instead; names of fields in braces are filled in, as are
    other attributes of the config, such as ``{config.is_split}``."""


def check(config: _Config, constraints: Iterable[Constraint]) -> None:
    """Raise a ValueError for the first of the constraints that a config violates."""
    for constraint in constraints:
        if constraint.violated(config):
            raise ValueError(constraint.message.format(config=config, **config.to_dict()))


def _for_split(field: str, usual: Any, shown: str = "") -> Constraint:
    """Return the constraint that a field has its usual value in federated learning.

    Args:
        field: name of the field.
        usual: the only value that is allowed in federated learning.
        shown: format of the value in the message, such as ":g".
    """
    return Constraint(
        lambda c: not c.is_split and getattr(c, field) != usual,
        f"{field}: {{{field}{shown}}} is for {_SPLIT_METHODS}, not for {{method}}; allowed: "
        + ("without it" if usual is None else str(usual)),
    )


def _without(field: str, usual: Any) -> Constraint:
    """Return the constraint that a field has its usual value in runs with real devices."""
    return Constraint(
        lambda c: getattr(c, field) != usual, f"{field}: is not for runs with devices; allowed: without it"
    )


def _has_labels(config: _Config) -> bool:
    """Return whether clients' images have labels, as far as that is known before they are loaded."""
    return config.dataset not in DATASETS or DATASETS[config.dataset].labelled


EVERY_RUN = (
    Constraint(
        lambda c: c.cohort is not None and c.cohort > c.clients,
        "cohort: {cohort} is more than the clients; allowed: 1 to {clients}",
    ),
    Constraint(
        lambda c: c.cohort_size % c.server_replicas > 0,
        "server_replicas: {server_replicas} cannot have equal parts of a cohort of {config.cohort_size}; allowed: "
        "1, or another divisor of it",
    ),
    Constraint(
        lambda c: SAMPLERS[c.sampler].fleet and c.fleet is None,
        "sampler: {sampler} knows devices, and there are none; allowed: with a fleet",
    ),
    Constraint(
        lambda c: c.fleet is not None and c.loss_threshold > 0,
        "fleet: rounds that save communication (loss_threshold {loss_threshold:g}) are not told; allowed: without it",
    ),
    Constraint(
        lambda c: c.width is not None and c.width % 4 > 0,
        "width: {width} is no multiple of 4; allowed: multiples of 4, so that it divides into groups and heads",
    ),
    Constraint(
        lambda c: c.is_split and c.goal.queue and not c.feature_sharing and c.queue_length < c.clients,
        "queue_length: {queue_length} leaves no key for each of {clients} clients; "
        "allowed without feature sharing: {clients} or more",
    ),
    Constraint(
        lambda c: c.unequal is not None and min(c.clients, c.cohort or c.clients) < 2,
        "unequal: {unequal} needs rich and poor clients; allowed: with 2 clients or more in the cohort",
    ),
    Constraint(
        lambda c: c.unequal is not None and PARTITIONS[c.partition].code.load().fixed,
        "unequal: {unequal} is not for partition {partition}, in which clients hold what is theirs; allowed: without "
        "it",
    ),
    Constraint(
        lambda c: c.loss_threshold > 0 and c.client_lr == 0,
        "loss_threshold: {loss_threshold:g} saves nothing with frozen clients (client_lr 0), who get no gradients; "
        "allowed: 0",
    ),
    Constraint(
        lambda c: c.divergence_tau > 0 and c.client_lr == 0,
        "divergence_tau: {divergence_tau:g} has no effect on frozen clients (client_lr 0); allowed: 0",
    ),
    Constraint(
        lambda c: c.data_proportion == 0 and c.aux_dataset is None,
        "data_proportion: {data_proportion:g} leaves clients no images; allowed: more than 0, or --aux-dataset",
    ),
    Constraint(
        lambda c: c.validation > 0 and c.partition == "given",
        "validation: {validation:g} is not for a partition that is given, which has rows of all images; allowed: 0",
    ),
    Constraint(
        lambda c: c.data_proportion < 1 and c.partition == "given",
        "data_proportion: {data_proportion:g} is not for a partition that is given; allowed: 1",
    ),
    Constraint(
        lambda c: c.goal.needs_labels and not _has_labels(c),
        "dataset: clients' images of {dataset} have no labels to learn from; allowed: an objective without labels",
    ),
    Constraint(
        lambda c: not _has_labels(c) and c.data_proportion > 0 and PARTITIONS[c.partition].code.load().needs_labels,
        "partition: {partition} needs labels, and clients' images of {dataset} have none; allowed: such as iid",
    ),
    Constraint(
        lambda c: c.aux_dataset is not None and c.aux_dataset == c.dataset,
        "aux_dataset: {aux_dataset} is the data set itself; allowed: another",
    ),
    Constraint(
        lambda c: c.goal.needs_labels and c.aux_dataset is not None,
        "aux_dataset: {aux_dataset} has other classes, and cannot be learnt from labels; allowed: None",
    ),
    Constraint(
        lambda c: c.ressfl_lambda > 0 and c.client_lr == 0,
        "ressfl_lambda: {ressfl_lambda:g} has no effect on frozen clients (client_lr 0); allowed: 0",
    ),
    Constraint(
        lambda c: c.init_backbone is not None and c.init_client is not None,
        "init_backbone: {init_backbone} and init_client are both where clients start from; allowed: one of them",
    ),
    Constraint(
        lambda c: c.client_state_dtype == "bf16" and OPTIMIZERS[c.optimizer].exact,
        "client_state_dtype: bf16 cannot count the steps of optimizer {optimizer}; allowed: fp32",
    ),
    Constraint(
        lambda c: c.batch_size is not None and c.batch_size < c.images_for_defences,
        "batch_size: {batch_size} is too few images for defence {defence}; allowed: {config.images_for_defences} or "
        "more",
    ),
    Constraint(
        lambda c: c.images_at_a_time is not None and c.images_at_a_time < c.goal.rows,
        "batch_size: {batch_size} is too few images for objective {objective}, which compares those of a step, or of a "
        "federated client; allowed: {config.goal.rows} or more",
    ),
    Constraint(
        lambda c: c.rounds is not None and c.warmup_rounds > c.rounds,
        "warmup_rounds: {warmup_rounds} is more than the rounds; allowed: 0 to {rounds}",
    ),
    Constraint(
        lambda c: "taressfl" in c.defences and c.ressfl_lambda == 0,
        "defence: {defence} has no weight for taressfl; allowed: with ressfl_lambda above 0",
    ),
    _for_split("defence", None),
    _for_split("ressfl_lambda", 0, ":g"),
    _for_split("init_client", None),
    _for_split("unequal", None),
    Constraint(
        lambda c: c.supervised and c.objective not in (None, "supervised"),
        "supervised: is not for objective {objective}; allowed: with objective supervised, or left to its rule",
    ),
    Constraint(
        lambda c: METHODS[c.method].fixed and (c.supervised or c.objective not in (None, METHODS[c.method].objective)),
        "method: {method} has an objective of its own; allowed: federated or mocosfl",
    ),
    _for_split("loss_threshold", 0, ":g"),
    _for_split("server_replicas", 1),
)
"""Combinations that no run can have."""

RECORDING = (
    Constraint(
        lambda c: not c.is_split,
        f"record_trace: clients of {{method}} send no smashed data; allowed: {_SPLIT_METHODS}",
    ),
    Constraint(
        lambda c: c.ressfl_lambda > 0,
        "record_trace: what simulated attackers do is not recorded; allowed: without --ressfl-lambda, such as frozen "
        "clients that start from an expert",
    ),
    Constraint(
        lambda c: c.goal.targets is Targets.ONLINE,
        "record_trace: clients that learn from both views are not recorded; allowed: another objective",
    ),
    Constraint(
        lambda c: c.goal.labels,
        "record_trace: labels beside both views are not recorded; allowed: another objective",
    ),
    Constraint(
        lambda c: c.optimizer != "sgd" or c.proximal > 0,
        "record_trace: devices that do it again have plain SGD alone; allowed: --optimizer sgd, without --proximal",
    ),
    Constraint(
        lambda c: c.defence is not None,
        "record_trace: what a defence does is not recorded; allowed: without --defence",
    ),
    Constraint(
        lambda c: c.server_replicas > 1,
        "record_trace: a client of one of several servers is not recorded; allowed: --server-replicas 1",
    ),
    Constraint(
        lambda c: not PRECISIONS[c.precision].anywhere,
        "record_trace: devices that do it again have no TF32; allowed: --precision fp32 or bf16",
    ),
)
"""Further combinations that a run cannot have if a client trace is recorded (`simsfl.rounds.recorder`)."""
ATTACK = (
    Constraint(
        lambda c: not c.is_split,
        f"run: clients of {{method}} send no smashed data; allowed: a run of {_SPLIT_METHODS}",
    ),
)
"""Combinations that a run cannot have if its smashed data are attacked (`simsfl.attacks`)."""

HIJACK = (
    Constraint(
        lambda c: c.client_lr == 0,
        "run: its clients do not learn, so that no server can lead them; allowed: another attack, or a run with "
        "--client-lr above 0",
    ),
)
"""Further combinations that it cannot have if the server is to train the clients for itself."""

DEVICES = (
    Constraint(
        lambda c: not c.is_split or c.goal.targets is not Targets.MOMENTUM,
        f"devices: take part only in split learning with momentum models; allowed: --method {_SPLIT_METHODS}, and an "
        "objective with them",
    ),
    Constraint(lambda c: c.goal.labels, "devices: send no labels; allowed: an objective without them"),
    _without("optimizer", "sgd"),
    _without("proximal", 0),
    _without("defence", None),
    _without("fleet", None),
    _without("dropout", 0),
    _without("straggler", 0),
    _without("unequal", None),
    _without("loss_threshold", 0),
    _without("server_replicas", 1),
    _without("ressfl_lambda", 0),
    _without("aux_dataset", None),
    _without("divergence_tau", 0),
    Constraint(
        lambda c: AGGREGATIONS[c.aggregation].load().mixes,
        "aggregation: {aggregation} is not for runs with devices, which take the average; allowed: one without mixing",
    ),
    Constraint(
        lambda c: c.partition == "given", "partition: given is not what devices know; allowed: one that has a name"
    ),
    Constraint(
        lambda c: c.client_state_dtype != "fp32",
        "client_state_dtype: {client_state_dtype} is not what devices keep; allowed: fp32 in such runs",
    ),
    Constraint(lambda c: c.precision != "fp32", "precision: {precision} is not for runs with devices; allowed: fp32"),
)
"""Further combinations that a run cannot have if real devices take part (hw_profile/)."""


@dataclass(frozen=True)
class Condition:
    """A condition on the other settings under which a setting has an effect."""

    holds: Callable[[_Config], bool]
    """Function that returns whether a config fulfils the condition."""
    reason: str
    """Description of a config that does not fulfil the condition, for errors; fields in braces are filled in."""
    allowed: str | Callable[[], str]
    """What the setting has an effect with, for errors; a function returns it where plugins may add to it."""

    @property
    def remedy(self) -> str:
        """Return `allowed` as it is now."""
        return self.allowed if isinstance(self.allowed, str) else self.allowed()


def _those(door: str, known: Mapping[str, Any], suit: Callable[[Any], bool]) -> Callable[[], str]:
    """Return the function that names what can be chosen at a door and suits, with what plugins have added by then."""
    return lambda: f"{door} " + " or ".join(name for name, kind in known.items() if suit(kind))


def when(field: str, *values: Any) -> Condition:
    """Return the condition that the field of this name has one of these values; None stands for "left to its rule"."""
    allowed = f"{field} left to its rule" if None in values else f"{field} {' or '.join(map(str, values))}"
    return Condition(lambda c: getattr(c, field) in values, f"{field} is {{{field}}}", allowed)


def unless(field: str, value: Any) -> Condition:
    """Return the condition that the field of this name does not have this value."""
    allowed = f"no {field}" if value is True else f"{field} other than {value}"
    return Condition(lambda c: getattr(c, field) != value, f"{field} is {{{field}}}", allowed)


def _built(trait: str) -> Condition:
    """Return the condition that the architecture has a trait, which is a field of `Architecture`."""
    suit = attrgetter(trait)
    return Condition(lambda c: suit(ARCHITECTURES[c.arch]), "arch is {arch}", _those("arch", ARCHITECTURES, suit))


def taken(field: str, door: str, known: Mapping[str, Any]) -> Condition:
    """Return the condition that what is chosen takes the field of this name.

    Args:
        field: the field.
        door: the field that chooses.
        known: what there is to choose from; each has the names of the fields that it takes in `settings`.
    """
    allowed = _those(door, known, lambda kind: field in kind.settings)
    return Condition(lambda c: field in known[getattr(c, door)].settings, f"{door} is {{{door}}}", allowed)


SPLIT = when("method", *(name for name, method in METHODS.items() if method.split))
"""Condition of settings that only split learning has."""
KEYS = Condition(
    lambda c: c.goal.queue,
    "the objective has no key queue",
    _those("objective", OBJECTIVES, lambda kind: kind.queue),
)
"""Condition of settings about keys and the key queue."""
MOMENTUM = Condition(
    lambda c: c.goal.targets is Targets.MOMENTUM,
    "the objective has no momentum models",
    _those("objective", OBJECTIVES, lambda kind: kind.targets is Targets.MOMENTUM),
)
"""Condition of settings about momentum models."""
UNLABELLED = Condition(lambda c: c.goal.targets is not Targets.LABELS, "targets are labels", "another objective")
"""Condition of settings that do not matter where networks learn from labels."""
LEARNING = Condition(
    lambda c: (c.lr if c.client_lr is None else c.client_lr) > 0, "clients do not learn", "lr or client_lr above 0"
)
"""Condition of settings about how clients learn."""
SAMPLED = Condition(
    lambda c: c.cohort_size < c.clients or SAMPLERS[c.sampler].absences,
    "all clients train in each round",
    "a cohort smaller than clients",
)
"""Condition of settings about how a cohort is drawn."""
IN_FLEET = Condition(lambda c: c.fleet is not None, "there is no fleet", "fleet, a file of devices")
"""Condition of settings about the devices of clients."""
STRAGGLING = Condition(lambda c: c.straggler > 0, "no client is slow", "straggler above 0")
"""Condition of settings about slow clients."""
SERVED = Condition(
    lambda c: c.is_split or c.client_lr is None,
    "method is {method} and client_lr {client_lr}",
    "client_lr left to its rule",
)
"""Condition of the server's learning rate, which in federated learning only sets that of the clients."""
AVERAGED = Condition(
    lambda c: LEARNING.holds(c) or c.norm == "batch" or (not c.is_split and c.head_name == "large-mlp"),
    "client_lr is {client_lr} and nothing else is averaged",
    "client_lr other than 0.0, or BatchNorm",
)
"""Condition of settings about averaging: clients learn, or have running statistics, which are averaged as well."""
SYNCED = Condition(
    lambda c: AVERAGED.holds(c) or c.average_replicas, AVERAGED.reason, f"{AVERAGED.remedy}, or average_replicas"
)
"""Condition of settings about when something is averaged: clients' models, or replicas of the server."""
REPLICATED = Condition(lambda c: c.server_replicas > 1, "there is one server", "server_replicas above 1")
"""Condition of settings about replicas of the server."""
PROBED = Condition(
    lambda c: c.linear_probe or c.semi_supervised, "no probe is trained", "linear_probe or semi_supervised"
)
"""Condition of settings about probes."""


def _in_files(dataset: str) -> bool:
    """Return whether each picture of a data set is a file: in directories, and in some data sets with a name."""
    return (
        DATASETS[dataset].in_files if dataset in DATASETS else not (dataset.endswith(".npz") or dataset.startswith(HUB))
    )


STREAMABLE = Condition(
    lambda c: any(map(_in_files, filter(None, (c.dataset, c.aux_dataset)))),
    "dataset is {dataset}, which is read whole",
    "a directory of pictures",
)
"""Condition of settings about decoding pictures when they are needed."""
TARESSFL = Condition(lambda c: c.ressfl_lambda > 0, "ressfl_lambda is {ressfl_lambda:g}", "ressfl_lambda above 0")
"""Condition of settings about TAResSFL."""
EXPERT = Condition(lambda c: c.init_client is not None, "there is no init_client", "an init_client")
"""Condition of settings about the expert that a run starts from."""
STYLED = _built("styled")
"""Condition of settings about how convolutions are normalised."""
SHORTCUTS = (
    SPLIT,
    unless("cut_layer", 1),
    _built("residual"),
)
"""Conditions of settings about shortcuts on the client: its layers include residual blocks."""
