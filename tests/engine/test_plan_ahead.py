"""Rounds that a thread draws ahead: they are the same rounds, and errors are raised where they are used."""

import subprocess
import sys
import threading

import pytest
import torch

from simsfl import Simulation
from simsfl.engine.plan_ahead import PlanAhead
from simsfl.setup import parts
from tests.simulations import assert_same_state, trained


@pytest.fixture
def drawn(monkeypatch):
    """Return a list that gets each round that is drawn, and the name of its thread: "MainThread" or "plan_0"."""
    rounds, original = [], parts.plan_round

    def plan_round(sources, attendance, round_index, **how):
        rounds.append((round_index, threading.current_thread().name))
        return original(sources, attendance, round_index, **how)

    monkeypatch.setattr(parts, "plan_round", plan_round)
    return rounds


def ahead(rounds):
    """Return a `PlanAhead` for so many rounds that draws them in a thread, as on CUDA."""
    return PlanAhead(torch.device("cpu"), rounds, threaded=True)


def test_rounds_drawn_ahead_are_the_same(config, dataset, drawn, tmp_path):
    """A run draws its first round itself, also when it is resumed; all others are drawn by the thread."""
    expected, records = trained(config, dataset)
    assert drawn == [(r, "MainThread") for r in range(3)]
    del drawn[:]
    simulation = Simulation(config, dataset)
    simulation._plans = ahead(config.rounds)
    assert list(simulation.train()) == records
    assert_same_state(simulation, expected)
    assert drawn == [(0, "MainThread"), (1, "plan_0"), (2, "plan_0")]  # and nothing after the last round
    del drawn[:]
    simulation = Simulation(config, dataset)
    simulation._plans = ahead(config.rounds)
    steps = simulation.round()
    for _ in range(2):
        next(steps)
    simulation.save(tmp_path / "run")
    loaded = Simulation.load(tmp_path / "run", dataset)
    loaded._plans = ahead(config.rounds)
    list(loaded.rounds())
    assert_same_state(loaded, expected)
    assert [one for one in drawn if one[1] == "MainThread"] == [(0, "MainThread")] * 2
    assert [r for r, thread in drawn if thread == "plan_0"] == [1, 1, 2]


def test_another_round_than_the_one_begun_is_drawn_at_once():
    plans, calls = ahead(9), []

    def draw(index):
        calls.append((index, threading.current_thread().name))
        return f"round {index}"

    for begun, taken in ((4, 4), (5, 8), (6, 6), (9, 9)):
        plans.begin(draw, begun)
        plans.begin(draw, begun)
        assert plans.take(draw, taken) == f"round {taken}"
    assert plans.take(draw, 6) == "round 6"  # which is drawn again, as each is given once
    (by_thread, at_once) = ([r for r, name in calls if name == thread] for thread in ("plan_0", "MainThread"))
    assert [r for r in by_thread if r != 5] == [4, 6]  # whether the thread has begun with 5 is a matter of luck
    assert at_once == [8, 9, 6]  # round 9 does not exist, so it is not begun


def test_an_error_in_drawing_ahead_is_raised_where_the_plan_is_used():
    plans = ahead(9)
    plans.begin(lambda index: 1 / index, 0)
    with pytest.raises(ZeroDivisionError):
        plans.take(lambda index: 1 / index, 0)
    assert plans.take(lambda index: "drawn", 0) == "drawn"


@pytest.mark.parametrize(
    "seconds", [pytest.param(0.0, id="idle", marks=pytest.mark.slow), pytest.param(0.5, id="at work")]
)
def test_a_program_ends_though_a_round_has_been_drawn_ahead(seconds):
    code = f"""
import threading, time, torch
from simsfl.engine.plan_ahead import PlanAhead
begun = threading.Event()
PlanAhead(torch.device("cpu"), 9, threaded=True).begin(lambda index: (begun.set(), time.sleep({seconds})), 1)
assert begun.wait(60)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True, text=True)
    assert done.stderr == ""
