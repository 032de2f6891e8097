"""Checks of what is registered (`simsfl.extend`): the stacked engines compute with it what the plain loop computes.

>>> from simsfl.aggregations.weighted import Median
>>> check(Median, rounds=1)[:2]
['the whole cohort', 'a sampled cohort']
"""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simsfl.config import RunConfig
from simsfl.config.catalogue import DOORS, ObjectiveKind, Targets
from simsfl.config.registry import code_of
from simsfl.data import Arrays, Dataset, make_dataset
from simsfl.rounds.callback import Callback
from simsfl.runs.metrics import Record, StepRecord
from simsfl.simulation import Simulation

_BASE = {
    "clients": 6,
    "cohort": 6,
    "batch_size": 4,
    "rounds": 2,
    "syncs_per_round": 2,
    "arch": "resnet8",
    "width": 4,
    "key_dim": 8,
    "queue_length": 40,
    "partition": "iid",
    "lr": 0.01,
    "device": "cpu",
}
"""Config fields of a run of two rounds of two steps, each with an averaging."""
_SITUATIONS = {
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

    Runs are computed in float64, and their losses and all that they have learnt is compared. Then a run is saved in the
    middle of a round and resumed, which has to end like one that never was, to the bit.

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
    tried, refused = [], []
    for situation, changes in _SITUATIONS.items():
        try:
            config = RunConfig(**_BASE | changes | own)
            config.check_effect(changes)
            Simulation(replace(config, engine="loop"), data)
        except ValueError as error:
            refused.append(error)
            continue
        _compare(f"{name}, {situation}", config, data, _advice(DOORS[door][name]))
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


def _compare(title: str, config: RunConfig, dataset: Dataset | None, advice: str) -> None:
    """Raise an AssertionError that begins with `title` if a stacked engine differs from the loop.

    Args:
        title: what is compared.
        config: what to run.
        dataset: the images.
        advice: end of the message where losses differ.
    """
    losses, state = _trained(config, "loop", dataset)
    for engine in ("vmap", "fused:unfold"):
        found, tensors = _trained(config, engine, dataset)
        where = f"{title}, engine {engine}"
        for step, (own, expected) in enumerate(zip(found, losses, strict=True), start=1):
            if abs(own - expected) > _LOSS_TOLERANCE * abs(expected):
                raise AssertionError(
                    f"{where}: the loss of step {step} is {own:.9g}, the loop's {expected:.9g}{advice}"
                )
        for name, tensor in state.items():
            if not torch.allclose(tensors[name].double(), tensor.double(), rtol=_STATE_TOLERANCE, atol=_SMALLEST):
                apart = float((tensors[name].double() - tensor.double()).abs().max())
                raise AssertionError(f"{where}: {name} is up to {apart:.2g} away from the loop's")


def _advice(kind: Any) -> str:
    """Return what may be the reason where losses differ, as the end of a sentence; an empty text if nothing is known.

    Args:
        kind: what is known of the thing that is checked.
    """
    if not isinstance(kind, ObjectiveKind) or kind.whole_batch or kind.targets is Targets.ONLINE:
        return ""
    return (
        "; rows go through the server in blocks: an objective for which a row depends on others has to be registered "
        "with whole_batch=True"
    )


def _trained(config: RunConfig, engine: str, dataset: Dataset | None) -> tuple[list[float], Mapping[str, Tensor]]:
    """Return the losses of a run's steps in float64, and the tensors of its final state by name."""
    losses = _Losses()
    simulation = Simulation(replace(config, engine=engine), dataset, dtype=torch.float64, callbacks=[losses])
    deque(simulation.rounds(), maxlen=0)
    return losses.steps, simulation.state.tensors()


class _Losses(Callback):
    """Keeps the losses of steps."""

    def __init__(self) -> None:
        self.steps: list[float] = []

    def on_record(self, record: Record) -> None:
        """Keep the loss of a step."""
        if isinstance(record, StepRecord):
            self.steps.append(record.loss)


def _resume(name: str, config: RunConfig, dataset: Dataset | None) -> None:
    """Raise an AssertionError if a run that is saved in the middle of a round and loaded ends differently."""
    whole, stopped = (Simulation(replace(config, engine="vmap"), dataset) for _ in range(2))
    next(stopped.rounds())
    next(stopped.round())
    with tempfile.TemporaryDirectory() as scratch:
        stopped.save(Path(scratch) / "run")
        loaded = Simulation.load(Path(scratch) / "run", dataset)
    for simulation in (whole, loaded):
        list(simulation.rounds())
    expected = whole.state.tensors()
    for part, tensor in loaded.state.tensors().items():
        if not torch.equal(tensor, expected[part]):
            raise AssertionError(
                f"{name}: a run that is saved in the middle of a round and resumed ends with another {part}; draw from "
                "the generators that are given, and keep what is remembered in `memory`"
            )
