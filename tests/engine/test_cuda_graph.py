"""Replayed steps: they take in each tensor of a batch, freeze nothing that may change, and equal those run eagerly.

A tape of the operations stands in for the CUDA graph, so that all but the graph itself is tested without CUDA.
"""

import logging
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from simsfl import Simulation
from simsfl.algorithm import step
from simsfl.algorithm.batch import Batch, Outcome, untimed
from simsfl.algorithm.observer import Observer
from simsfl.algorithm.wire import Wire
from simsfl.defences import Chain
from simsfl.engine.cuda_graph import WARM_UP, CapturedStep
from simsfl.kernels import ViewParameters
from simsfl.rounds.steps import client_steps
from simsfl.setup.parts import _train_step
from tests.engine.tape import Tape
from tests.simulations import assert_moved_alike, assert_same_state, trained


@dataclass(frozen=True)
class Deeper:
    """Something nested, such as may be added to a batch one day."""

    pair: tuple[Tensor, Tensor]
    name: str


@dataclass(frozen=True)
class LargerBatch(Batch):
    """A batch with more fields than the library's."""

    added: Tensor | None = None
    deeper: list[Deeper] | None = None


def tensors_in(value, path=()):
    """Return every tensor in an object by its path; mappings, lists, tuples and attributes are searched."""
    if isinstance(value, Tensor):
        return {path: value}
    if isinstance(value, (list, tuple)):
        value = dict(enumerate(value))
    elif hasattr(value, "__dict__"):
        value = vars(value)
    found = {}
    for name, part in value.items() if isinstance(value, Mapping) else ():
        found |= tensors_in(part, (*path, name))
    return found


def changing(batch):
    """Return the tensors of a batch, by path, that differ from batch to batch: all but those of the data set."""
    return {path: tensor for path, tensor in tensors_in(batch).items() if path[0] != "images"}


def full_batch(images):
    """Return a random batch of two groups of clients, with something in each of its fields."""
    views = [
        ViewParameters(**{one.name: torch.rand(2, 3, rows, 4) for one in fields(ViewParameters)}) for rows in (2, 1)
    ]
    return LargerBatch(
        images=images,
        pixels=[torch.randint(0, 256, (3, rows, 3, 8, 8), dtype=torch.uint8) for rows in (2, 1)],
        views=views,
        server_lr=torch.rand(()),
        client_lr=torch.rand(3, 1),
        labels=[torch.randint(0, 9, (3, rows)) for rows in (2, 1)],
        noise=[torch.randint(0, 9, (2, 3, rows, 2), dtype=torch.int32) for rows in (2, 1)],
        round_index=torch.tensor(3),
        added=torch.rand(5),
        deeper=[Deeper((torch.rand(2), torch.rand(3)), "one"), Deeper((torch.rand(1), torch.rand(2)), "two")],
    )


class WeighedMeans:
    """A training step whose loss depends on every tensor of a batch: the sum of their means, with different weights."""

    def __init__(self):
        self.calls = 0

    def __call__(self, model, state, batch, hyper, clock=untimed):
        self.calls += 1
        loss = sum((i + 1) * tensor.double().mean() for i, tensor in enumerate(changing(batch).values()))
        return Outcome(loss, loss, loss, loss)


class EmptyState:
    """A state without tensors."""

    memory = memories = None

    def tensors(self):
        return {}


def replay(train_step, *batches):
    """Capture a step with the first batch and replay it with the others; return the losses and the `CapturedStep`."""
    captured, model, state = CapturedStep(train_step, Tape), object(), EmptyState()
    losses = [captured(model, state, batch, "hyper", untimed).loss.item() for batch in batches]
    return losses, captured


def test_every_tensor_of_a_batch_reaches_the_recorded_step(dataset):
    first, second = full_batch(dataset.train), full_batch(dataset.train)
    found = changing(first)
    assert {path[0] for path in found} == {one.name for one in fields(LargerBatch)} - {
        "images",
        "wire",
        "absent",
        "everyone",
    }
    weighed, plain = WeighedMeans(), WeighedMeans()
    batches = [first, second]
    for one in found.values():  # only this tensor differs
        batches.append(first.map(lambda tensor, one=one: tensor + 1 if tensor is one else tensor))
    losses, _ = replay(weighed, *batches)
    assert weighed.calls == WARM_UP + 1
    assert losses == [plain(None, None, batch, "hyper").loss.item() for batch in batches]
    assert len(set(losses)) == len(batches)


