"""Bytes that are recorded: clients that are absent send and receive nothing."""

import itertools

import pytest

from simsfl import RunConfig, Simulation
from simsfl.algorithm.absence import Absences
from simsfl.runs.metrics import AbsenceCount
from simsfl.runs.metrics_log import Extent
from tests.conftest import TINY

CASES = {
    "dropout": {"dropout": 0.4},
    "stragglers": {"straggler": 0.7, "straggler_factor": 2.5},
    "both views": {"dropout": 0.4, "objective": "simclr"},
    "frozen": {"dropout": 0.4, "client_lr": 0.0, "norm": "batch", "syncs_per_round": 2},
    "saving": {"dropout": 0.4, "loss_threshold": 1e6, "align_momentum": True, "rounds": 14},
}
"""Fields of a config that differ from those of `TINY`, with more clients in a cohort."""


def _counted(simulation, records):
    """Return the bytes up and down, and those that are saved, of all clients together, counted step by step.

    In silent rounds, nobody is known to be absent.
    """
    config, cost = simulation.config, simulation.parts.cost
    exchanges = {record.round: record.communication for record in records if record.event == "round"}
    steps = [record for record in records if record.event == "step"]
    up = down = saved = 0
    for number, own in itertools.groupby(steps, key=lambda record: record.round):
        count = len(list(own))
        absences = simulation.parts.plan(number - 1).absences if exchanges[number] != "C" else Absences()
        missing, slow = absences.missing, absences.slow
        averagings = min(config.syncs_per_round, count)
        present = config.cohort - len(missing)
        images = sum(
            config.batch_size * (config.cohort - len(missing) - (0 if _finishes(s, config) else len(slow)))
            for s in range(count)
        )
        smashed = images * config.views_sent * cost.image_bytes
        graded = images * config.views_graded * cost.gradient_bytes
        models = present * averagings * cost.sync_bytes
        statistics = present * averagings * cost.statistics_bytes
        full = (smashed + statistics, statistics) if config.client_lr == 0 else (smashed + models, graded + models)
        if exchanges[number] == "A":
            spent = full
        elif exchanges[number] == "B":
            spent = smashed + present * cost.momentum_bytes, present * cost.sync_bytes
        else:
            spent = 0, 0
        up, down, saved = up + spent[0], down + spent[1], saved + sum(full) - sum(spent)
    return up, down, saved


def _absences(simulation, records):
    """Return how often clients were absent, counted by the draws of each round that is not silent."""
    config, steps = simulation.config, simulation.parts.steps
    loud = [record.round for record in records if record.event == "round" and record.communication != "C"]
    drawn = [simulation.parts.plan(number - 1).absences for number in loud]
    missed, slow = (sum(len(getattr(one, kind)) for one in drawn) for kind in ("missing", "slow"))
    lost = steps * missed + sum(len(one.slow) for one in drawn for s in range(steps) if not _finishes(s, config))
    return AbsenceCount(missed, slow, lost, config.batch_size * lost)


def _finishes(step, config):
    """Return whether a slow client finishes a step of its own in a step, counted from 0."""
    return int((step + 1) / config.straggler_factor) > int(step / config.straggler_factor)


@pytest.mark.parametrize("fields", CASES.values(), ids=CASES)
def test_absent_clients_send_and_receive_nothing(fields, dataset, tmp_path):
    config = RunConfig(**{**TINY, "cohort": 5, "eval_every": 0, **fields})
    simulation, records = Simulation(config, dataset), []
    for record in simulation.train():
        records.append(record)
        if record.event == "step" and (record.round, record.step) == (2, 2):  # resumed in the middle of a round
            simulation.save(tmp_path, Extent(0, None))
            simulation = Simulation.load(tmp_path, dataset)
            break
    records += simulation.train()
    (last,) = [r for r in records if r.event == "round" and r.round == config.rounds]
    up, down, saved = (round(total / config.clients) for total in _counted(simulation, records))
    assert (last.bytes_up_per_client, last.bytes_down_per_client) == (up, down)
    assert last.bytes_saved_per_client == pytest.approx(saved, abs=2)
    assert any(record.event == "absence" for record in records)
    assert simulation.progress.absent == _absences(simulation, records)
