"""Whole rounds: engines agree, a seed fixes every bit, records come in order, and memory stays where it is."""

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from simsfl import Simulation
from simsfl.engine import tuning
from simsfl.rounds.progress import NonFiniteLossError
from simsfl.runs.metrics import EvaluationRecord, RoundRecord, StepRecord
from tests.simulations import assert_moved_alike, assert_same_state, trained


@pytest.mark.parametrize("feature_sharing", [True, False])
def test_engines_agree_over_whole_rounds(config, dataset, feature_sharing):
    config = replace(config, feature_sharing=feature_sharing, rounds=1, lr=0.005)
    start, stacked, loop = (
        Simulation(replace(config, engine=engine), dataset, dtype=torch.float64)
        for engine in (config.engine, config.engine, "loop")
    )
    for simulation in (stacked, loop):
        list(simulation.rounds())
    assert_moved_alike(stacked, loop, start, 1e-6)


def test_the_chunk_size_changes_no_more_than_rounding(config, dataset, monkeypatch):
    config = replace(config, rounds=1, lr=0.005)
    one, _ = trained(config, dataset)
    monkeypatch.setattr(tuning, "_CHUNKS", (2,))
    two, _ = trained(config, dataset)
    assert (one.parts.hyper.chunk, two.parts.hyper.chunk) == (3, 2)
    assert_moved_alike(one, two, Simulation(config, dataset), 0.05)


def test_the_same_seed_gives_the_same_bits_and_global_generators_do_not_matter(config, dataset):
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 - the global generator is what must not matter
    one, records = trained(config, dataset)
    torch.manual_seed(2)
    np.random.seed(2)  # noqa: NPY002
    two, again = trained(config, dataset)
    assert records == again
    assert_same_state(one, two)
    _, other = trained(replace(config, seed=1), dataset)
    assert other != records


def test_records_come_in_order(config, dataset):
    _, records = trained(replace(config, eval_every=2, linear_probe=True, probe_epochs=2), dataset)
    one_round = [
        *["step"] * 5,
        "evaluation",
        "round",
    ]  # evaluated: first the untrained network, then two and three rounds
    assert [r.event for r in records] == [*one_round * 3, "probe"]
    first, last = records[5], records[-1]
    assert isinstance(first, EvaluationRecord)
    assert first.round == 0
    assert first.pixel_knn_top1 == 100.0  # since the classes of `dataset` differ in colour
    assert last.round == 3
    for r in (1, 2, 3):
        losses = [s.loss for s in records if isinstance(s, StepRecord) and s.round == r]
        (done,) = [d for d in records if isinstance(d, RoundRecord) and d.round == r]
        assert done.loss == pytest.approx(np.mean(losses), rel=1e-6)


def test_memory_is_flat_nothing_is_rebound(config, dataset):
    simulation = Simulation(config, dataset)
    where = {name: tensor.data_ptr() for name, tensor in simulation.state.tensors().items()}
    list(simulation.rounds())
    assert {name: tensor.data_ptr() for name, tensor in simulation.state.tensors().items()} == where


@pytest.mark.parametrize("cohort", [1, 8])
def test_cohorts_of_one_and_of_all(cohort, config, dataset):
    _, records = trained(replace(config, cohort=cohort), dataset)
    assert all(np.isfinite(r.loss) for r in records if isinstance(r, StepRecord))


def test_library_raises_on_divergence(config, dataset):
    """The error names the rates that were used, and lower ones; frozen clients have none."""
    for rate, flags in ((None, "--lr 1e+30"), (0.5, "--lr 1e+30 --client-lr 0.5"), (0.0, "--lr 1e+30")):
        simulation = Simulation(replace(config, lr=1e30, client_lr=rate), dataset)
        lower = flags.replace("30", "29").replace("0.5", "0.05")
        said = rf"round \d, step \d: training diverged with {flags}; .*, such as {lower}$".replace("+", r"\+")
        with pytest.raises(NonFiniteLossError, match=said):
            list(simulation.rounds())


class Operations(TorchDispatchMode):
    """Counts the operations that PyTorch does inside."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_the_phases_explain_the_time(config, dataset, monkeypatch):
    """A clock that counts operations instead of seconds shows that few are done outside of any phase."""
    simulation = Simulation(config, dataset)
    with Operations() as operations:
        monkeypatch.setattr(time, "perf_counter", lambda: operations.count)
        list(simulation.rounds())
    assert 0.95 * operations.count < sum(simulation.clock.seconds().values()) <= operations.count
    assert simulation.progress.seconds <= operations.count


@pytest.mark.slow
def test_setting_up_does_not_import_the_compiler():
    """The compiler takes a second and 200 MB to import, which operators on the meta device would do."""
    code = """
import sys
import time
from tests import conftest
from simsfl import RunConfig, Simulation
Simulation(RunConfig(**conftest.TINY | {"dataset": "shapes"}))
sys.exit("torch._dynamo" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=False).returncode == 0
