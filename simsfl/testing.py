"""Checks of what is registered (`simsfl.extend`): the stacked engines compute with it what the plain loop computes.

>>> from simsfl.aggregations.weighted import Median
>>> check(Median, rounds=1)[:2]
['the whole cohort', 'a sampled cohort']
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from simsfl.config import RunConfig
from simsfl.config.catalogue import DOORS, ObjectiveKind, Targets
from simsfl.config.registry import code_of
from simsfl.data import Arrays, Dataset, make_dataset
from simsfl.runs.metrics import Record, StepRecord
from simsfl.simulation import Simulation

__all__ = ["check"]

_BASE: dict[str, Any] = {
    "clients": 6,
    "cohort": 6,
    "batch_size": 4,
    "rounds": 2,
    "syncs_per_round": 2,
    "arch": "resnet8",
    "width": 4,
    "key_dim": 8,
    "queue_length": 96,
    "eval_every": 0,
    "partition": "iid",
    "lr": 0.01,
    "device": "cpu",
}
"""Config fields of a run of two rounds of two steps, each with an averaging."""
_SITUATIONS: dict[str, dict[str, Any]] = {
    "the whole cohort": {},
    "a sampled cohort": {"cohort": 3},
    "queues of the clients' own": {"feature_sharing": False},
    "momentum models that are averaged": {"align_momentum": True},
    "clients that are absent or slow": {"dropout": 0.3, "straggler": 0.4, "rounds": 3},
    "federated clients": {"method": "federated", "syncs_per_round": 1},
}
"""Config fields that change `_BASE`, by the situation that is tried."""
_LOSS_TOLERANCE, _STATE_TOLERANCE, _SMALLEST = 1e-7, 1e-5, 1e-7
"""Relative tolerance of losses, relative tolerance of weights, and absolute tolerance of weights: sums are taken in
another order than in the loop, and networks of small maps amplify that."""


def check(thing: Any, dataset: Dataset | None = None, **fields: Any) -> list[str]:
    """Train with something registered in each situation that it allows; compare stacked engines with the plain loop.

    Runs are computed in float64; their losses, all that they have learnt, and the figures that callbacks and defences
    add to records are compared. Then a run is saved in the middle of a round and resumed, which has to end like one
    that never was, to the bit.

    Args:
        thing: the class or function that is registered, or the class behind one of simsfl's own names.
        dataset: what to train on; None for 60 random images of 16x16.
        fields: further fields of the config, such as ``options={"objective.temperature": 0.2}``.

    Returns:
        The situations that have been tried; the others are refused.

    Raises:
        AssertionError: what differs, in words.
        ValueError: the thing is not registered, or none of the situations is allowed.
    """
    door, name = _door_of(thing)
    data = _images() if dataset is None and door != "dataset" else dataset
    own = fields | {door: name} | ({"width": None} if door == "arch" else {})
    tried: list[str] = []
    refused: list[ValueError] = []
    for situation, changes in _SITUATIONS.items():
        try:
            config = RunConfig(**_BASE | changes | own)
            config.check_effect(changes)
            Simulation(replace(config, engine="loop"), data)
        except ValueError as error:
            refused.append(error)
            continue
        _compare(f"{name}, {situation}", config, data, partial(_whole_batch, name, DOORS[door][name]))
        if not tried:
            _resume(name, replace(config, rounds=3), data)
        tried.append(situation)
    if not tried:
        raise refused[0]
    return tried


def _door_of(thing: Any) -> tuple[str, str]:
    """Return the door and the name of something that is registered; raise a ValueError if it is not."""
    for door, names in DOORS.items():
        for name, known in names.items():
            code = code_of(known)
            if code.registered is thing or code.path == f"{thing.__module__}:{thing.__qualname__}":
                return door, name
    raise ValueError(f"thing: {thing!r} is not registered; allowed: what a decorator of simsfl.extend has registered")


def _images() -> Dataset:
    """Return 60 training and 6 test images of noise, of 16x16 pixels in three classes."""
    rng = np.random.default_rng(0)

    def split(count: int) -> tuple[np.ndarray, np.ndarray]:
        return rng.integers(0, 256, (count, 16, 16, 3)).astype(np.uint8), np.arange(count) % 3

    return make_dataset("noise", "drawn for a check", Arrays(*split(60), *split(6), ("a", "b", "c")))


def _compare(title: str, config: RunConfig, dataset: Dataset | None, whole_batch: Callable[[], Any]) -> None:
    """Raise an AssertionError that begins with `title` if a stacked engine differs from the loop, or fails.

    Args:
        title: what is compared.
        config: what to run.
        dataset: the images.
        whole_batch: function that returns a context in which the thing gets whole batches, or None if it does anyway.
    """
    with _in_words(title):
        expected = _trained(config, "loop", dataset)
    for engine in ("vmap", "fused:unfold"):
        where = f"{title}, engine {engine}"
        with _in_words(where):
            found = _trained(config, engine, dataset)
        if not (wrong := _difference(found, expected)):
            continue
        together = whole_batch()
        if together is not None:
            with together:
                if not _difference(_trained(config, engine, dataset), _trained(config, "loop", dataset)):
                    raise AssertionError(f"{where}: {wrong}{_ROWS}")
        raise AssertionError(f"{where}: {wrong}{_HIDDEN}")


_ROWS = (
    "; rows go through the server in blocks: an objective for which a row depends on others has to be registered with "
    "whole_batch=True"
)
_HIDDEN = (
    "; look for state outside the `memory`, for random numbers that are not those given, and for what depends on the "
    "other clients that are stacked with one"
)
"""What may be the reason where a stacked engine differs, as the end of a sentence."""


@contextmanager
def _in_words(where: str) -> Iterator[None]:
    """Raise an AssertionError that begins with `where` if something in the block cannot be mapped over clients."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if "vmap" not in str(error):
            raise
        raise AssertionError(f"{where}: {error}") from error


