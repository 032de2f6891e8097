"""The doors for other people's code: register a class or function here, and choose it by its name in a config.

A module that registers something is a plugin, which has to be imported before a config names what it has, also before
such a run is loaded: by ``--plugin`` on the command line, by an ``import`` in Python (`simsfl.config.plugins`). Options
are the fields of a class that is a frozen dataclass; see `option`. They are set by flags such as
``--objective.temperature 0.2``, and in the field `options` of a config. A class that cannot do what a config asks for
raises a ValueError in its method ``of``, with one line: the field, what is wrong, and what is allowed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import MISSING, Field, fields, is_dataclass
from difflib import get_close_matches
from typing import Any, TypeVar

from simsfl.aggregations import Aggregation
from simsfl.config.catalogue import (
    DOORS,
    HEADS,
    Architecture,
    DataSet,
    DefenceKind,
    ObjectiveKind,
    OptimizerKind,
    PartitionKind,
    SamplerKind,
    Targets,
)
from simsfl.config.registry import Code, RegistrationError, code_of, registered
from simsfl.config.values import check_options, option
from simsfl.data import Arrays, Dataset, make_dataset
from simsfl.data.items import from_torchvision
from simsfl.data.load import Request
from simsfl.data.partition import Partition, Partitioner
from simsfl.defences import Added, Defence, Draws
from simsfl.models.layers import Backbone, Style
from simsfl.objectives import Memory, Objective, nearest
from simsfl.optimisers import Optimiser
from simsfl.rounds.callback import Callback
from simsfl.runs.metrics import (
    AbsenceRecord,
    EvaluationRecord,
    ProbeRecord,
    Record,
    RoundRecord,
    StepRecord,
    SyncRecord,
)
from simsfl.samplers import Drawn, Sampler
from simsfl.system.messages import unknown

__all__ = [
    "AbsenceRecord",
    "Added",
    "Aggregation",
    "Arrays",
    "Backbone",
    "Callback",
    "Dataset",
    "Defence",
    "Drawn",
    "Draws",
    "EvaluationRecord",
    "Memory",
    "Objective",
    "Optimiser",
    "Partition",
    "Partitioner",
    "ProbeRecord",
    "Record",
    "Request",
    "RoundRecord",
    "Sampler",
    "StepRecord",
    "Style",
    "SyncRecord",
    "Targets",
    "aggregation",
    "architecture",
    "callback",
    "dataset",
    "defence",
    "from_torchvision",
    "head",
    "make_dataset",
    "nearest",
    "objective",
    "optimizer",
    "option",
    "partition",
    "sampler",
]

_Function = TypeVar("_Function", bound=Callable[..., Any])


def objective(
    name: str,
    *,
    targets: Targets = Targets.MOMENTUM,
    whole_batch: bool = False,
    predictor: bool = False,
    labels: bool = False,
    queue: bool = False,
    head: str = "mlp",
    rows: int = 1,
) -> Callable[[type[Objective]], type[Objective]]:
    """Return a decorator that registers a subclass of `Objective` by a name for `RunConfig.objective`.

    Args:
        name: its name.
        targets: what the outputs of the online network are compared with.
        whole_batch: whether the figures of a row depend on other rows of the step. This need not be said where targets
            are outputs of the online network: all rows are then always handled together.
        predictor: whether a predictor follows the projection head; see `simsfl.models.Projection`.
        labels: whether its method ``loss`` is told the class of each row beside what it compares: int64 ``[n]``, by the
            name "labels" in the memory. With `Targets.LABELS` these are the targets anyway.
        queue: whether its method ``of`` takes the fields `queue_length`, `feature_sharing` and `temperature` from the
            config; those of others have no effect, and are refused.
        head: name of the projection head that it has unless a config sets another: "linear", "mlp", "large-mlp", which
            has BatchNorm, or one that is registered already.
        rows: fewest images that it needs at a time: of a step, or in federated learning of a client's batch.
    """
    if not isinstance(targets, Targets):
        allowed = ", ".join(f"Targets.{own.name}" for own in Targets)
        raise RegistrationError(f"objective: targets of {name!r} are {targets!r}; allowed: {allowed}")
    needs = {"whole_batch": whole_batch, "labels": labels, "predictor": predictor, "queue": queue}
    if head not in HEADS:
        raise RegistrationError(str(unknown(f"head of objective {name}", head, HEADS)))

    if isinstance(rows, bool) or not isinstance(rows, int) or rows < 1:
        raise RegistrationError(f"objective: rows of {name!r} are {rows!r}; allowed: a whole number from 1 on")

    def kind(code: Code) -> ObjectiveKind:
        return ObjectiveKind(code, targets, **needs, head=head, rows=rows)

    return _registering("objective", name, kind, base=Objective, either=(("loss", "losses"),))


def aggregation(name: str) -> Callable[[type[Aggregation]], type[Aggregation]]:
    """Return a decorator that registers a subclass of `Aggregation` by a name for `RunConfig.aggregation`."""
    return _registering("aggregation", name, base=Aggregation)


def optimizer(
    name: str, *, settings: tuple[str, ...] = (), exact: bool = False
) -> Callable[[type[Optimiser]], type[Optimiser]]:
    """Return a decorator that registers a subclass of `Optimiser` by a name for `RunConfig.optimizer`.

    Args:
        name: its name.
        settings: which of "momentum" and "weight_decay" its method ``of`` takes from the config; the flags of others
            are refused.
        exact: whether what it remembers has to be exact, such as a number of steps, so that it cannot be kept in bf16.
    """
    needed = ("size",), ("step_",)
    return _registering(
        "optimizer", name, lambda code: OptimizerKind(code, settings, exact), base=Optimiser, either=needed
    )


def sampler(name: str, *, absences: bool = False, fleet: bool = False) -> Callable[[type[Sampler]], type[Sampler]]:
    """Return a decorator that registers a subclass of `Sampler` by a name for `RunConfig.sampler`.

    Args:
        name: its name.
        absences: whether it says which clients do not come, and so has an effect where all clients are drawn, too.
        fleet: whether it needs to know the clients' devices, whose timeline `Sampler.in_fleet` gets.
    """
    return _registering("sampler", name, lambda code: SamplerKind(code, absences, fleet), base=Sampler)


def defence(name: str, *, images: int = 1) -> Callable[[type[Defence]], type[Defence]]:
    """Return a decorator that registers a subclass of `Defence` by a name for `RunConfig.defence`.

    Args:
        name: its name.
        images: fewest images of a client's batch that it works with.
    """
    return _registering("defence", name, lambda code: DefenceKind(code, images), base=Defence)


def callback(name: str) -> Callable[[type[Callback]], type[Callback]]:
    """Return a decorator that registers a subclass of `Callback` by a name for `RunConfig.callback`."""
    return _registering("callback", name, base=Callback)


def architecture(
    name: str, *, width: int, residual: bool = False, styled: bool = False, own_weights: bool = True
) -> Callable[[_Function], _Function]:
    """Return a decorator that registers a function, or a frozen dataclass, by a name for `RunConfig.arch`.

    The function takes width, image size and `Style`, and returns a `Backbone`: its layers, any modules of which each
    takes what the one before returns and returns maps ``[n, c, h, w]``, and the number of channels behind the last. The
    network can be cut behind each layer. Layers that work on tokens keep them as maps; see `Backbone`.
    Objects of a dataclass are called in the same way; its fields are options.

    Args:
        name: its name.
        width: channels of the first layer, where the config does not say.
        residual: whether the function heeds ``client_residual``, by blocks that have a switch for their shortcuts.
        styled: whether the function heeds the style, so that ``norm`` can be chosen.
        own_weights: whether layers keep the weights that they are made with, instead of getting Xavier's.
    """
    how = {"residual": residual, "styled": styled, "own_weights": own_weights}
    return _registering("arch", name, lambda code: Architecture(width, code, **how))


def head(name: str) -> Callable[[_Function], _Function]:
    """Return a decorator that registers a function by a name for `RunConfig.head`.

    The function takes the network's `Backbone` and the length D of keys, and returns a module that maps the backbone's
    pooled output ``[N, F]`` to ``[N, D]``. It has no options.
    """

    def kind(code: Code) -> Code:
        if isinstance(code.registered, type):
            raise RegistrationError(f"head: {name!r} is a class; allowed: a function of a backbone and a length")
        return code

    return _registering("head", name, kind)


def partition(name: str, *, settings: tuple[str, ...] = ()) -> Callable[[type[Partitioner]], type[Partitioner]]:
    """Return a decorator that registers a subclass of `Partitioner` by a name for `RunConfig.partition`.

    Args:
        name: its name.
        settings: which of the config's fields `classes_per_client` and `alpha` it takes.
    """
    return _registering(
        "partition", name, lambda code: PartitionKind(code, settings), base=Partitioner, either=(("deal",),)
    )


def dataset(
    name: str, about: str, *, images: int | None, test_images: int | None, image_size: int, classes: int
) -> Callable[[_Function], _Function]:
    """Return a decorator that registers a function, or a frozen dataclass, by a name for `RunConfig.dataset`.

    The function takes a `Request` and returns a `Dataset`, as `make_dataset` makes it. Objects of a dataclass are
    called in the same way; its fields are options.

    Args:
        name: its name.
        about: one line for ``--list``.
        images: number of training images; None if it is not known beforehand.
        test_images: number of test images; None if it is not known beforehand.
        image_size: height and width of its images, in pixels.
        classes: number of classes.
    """
    return _registering(
        "dataset",
        name,
        lambda code: DataSet(
            code, about, images=images, test_images=test_images, image_size=image_size, classes=classes
        ),
    )


def _registering(
    door: str,
    name: str,
    kind: Callable[[Code], Any] = lambda code: code,
    *,
    base: type[Any] | None = None,
    either: tuple[tuple[str, ...], ...] = (),
) -> Callable[[Any], Any]:
    """Return a decorator that puts a thing among what a door leads to.

    Args:
        door: one of `DOORS`.
        name: name of the thing.
        kind: function of its code that returns what is to be known of it.
        base: the class that it has to be a subclass of; None if it may be a function.
        either: methods that it has to define, or of several the first or another, each time.

    Raises:
        RegistrationError: by the decorator, if the thing or its name cannot be used, or if the name belongs to
            something else. A thing that is defined anew, as when its module is reloaded, replaces the one before.
    """
    names = DOORS[door]
    if not (isinstance(name, str) and re.fullmatch(r"\w[\w-]*", name)):
        raise RegistrationError(f"{door}: {name!r} is no name; allowed: letters, digits, hyphens and underscores")

    def decorate(thing: Any) -> Any:
        if base and not (isinstance(thing, type) and issubclass(thing, base)):
            raise RegistrationError(f"{door}: {name!r} is no subclass of {base.__name__}; allowed: one")
        if isinstance(thing, type) and any(isinstance(value, Field) for value in vars(thing).values()):
            raise RegistrationError(
                f"{door}: {name!r} has options, but is no dataclass; allowed: with @dataclass(frozen=True) below"
            )
        if base and thing.of.__func__ is base.of.__func__ and (missing := _without_default(thing)):
            raise RegistrationError(f"{door}: {name!r} has no default for {missing[0]}; allowed: option(default, help)")
        try:
            check_options(thing)
        except ValueError as error:
            raise RegistrationError(f"{door}: {name!r} has an option that cannot be one: {error}") from None
        code = registered(thing)
        if name in names and (other := _other_than(code, code_of(names[name]))):
            raise RegistrationError(f"{door}: {name!r} is there already, {other}; allowed: another name")
        known = kind(code)
        if base:
            _check_changes(door, name, thing, base, either)
        names[name] = known
        return thing

    return decorate


def _check_changes(door: str, name: str, kind: type, base: type, either: tuple[tuple[str, ...], ...]) -> None:
    """Raise a RegistrationError if a subclass lacks methods, adds none to its base class, or seems to misspell one."""
    for wanted in either:
        if all(getattr(kind, own) is getattr(base, own) for own in wanted):
            raise RegistrationError(f"{door}: {name!r} has no {wanted[0]}; allowed: with a method {wanted[0]}")
    public = [own for own in vars(base) if not own.startswith("_") and own != "of"]
    left = [own for own in public if getattr(kind, own) is getattr(base, own)]
    methods = [own for own in public if callable(getattr(base, own))]
    for own, value in vars(kind).items():
        if own in methods and not callable(value) and not isinstance(value, classmethod | staticmethod):
            raise RegistrationError(f"{door}: {name!r} has {own} as a value, which is a method; allowed: another name")
        if own.startswith("_"):
            continue
        near = get_close_matches(own, methods, n=1, cutoff=0.8)
        if callable(value) and own not in methods and near and near[0] in left:
            raise RegistrationError(
                f"{door}: {name!r} has a method {own}, which nobody calls (did you mean {near[0]}?); allowed: "
                f"{near[0]}, or a name that is less like it"
            )
    if left == public:
        raise RegistrationError(f"{door}: {name!r} defines nothing; allowed: at least one of {', '.join(methods)}")


def _other_than(code: Code, known: Code) -> str:
    """Return where the known code is from, for a message; empty where the other is the same thing, defined anew."""
    if known.place != code.place:
        return f"from {known.place}"
    names = [own.path.partition(":")[2] for own in (known, code)]
    return "" if names[0] == names[1] else f"as {names[0]} of the same file"


def _without_default(kind: type) -> list[str]:
    """Return the fields of a dataclass that objects cannot be made without."""
    known = fields(kind) if is_dataclass(kind) else ()
    return [own.name for own in known if own.init and own.default is MISSING and own.default_factory is MISSING]
