"""Which clients are drawn, and which of them do not come."""

import json

import numpy as np
import pytest

from simsfl.algorithm.absence import Absences, Reliability
from simsfl.samplers import Sampler
from simsfl.samplers.availability import Availability
from simsfl.samplers.orders import ByImages, RoundRobin

ROUNDS = 400


def drawn(sampler, images, count=3):
    """Return the clients that a sampler draws in each of some rounds, ``[ROUNDS, count]``."""
    rounds = [
        sampler.draw(range(10, 10 + len(images)), count, r, images, np.random.default_rng(r)).clients
        for r in range(ROUNDS)
    ]
    for one in rounds:
        assert len(set(one.tolist())) == count
        assert set(one.tolist()) <= set(range(10, 10 + len(images)))
    return np.stack(rounds)


def test_uniform_draws_each_client_equally_often():
    counts = np.bincount(drawn(Sampler(), np.array([1, 5, 2, 9, 3, 4])).ravel() - 10)
    assert np.abs(counts - ROUNDS / 2).max() < 5 * (ROUNDS * 0.25) ** 0.5


def test_in_proportion_to_images_the_first_drawn_follows_their_number():
    images = np.array([10, 20, 30, 40])
    counts = np.bincount(drawn(ByImages(), images, count=1).ravel() - 10)
    assert np.abs(counts - ROUNDS * images / 100).max() < 5 * (ROUNDS * 0.25) ** 0.5


def test_round_robin_gives_each_its_turn():
    order = drawn(RoundRobin(), np.ones(7)).ravel() - 10
    assert order[:14].tolist() == [0, 1, 2, 3, 4, 5, 6] * 2


def test_availability_draws_those_who_are_there(tmp_path):
    file = tmp_path / "times.txt"
    fedscale = json.dumps({"active": [50], "inactive": [200], "duration": 400})
    file.write_text(f"0-100,300-400\n{fedscale}\n\n0-400\n")
    sampler = Availability(file=str(file), round_seconds=100.0)
    there = {0: {0, 3}, 1: {1, 3}, 2: {3}, 3: {0, 3}}  # at 0, 100, 200 and 300 seconds
    for round_index in range(12):
        found = sampler.draw(range(4), 3, round_index, np.ones(4), np.random.default_rng(round_index))
        present = set(found.clients.tolist()) - set(found.missing)
        assert present == there[round_index % 4]
        assert len(found.clients) == 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("5-1", "line 1 .* allowed: such as"),
        ("0-10\nabc", "line 2"),
        ('{"active": [1]}', "line 1"),
        ("", "no client that is ever available"),
        ('{"active": [], "inactive": [], "duration": 9}', "no client that is ever available"),
        ("5-5", "no client that is ever available"),
        ('{"active": ' + 10_000 * "[", "line 1"),
        ("1-inf", "line 1"),
        ("nan-5", "line 1"),
    ],
)
def test_other_files_are_refused(text, words, tmp_path):
    file = tmp_path / "times.txt"
    file.write_text(text)
    with pytest.raises(ValueError, match=words):
        Availability(file=str(file))
    with pytest.raises(ValueError, match="cannot be read"):
        Availability(file=str(tmp_path / "none"))


def test_absences_have_their_probabilities_and_somebody_always_comes():
    reliability = Reliability(dropout=0.3, straggler=0.5, straggler_factor=3.0)
    rounds = [reliability.draw(range(20), (), 0, r) for r in range(ROUNDS)]
    missing = sum(len(one.missing) for one in rounds) / (20 * ROUNDS)
    slow = sum(len(one.slow) for one in rounds) / (20 * ROUNDS)
    assert missing == pytest.approx(0.3, abs=0.03)
    assert slow == pytest.approx(0.7 * 0.5, abs=0.03)
    for probability in ("dropout", "straggler"):
        for r in range(20):
            nobody = Reliability(**{probability: 1.0}).draw([4, 5, 6], [4], 0, r)
            assert 1 not in nobody.missing | nobody.slow
    assert Reliability().draw(range(5), (), 0, 0) == Absences()


def test_a_clients_absence_does_not_depend_on_the_others():
    reliability = Reliability(dropout=0.5)
    one, two = reliability.draw([3, 7, 8], (), 1, 5), reliability.draw([8, 2, 3, 9], (), 1, 5)
    assert (0 in one.missing) == (2 in two.missing)
    assert (2 in one.missing) == (0 in two.missing)


@pytest.mark.parametrize("factor", [1.0, 1.5, 2.0, 3.0, 7.0])
def test_a_slow_client_takes_part_in_its_share_of_steps(factor):
    absences = Absences(frozenset(), frozenset({1}), factor)
    assert sum(not absences.in_step(s) for s in range(84)) == int(84 / factor)