def _whole_batch(name: str, kind: Any) -> Any:
    """Return a context in which an objective of this name gets whole batches; None if it does anyway, or is none.

    Args:
        name: its name.
        kind: what is known of the thing.
    """
    if not isinstance(kind, ObjectiveKind) or kind.whole_batch or kind.targets is Targets.ONLINE:
        return None
    return patch.dict(DOORS["objective"], {name: replace(kind, whole_batch=True)})


@dataclass(frozen=True)
class _Outcome:
    """What a run has come to."""

    records: list[Record]
    """Its records."""
    state: Mapping[str, Tensor]
    """The tensors of its final state by name."""


def _trained(config: RunConfig, engine: str, dataset: Dataset | None) -> _Outcome:
    """Train in float64."""
    simulation = Simulation(replace(config, engine=engine), dataset, dtype=torch.float64)
    return _Outcome(list(simulation.train()), simulation.state.tensors())


def _difference(found: _Outcome, expected: _Outcome) -> str | None:
    """Return in words what differs between a stacked engine's run and the loop's, None if nothing does."""
    for own, other in zip(found.records, expected.records, strict=True):
        if not (isinstance(own, StepRecord) and isinstance(other, StepRecord)):
            continue
        if abs(own.loss - other.loss) > _LOSS_TOLERANCE * abs(other.loss):
            return f"the loss of step {own.step} of round {own.round} is {own.loss:.9g}, the loop's {other.loss:.9g}"
    for name, tensor in expected.state.items():
        if not torch.allclose(found.state[name].double(), tensor.double(), rtol=_STATE_TOLERANCE, atol=_SMALLEST):
            apart = float((found.state[name].double() - tensor.double()).abs().max())
            return f"{name} is up to {apart:.2g} away from the loop's"
    return _added_apart(found.records, expected.records, "the loop's", _STATE_TOLERANCE)


def _added_apart(records: Sequence[Record], others: Sequence[Record], whose: str, tolerance: float) -> str | None:
    """Return in words which figures differ that defences and callbacks have added to records, None if none does.

    Args:
        records: records of a run.
        others: those that they have to be like.
        whose: what these are called in the result.
        tolerance: relative tolerance of figures.
    """
    for own, other in zip(records, others, strict=True):
        for name in own.added.keys() | other.added.keys():
            value, wanted = own.added.get(name), other.added.get(name)
            close = value == wanted
            if isinstance(value, float) and isinstance(wanted, float):
                close = math.isclose(value, wanted, rel_tol=tolerance, abs_tol=_SMALLEST * bool(tolerance))
            if not close:
                return f"{name}, which is added to a record of kind {own.event}, is {value!r}, {whose} {wanted!r}"
    return None


def _resume(name: str, config: RunConfig, dataset: Dataset | None) -> None:
    """Raise an AssertionError if a run that is saved in the middle of a round and loaded ends differently."""
    whole, stopped = (Simulation(replace(config, engine="vmap"), dataset) for _ in range(2))
    next(stopped.rounds())
    next(stopped.round())
    with tempfile.TemporaryDirectory() as scratch:
        stopped.save(Path(scratch) / "run")
        loaded = Simulation.load(Path(scratch) / "run", dataset)
    records, resumed = list(whole.train()), list(loaded.train())
    expected, state = whole.state.tensors(), loaded.state.tensors()
    wrong = next((f"another {part}" for part, own in state.items() if not torch.equal(own, expected[part])), None)
    if wrong is None and (added := _added_apart(resumed, records[-len(resumed) :], "without that", 0.0)):
        wrong = f"other figures: {added}"
    if wrong:
        raise AssertionError(
            f"{name}: a run that is saved in the middle of a round and resumed ends with {wrong}; draw from the "
            "generators that are given, and keep what is remembered in `memory`"
        )
