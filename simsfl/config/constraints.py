"""What values a config may have: ranges, what excludes each other, and what has an effect beside what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

INFINITY = float("inf")
LARGE = 10**9
SMALLEST = 8
"""Least height and width of images that the networks take."""
RANGES: tuple[tuple[str, float, float], ...] = (
    ("clients", 1, LARGE),
    ("cohort", 1, LARGE),
    ("batch_size", 1, LARGE),
    ("rounds", 1, LARGE),
    ("epochs", 1, LARGE),
    ("local_epochs", 1e-9, LARGE),
    ("syncs_per_round", 1, LARGE),
    ("image_size", SMALLEST, 1024),
    ("classes_per_client", 1, LARGE),
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
    ("eval_every", 0, LARGE),
    ("knn_bank", 1, LARGE),
    ("knn_test", 1, LARGE),
    ("probe_epochs", 1, LARGE),
    ("seed", 0, 2**63 - 1),
    ("checkpoint_every", 1, LARGE),
)
"""Lowest and highest value of each number, both allowed."""

Config = Any
"""A `RunConfig`, which is made of what is here."""

EXCLUSIONS: tuple[tuple[Callable[[Config], bool], str], ...] = (
    (
        lambda c: c.cohort is not None and c.cohort > c.clients,
        "cohort: {cohort} is more than the clients; allowed: 1 to {clients}",
    ),
    (
        lambda c: c.width is not None and c.width % 4 > 0,
        "width: {width} does not divide into GroupNorm's groups; allowed: multiples of 4",
    ),
    (
        lambda c: c.method == "mocosfl" and not (c.feature_sharing or c.supervised) and c.queue_length < c.clients,
        "queue_length: {queue_length} leaves no key for each of {clients} clients; "
        "allowed without feature sharing: {clients} or more",
    ),
    (
        lambda c: c.unequal is not None and min(c.clients, c.cohort or c.clients) < 2,
        "unequal: {unequal} needs rich and poor clients; allowed: with 2 clients or more in the cohort",
    ),
    (
        lambda c: c.loss_threshold > 0 and c.client_lr == 0,
        "loss_threshold: {loss_threshold:g} saves nothing with frozen clients (client_lr 0), who get no gradients; "
        "allowed: 0",
    ),
    (
        lambda c: c.divergence_tau > 0 and c.client_lr == 0,
        "divergence_tau: {divergence_tau:g} has no effect on frozen clients (client_lr 0); allowed: 0",
    ),
    (
        lambda c: c.data_proportion == 0 and c.aux_dataset is None,
        "data_proportion: {data_proportion:g} leaves clients no images; allowed: more than 0, or --aux-dataset",
    ),
    (
        lambda c: c.aux_dataset is not None and c.aux_dataset == c.dataset,
        "aux_dataset: {aux_dataset} is the data set itself; allowed: another",
    ),
    (
        lambda c: c.supervised and c.aux_dataset is not None,
        "aux_dataset: {aux_dataset} has other classes, and cannot be learnt supervised; allowed: None",
    ),
    (
        lambda c: c.ressfl_lambda > 0 and c.client_lr == 0,
        "ressfl_lambda: {ressfl_lambda:g} has no effect on frozen clients (client_lr 0); allowed: 0",
    ),
    (
        lambda c: c.method != "mocosfl" and c.ressfl_lambda > 0,
        "ressfl_lambda: {ressfl_lambda:g} is for mocosfl, not for {method}; allowed: 0",
    ),
    (
        lambda c: c.method != "mocosfl" and c.init_client is not None,
        "init_client: {init_client} is for mocosfl, not for {method}; allowed: None",
    ),
    (
        lambda c: c.method != "mocosfl" and c.unequal is not None,
        "unequal: {unequal} is for mocosfl, not for {method}; allowed: None",
    ),
    (
        lambda c: c.method != "mocosfl" and c.supervised,
        "supervised: {supervised} is for mocosfl, not for {method}; allowed: False",
    ),
    (
        lambda c: c.method != "mocosfl" and c.loss_threshold > 0,
        "loss_threshold: {loss_threshold:g} is for mocosfl, not for {method}; allowed: 0",
    ),
)
"""Settings that exclude each other, with what is said of them."""


@dataclass(frozen=True)
class Condition:
    """Other settings without which one has no effect."""

    holds: Callable[[Config], bool]
    reason: str
    """What is said of a config where it does not hold; its fields in braces."""
    allowed: str
    """With what the setting does have one."""


def when(field: str, *values: Any) -> Condition:
    """Only with these values of a field."""
    allowed = f"{field} left to its rule" if None in values else f"{field} {' or '.join(map(str, values))}"
    return Condition(lambda c: getattr(c, field) in values, f"{field} is {{{field}}}", allowed)


def unless(field: str, value: Any) -> Condition:
    """Not with this value of a field."""
    allowed = f"no {field}" if value is True else f"{field} other than {value}"
    return Condition(lambda c: getattr(c, field) != value, f"{field} is {{{field}}}", allowed)


SPLIT = when("method", "mocosfl")
"""With what settings of the cut have an effect."""
KEYS = (when("method", "mocosfl", "fl-moco"), unless("supervised", True))
"""With what those of keys and queue do."""
LEARNING = Condition(
    lambda c: (c.lr if c.client_lr is None else c.client_lr) > 0, "clients do not learn", "client_lr other than 0.0"
)
"""With what those of clients' learning do."""
SERVED = Condition(
    lambda c: c.method == "mocosfl" or c.client_lr is None,
    "method is {method} and client_lr {client_lr}",
    "client_lr left to its rule",
)
AVERAGED = Condition(
    lambda c: LEARNING.holds(c) or c.norm == "batch" or (c.method != "mocosfl" and c.head == "large-mlp"),
    "client_lr is {client_lr} and nothing else is averaged",
    "client_lr other than 0.0, or BatchNorm",
)
WHOLE = ("auto", "cifar10", "cifar100", "svhn", "stl10", "shapes")
"""Data sets that are small enough for any machine."""
PROBED = Condition(
    lambda c: c.linear_probe or c.semi_supervised, "no probe is trained", "linear_probe or semi_supervised"
)
STREAMABLE = Condition(
    lambda c: any(name not in WHOLE and not name.endswith(".npz") for name in (c.dataset, c.aux_dataset) if name),
    "dataset is {dataset}, which is read whole",
    "a directory of pictures",
)
RESISTANCE = Condition(lambda c: c.ressfl_lambda > 0, "ressfl_lambda is {ressfl_lambda:g}", "more than 0")
EXPERT = Condition(lambda c: c.init_client is not None, "there is no init_client", "one")
SHORTCUTS = (
    SPLIT,
    unless("cut_layer", 1),
    Condition(lambda c: not c.arch.startswith("vgg"), "arch is {arch}", "resnet or mobilenetv2"),
)