@pytest.mark.parametrize(
    "change",
    [
        {"images": None},
        {"server_lr": torch.rand(1)},
        {"server_lr": torch.rand((), dtype=torch.float64)},
        {"labels": None},
        {"added": 0.5},
        {"deeper": [Deeper((torch.rand(2), torch.rand(3)), "one"), Deeper((torch.rand(1), torch.rand(2)), "three")]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_is_not_a_tensors_value_is_not_frozen(change, dataset, caplog):
    first, second = full_batch(dataset.train), full_batch(dataset.train)
    weighed, plain, other = WeighedMeans(), WeighedMeans(), replace(second, **change)
    if "images" in change:
        other = replace(second, images=replace(dataset.train, mean=dataset.train.mean + 1))
    losses, captured = replay(weighed, first, other, second, other)
    assert losses == [plain(None, None, batch, "hyper").loss.item() for batch in (first, other, second, other)]
    assert weighed.calls == WARM_UP + 1 + 2
    captured(object(), EmptyState(), first, "hyper", untimed)  # another model and another state
    assert weighed.calls == WARM_UP + 1 + 3
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        "steps are not replayed as a CUDA graph, and take longer: more than the values of tensors changes from one to "
        "the next"
    ]


def test_a_step_that_cannot_be_recorded_is_carried_out(dataset, caplog):
    batches = [full_batch(dataset.train) for _ in range(3)]

    def reads_a_value(model, state, batch, hyper, clock=untimed):
        outcome = WeighedMeans()(model, state, batch, hyper)
        return replace(outcome, loss=outcome.loss.new_tensor(outcome.loss.item()))

    losses, captured = replay(reads_a_value, *batches)
    assert losses == [WeighedMeans()(None, None, batch, "hyper").loss.item() for batch in batches]
    assert not captured.recordings
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        "steps are not replayed as a CUDA graph, and take longer: operation not permitted when stream is capturing"
    ]


class Counting:
    """The library's training step, which counts how often its Python is run."""

    def __init__(self):
        self.calls = 0

    def __call__(self, *arguments):
        self.calls += 1
        return step.train_step(*arguments)


def eager_and_captured(config, dataset):
    """Return two simulations, the second of which records and replays its steps, and what counts the calls of these."""
    eager, captured = Simulation(config, dataset), Simulation(config, dataset)
    counting = Counting()
    captured.parts = replace(captured.parts, train_step=CapturedStep(counting, Tape))
    return eager, captured, counting


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"feature_sharing": False, "engine": "vmap"},
        {"norm": "batch"},
        {"supervised": True, "symmetric": False},
        {"ressfl_lambda": 1.0, "ressfl_target_ssim": 0.1, "ressfl_decoder": "conv_normN2C4"},
        {"unequal": "0.5_0.5|2|0.8_0.2"},
        {"server_replicas": 3, "average_replicas": True},
    ],
    ids=lambda settings: "-".join(settings) or "usual",
)
def test_replayed_rounds_are_the_eager_ones(settings, config, dataset, caplog):
    caplog.set_level(logging.INFO)
    eager, captured, counting = eager_and_captured(replace(config, **settings), dataset)
    records = list(eager.rounds())
    assert list(captured.rounds()) == records
    assert_same_state(eager, captured)
    assert counting.calls == WARM_UP + 1
    assert [record.levelno for record in caplog.records if record.name == "simsfl.engine.cuda_graph"] == [logging.INFO]
    phases = captured.clock.seconds()
    assert phases["capture"] == pytest.approx(captured.parts.train_step.capture_seconds, rel=0.5)
    assert phases["step"] > 0
    assert "client forward" not in phases


