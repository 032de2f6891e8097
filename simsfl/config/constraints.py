"""The values that a config may have: ranges, combinations that cannot be run, and settings that need others."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from simsfl.config.catalogue import DATASETS

INFINITY = float("inf")
"""Highest value of numbers that may be as large as a float can be; infinity itself is not allowed."""
_LARGE = 10**9
"""Highest value of numbers that have no limit of their own."""
SMALLEST = 8
"""Smallest height and width of images that the networks accept, in pixels."""
RANGES: tuple[tuple[str, float, float], ...] = (
    ("clients", 1, _LARGE),
    ("cohort", 1, _LARGE),
    ("batch_size", 1, _LARGE),
    ("rounds", 1, _LARGE),
    ("epochs", 1, _LARGE),
    ("local_epochs", 1e-9, _LARGE),
    ("syncs_per_round", 1, _LARGE),
    ("image_size", SMALLEST, 1024),
    ("classes_per_client", 1, _LARGE),
    ("alpha", 1e-6, 1e6),
    ("data_proportion", 0, 1),
    ("ressfl_lambda", 0, INFINITY),
    ("ressfl_target_ssim", 0.001, 0.999),
    ("divergence_tau", 0, 1),
    ("loss_threshold", 0, INFINITY),
    ("crop_scale", 0.001, 1),
    ("width", 4, 4096),
    ("key_dim", 1, 65_536),
    ("queue_length", 1, 10_000_000),
    ("temperature", 1e-6, INFINITY),
    ("tau", 0, 1),
    ("lr", 0, INFINITY),
    ("client_lr", 0, INFINITY),
    ("momentum", 0, 1),
    ("weight_decay", 0, INFINITY),
    ("eval_every", 0, _LARGE),
    ("knn_bank", 1, _LARGE),
    ("knn_test", 1, _LARGE),
    ("probe_epochs", 1, _LARGE),
    ("seed", 0, 2**63 - 1),
    ("checkpoint_every", 1, _LARGE),
)
"""Name, lowest value and highest value of each number, both allowed."""

_Config = Any
"""A `RunConfig`, which cannot be imported here: its module imports this one."""


@dataclass(frozen=True)
class Constraint:
    """A combination of settings that cannot be run."""

    violated: Callable[[_Config], bool]
    """Function that returns whether a config has the combination."""
    message: str
    """Error message: field, value, reason, and what is allowed instead; names of fields in braces are filled in."""


def check(config: _Config, constraints: Iterable[Constraint]) -> None:
    """Raise a ValueError for the first of the constraints that a config violates."""
    for constraint in constraints:
        if constraint.violated(config):
            raise ValueError(constraint.message.format(**config.to_dict()))


def _for_split(field: str, usual: Any, shown: str = "") -> Constraint:
    """Return the constraint that a field has its usual value in federated learning.

    Args:
        field: name of the field.
        usual: the only value that is allowed in federated learning.
        shown: format of the value in the message, such as ":g".
    """
    return Constraint(
        lambda c: c.method != "mocosfl" and getattr(c, field) != usual,
        f"{field}: {{{field}{shown}}} is for mocosfl, not for {{method}}; allowed: {usual}",
    )


def _without(field: str, usual: Any) -> Constraint:
    """Return the constraint that a field has its usual value in runs with real devices."""
    return Constraint(
        lambda c: getattr(c, field) != usual, f"{field}: is not for runs with devices; allowed: without it"
    )


EVERY_RUN = (
    Constraint(
        lambda c: c.cohort is not None and c.cohort > c.clients,
        "cohort: {cohort} is more than the clients; allowed: 1 to {clients}",
    ),
    Constraint(
        lambda c: c.width is not None and c.width % 4 > 0,
        "width: {width} does not divide into GroupNorm's groups; allowed: multiples of 4",
    ),
    Constraint(
        lambda c: c.method == "mocosfl" and not (c.feature_sharing or c.supervised) and c.queue_length < c.clients,
        "queue_length: {queue_length} leaves no key for each of {clients} clients; "
        "allowed without feature sharing: {clients} or more",
    ),
    Constraint(
        lambda c: c.unequal is not None and min(c.clients, c.cohort or c.clients) < 2,
        "unequal: {unequal} needs rich and poor clients; allowed: with 2 clients or more in the cohort",
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
        lambda c: c.aux_dataset is not None and c.aux_dataset == c.dataset,
        "aux_dataset: {aux_dataset} is the data set itself; allowed: another",
    ),
    Constraint(
        lambda c: c.supervised and c.aux_dataset is not None,
        "aux_dataset: {aux_dataset} has other classes, and cannot be learnt supervised; allowed: None",
    ),
    Constraint(
        lambda c: c.ressfl_lambda > 0 and c.client_lr == 0,
        "ressfl_lambda: {ressfl_lambda:g} has no effect on frozen clients (client_lr 0); allowed: 0",
    ),
    _for_split("ressfl_lambda", 0, ":g"),
    _for_split("init_client", None),
    _for_split("unequal", None),
    _for_split("supervised", False),
    _for_split("loss_threshold", 0, ":g"),
)
"""Combinations that no run can have."""

RECORDING = (
    Constraint(
        lambda c: c.method != "mocosfl",
        "record_trace: clients of {method} send no smashed data; allowed: mocosfl",
    ),
    Constraint(
        lambda c: c.ressfl_lambda > 0,
        "record_trace: what simulated attackers do is not recorded; allowed: without --ressfl-lambda, such as frozen "
        "clients that start from an expert",
    ),
    Constraint(
        lambda c: c.precision == "tf32",
        "record_trace: devices that do it again have no TF32; allowed: --precision fp32 or bf16",
    ),
)
"""Further combinations that a run cannot have if a client trace is recorded (`simsfl.rounds.recorder`)."""

DEVICES = (
    Constraint(
        lambda c: c.method != "mocosfl" or c.supervised,
        "devices: take part in contrastive split learning alone; allowed: --method mocosfl",
    ),
    _without("unequal", None),
    _without("loss_threshold", 0),
    _without("ressfl_lambda", 0),
    _without("aux_dataset", None),
    _without("divergence_tau", 0),
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
    allowed: str
    """What the setting has an effect with, for errors."""


def when(field: str, *values: Any) -> Condition:
    """Return the condition that the field of this name has one of these values; None stands for "left to its rule"."""
    allowed = f"{field} left to its rule" if None in values else f"{field} {' or '.join(map(str, values))}"
    return Condition(lambda c: getattr(c, field) in values, f"{field} is {{{field}}}", allowed)


def unless(field: str, value: Any) -> Condition:
    """Return the condition that the field of this name does not have this value."""
    allowed = f"no {field}" if value is True else f"{field} other than {value}"
    return Condition(lambda c: getattr(c, field) != value, f"{field} is {{{field}}}", allowed)


SPLIT = when("method", "mocosfl")
"""Condition of settings that only split learning has."""
KEYS = (when("method", "mocosfl", "fl-moco"), unless("supervised", True))
"""Conditions of settings about keys and the key queue."""
LEARNING = Condition(
    lambda c: (c.lr if c.client_lr is None else c.client_lr) > 0, "clients do not learn", "client_lr other than 0.0"
)
"""Condition of settings about how clients learn."""
SERVED = Condition(
    lambda c: c.method == "mocosfl" or c.client_lr is None,
    "method is {method} and client_lr {client_lr}",
    "client_lr left to its rule",
)
"""Condition of the server's learning rate, which in federated learning only sets that of the clients."""
AVERAGED = Condition(
    lambda c: LEARNING.holds(c) or c.norm == "batch" or (c.method != "mocosfl" and c.head == "large-mlp"),
    "client_lr is {client_lr} and nothing else is averaged",
    "client_lr other than 0.0, or BatchNorm",
)
"""Condition of settings about averaging: clients learn, or have running statistics, which are averaged as well."""
PROBED = Condition(
    lambda c: c.linear_probe or c.semi_supervised, "no probe is trained", "linear_probe or semi_supervised"
)
"""Condition of settings about probes."""


def _in_files(dataset: str) -> bool:
    """Return whether each picture of a data set is a file: in directories, and in some data sets with a name."""
    return DATASETS[dataset].in_files if dataset in DATASETS else not dataset.endswith(".npz")


STREAMABLE = Condition(
    lambda c: any(map(_in_files, filter(None, (c.dataset, c.aux_dataset)))),
    "dataset is {dataset}, which is read whole",
    "a directory of pictures",
)
"""Condition of settings about decoding pictures when they are needed."""
TARESSFL = Condition(lambda c: c.ressfl_lambda > 0, "ressfl_lambda is {ressfl_lambda:g}", "more than 0")
"""Condition of settings about TAResSFL."""
EXPERT = Condition(lambda c: c.init_client is not None, "there is no init_client", "one")
"""Condition of settings about the expert that a run starts from."""
SHORTCUTS = (
    SPLIT,
    unless("cut_layer", 1),
    Condition(lambda c: not c.arch.startswith("vgg"), "arch is {arch}", "resnet or mobilenetv2"),
)
"""Conditions of settings about shortcuts on the client: its layers include residual blocks."""
