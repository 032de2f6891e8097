"""The doors for other people's code: register a class or function here, and choose it by its name in a config.

A module that registers something has to be imported before a `simsfl.RunConfig` names it, also before such a run is
loaded. The command line knows nothing of it yet. Options are the fields of a class that is a frozen dataclass; see
`option`. A config has their values in its field `options`, by names such as "objective.temperature".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from simsfl.aggregations import Aggregation
from simsfl.config.catalogue import AGGREGATIONS, OBJECTIVES, OPTIMIZERS, SAMPLERS, ObjectiveKind, Targets
from simsfl.config.registry import Code, registered
from simsfl.config.values import option
from simsfl.objectives import Memory, Objective, nearest
from simsfl.optimisers import Optimiser
from simsfl.samplers import Drawn, Sampler

__all__ = [
    "Aggregation",
    "Drawn",
    "Memory",
    "Objective",
    "Optimiser",
    "Sampler",
    "Targets",
    "aggregation",
    "nearest",
    "objective",
    "optimizer",
    "option",
    "sampler",
]

_Thing = TypeVar("_Thing")


def objective(
    name: str, *, targets: Targets = Targets.MOMENTUM, whole_batch: bool = False, predictor: bool = False
) -> Callable[[type[Objective]], type[Objective]]:
    """Return a decorator that registers a subclass of `Objective` by a name for `RunConfig.objective`.

    Args:
        name: its name.
        targets: what the outputs of the online network are compared with.
        whole_batch: whether the figures of a row depend on other rows of the step. This need not be said where targets
            are outputs of the online network: all rows are then always handled together.
        predictor: whether a predictor follows the projection head; see `simsfl.models.Projection`.
    """
    return _registering(
        "objective",
        OBJECTIVES,
        name,
        lambda code: ObjectiveKind(code, targets, whole_batch=whole_batch, predictor=predictor),
    )


def aggregation(name: str) -> Callable[[type[Aggregation]], type[Aggregation]]:
    """Return a decorator that registers a subclass of `Aggregation` by a name for `RunConfig.aggregation`."""
    return _registering("aggregation", AGGREGATIONS, name, lambda code: code)


def optimizer(name: str) -> Callable[[type[Optimiser]], type[Optimiser]]:
    """Return a decorator that registers a subclass of `Optimiser` by a name for `RunConfig.optimizer`."""
    return _registering("optimizer", OPTIMIZERS, name, lambda code: code)


def sampler(name: str) -> Callable[[type[Sampler]], type[Sampler]]:
    """Return a decorator that registers a subclass of `Sampler` by a name for `RunConfig.sampler`."""
    return _registering("sampler", SAMPLERS, name, lambda code: code)


def _registering(
    door: str, names: dict[str, Any], name: str, kind: Callable[[Code], Any]
) -> Callable[[_Thing], _Thing]:
    """Return a decorator that puts a thing among the `names` of a door.

    Raises:
        ValueError: by the decorator, if the name belongs to something from another file.
    """

    def decorate(thing: _Thing) -> _Thing:
        code = registered(thing)
        held = names.get(name)
        before = getattr(held, "code", held)
        if before is not None and before.file != code.file:
            raise ValueError(f"{door}: {name!r} is registered twice, by {before.file or 'simsfl'} and by {code.file}")
        names[name] = kind(code)
        return thing

    return decorate