class RisingWire(Wire):
    """A wire that multiplies what it carries by a number that rises from step to step, which only Python knows."""

    def __init__(self):
        self.factor = 1.0

    def up(self, smashed_2Nchw):
        self.factor += 0.25
        return smashed_2Nchw * self.factor, ()


class RisingObserver(Observer):
    """An observer that has the clients' network multiply its output by a number that rises from call to call."""

    needs_eager_steps = True

    def __init__(self, simulation):
        self.factor = 1.0
        simulation.model.client.template.register_forward_hook(self.hook)

    def hook(self, module, inputs, output):
        self.factor += 0.25
        return output * self.factor


def put_wire(simulation):
    """Give a simulation a wire that changes what it carries."""
    simulation.wire = RisingWire()


def put_observer(simulation):
    """Give a simulation an observer that changes what clients compute."""
    simulation.observers.append(RisingObserver(simulation))


@pytest.mark.parametrize("put", [put_wire, put_observer])
@pytest.mark.parametrize("before", [0, 1], ids=["from the start", "later"])
def test_python_between_the_tensors_makes_steps_eager(put, before, config, dataset, caplog):
    """Steps are eager whenever such Python is added, and one warning says so."""
    eager, captured, counting = eager_and_captured(config, dataset)
    for simulation in (eager, captured):
        rounds = simulation.rounds()
        for _ in range(before):
            next(rounds)
        put(simulation)
        list(rounds)
    assert_same_state(eager, captured)
    assert counting.calls == (3 - before) * eager.parts.steps + before * (WARM_UP + 1)
    warnings = [record.getMessage() for record in caplog.records if record.name == "simsfl.engine.cuda_graph"]
    assert len(warnings) == 1
    assert "takes part in them" in warnings[0]


def test_steps_are_replayed_again_when_they_can_be(config, dataset):
    """Observers that only look do not prevent it, nor does a wire that was removed."""
    eager, captured, counting = eager_and_captured(config, dataset)
    for simulation in (eager, captured):
        simulation.observers.append(Observer())
        rounds = simulation.rounds()
        next(rounds)
        put_wire(simulation)
        next(rounds)
        simulation.wire = Wire()
        next(rounds)
    assert_same_state(eager, captured)
    assert counting.calls == WARM_UP + 1 + eager.parts.steps


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("settings", [{}, {"feature_sharing": False}, {"server_replicas": 3}])
def test_a_replayed_step_is_the_eager_one_and_never_waits(config, dataset, settings):
    config = replace(config, device="cuda", precision="fp32", engine="fused", rounds=2, lr=0.005, **settings)
    eager, captured = Simulation(config, dataset), Simulation(config, dataset)
    eager.parts = replace(eager.parts, train_step=step.train_step)
    list(eager.rounds())
    next(captured.rounds())  # the step is recorded
    assert captured.parts.train_step.recordings
    torch.cuda.set_sync_debug_mode("error")
    try:
        one_round = client_steps(
            captured.parts, captured.progress, captured._plans, captured.wire, captured.observers, captured.clock
        )
        deque(one_round, maxlen=0)  # with its draws and averagings, but without reading its losses
    finally:
        torch.cuda.set_sync_debug_mode("default")
    replayed, _ = trained(config, dataset)
    assert_moved_alike(eager, replayed, Simulation(config, dataset), 0.05)


def test_steps_with_code_of_each_step_are_not_replayed(caplog):
    """Without a device: only the choice of the step is looked at."""
    config = SimpleNamespace(method="mocosfl", engine="fused", device="cuda")
    plain, counting = (type(name, (), {"replayable": name == "Plain"})() for name in ("Plain", "Counting"))
    for objective, optimiser, *defences in (
        [plain] * 4,
        [counting, plain],
        [plain, counting],
        [plain] * 3 + [counting],
    ):
        hyper = SimpleNamespace(objective=objective, optimiser=optimiser, defence=Chain(tuple(defences)))
        replayed = counting not in (objective, optimiser, *defences)
        assert isinstance(_train_step(config, hyper), CapturedStep) == replayed
    assert caplog.messages == ["steps are not replayed as a CUDA graph, because Counting runs Python in each"] * 3
