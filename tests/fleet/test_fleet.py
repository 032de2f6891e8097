"""A run told for a fleet: time follows from what was measured, bytes are the run's, and mistakes are one line."""

import io
import json
import os
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

import simsfl
from simsfl import Simulation
from simsfl.cli.fleet import program
from simsfl.cli.fleet.story import described
from simsfl.cli.fleet.table import fleet_table
from simsfl.config.fleet import read_fleet
from simsfl.fleet.costs import Costs
from simsfl.fleet.profiles import Profile, Times, Work
from simsfl.fleet.timeline import Timeline
from simsfl.setup import assembly
from tests.fleet.conftest import SECONDS, SERVER, group


def telling(config, tmp_path, text):
    """Return the timeline of a run in a fleet that it knows nothing of."""
    (tmp_path / "fleet.toml").write_text(text)
    parts = Simulation(config).parts
    fleet = read_fleet(tmp_path / "fleet.toml")
    costs = Costs(parts.config, parts.model, parts.cost, parts.batches, fleet)
    return Timeline(costs, parts.attendance, assembly.averaged(parts.config, parts.steps), decides=False)


def test_devices_that_are_alike_take_the_measured_time(config, result, tmp_path):
    told = telling(config, tmp_path, SERVER + group())
    own = told.told(0)
    parts = Simulation(config).parts
    step = sum(SECONDS.values()) - SECONDS["sync"]
    syncs = parts.config.syncs_per_round
    assert own.time.seconds == pytest.approx(parts.steps * (step + 0.5) + syncs * SECONDS["sync"], rel=1e-4)
    np.testing.assert_allclose(own.time.compute, parts.steps * step + syncs * SECONDS["sync"])
    np.testing.assert_allclose(own.joules, 5 * own.time.compute + 2 * (own.time.seconds - own.time.compute))
    assert told.costs.groups[0].times[parts.batches[0]].measured


@pytest.mark.parametrize("more", [{}, {"client_lr": 0.0}, {"align_momentum": True}, {"method": "fl-moco"}])
def test_bytes_are_those_of_the_run(more, config, result, tmp_path):
    config = replace(config, dropout=0.3, straggler=0.3, seed=3, **more)
    told = telling(config, tmp_path, SERVER + group())
    simulation = Simulation(config)
    up = down = 0
    for index, record in enumerate(simulation.rounds()):
        own = told.told(index)
        up, down = up + own.up.sum(), down + own.down.sum()
        assert record.bytes_up_per_client == pytest.approx(up / config.clients, abs=1)
        assert record.bytes_down_per_client == pytest.approx(down / config.clients, abs=1)
        assert own.came.sum() == config.cohort - len(simulation.parts.plan(index).absences.missing)


def test_slow_links_and_devices_add_their_time(config, result, tmp_path):
    plain = telling(config, tmp_path, SERVER + group()).told(0).time
    slower = telling(config, tmp_path, SERVER + group(slowdown=3.0)).told(0).time
    np.testing.assert_allclose(slower.compute, 3 * plain.compute)
    parts = Simulation(config).parts
    size = parts.batches[0] * 2 * parts.cost.image_bytes
    rate = size / 1e6 * 8  # a step's smashed data in a second
    thin = telling(config, tmp_path, SERVER + group(up_mbit_s=rate, latency_ms=250.0)).told(0).time
    models = parts.config.syncs_per_round * parts.cost.sync_bytes / size
    messages = 2 * (parts.steps + parts.config.syncs_per_round)
    expected = parts.steps + models + 0.25 * messages
    assert thin.seconds - plain.seconds == pytest.approx(expected, rel=1e-4)


def test_the_servers_link_is_shared(config, result, tmp_path):
    alone = telling(config, tmp_path, SERVER + group(up_mbit_s=1.0)).told(0).time
    cohort = Simulation(config).config.cohort
    shared = telling(config, tmp_path, f"{SERVER}up_mbit_s = {cohort:.1f}\n" + group()).told(0).time
    assert shared.seconds == pytest.approx(alone.seconds, rel=1e-6)


def test_groups_have_their_shares_at_random(config, result, tmp_path):
    text = SERVER + group(share=0.25) + group(name='"others"', share=0.75)
    found = telling(replace(config, clients=8), tmp_path, text).costs.member
    assert sorted(found.tolist()) == [0, 0, 1, 1, 1, 1, 1, 1]
    assert len({tuple(telling(replace(config, clients=8, seed=s), tmp_path, text).costs.member) for s in range(5)}) > 1


def test_groups_have_the_clients_that_they_name(config, result, tmp_path):
    named = SERVER + group(share=None, ids=[5, 2]) + group(name='"c"', share=None, ids=[0])
    both = named + group(name='"d"', share=0.4) + group(name='"e"', share=0.6)
    found = telling(replace(config, clients=8), tmp_path, both).costs.member
    assert found[[5, 2, 0]].tolist() == [0, 0, 1]
    assert sorted(found.tolist()) == [0, 0, 1, 2, 2, 3, 3, 3]
    alone = SERVER + group(share=None, ids=[0, 2]) + group(name='"f"', share=None, ids=[1, 3, 4, 5, 6, 7])
    assert telling(replace(config, clients=8), tmp_path, alone).costs.member.tolist() == [0, 1, 0, 1, 1, 1, 1, 1]


def test_work_that_was_not_measured_is_scaled_by_what_it_consists_of():
    work = Work(images=2, pixels=1024, forward=100, backward=200, weights=50, named={"cut_layer": 1})
    profile = Profile("a board", [(work, SECONDS)])
    assert profile.times(work) == Times(SECONDS, "measured")
    more = replace(work, images=6, forward=200, weights=100, named={"cut_layer": 2})
    scaled = profile.times(more)
    factors = {"views": 3, "query": 6, "momentum": 2, "key": 6, "backward": 3, "sgd": 2, "sync": 2}
    assert scaled.seconds == pytest.approx({phase: SECONDS[phase] * factor for phase, factor in factors.items()})
    assert scaled.source == "scaled"
    frozen = profile.times(replace(work, graded=0))
    assert frozen.after == 0
    assert frozen.before == pytest.approx(Times(SECONDS, "measured").before)
    assert profile.error() is None
    half = {phase: 6 * seconds for phase, seconds in SECONDS.items()}
    two = Profile("a board", [(work, SECONDS), (replace(work, images=4, weights=100), half)])
    assert two.error() == pytest.approx(2.0)  # twice the work took six times as long: scaled back, three times


WRONG = {
    "no group": (SERVER, "it has no [[group]]; allowed: one or more"),
    "shares": (SERVER + group(share=0.5), "the groups' shares add up to 0.5; allowed: 1"),
    "neither": (SERVER + group(share=None), "group 1: it has to have one of share and ids, and not both"),
    "both": (SERVER + group(ids=[0]), "group 1: it has to have one of share and ids, and not both"),
    "twice": (
        SERVER + group(share=None, ids=[0, 1]) + group(name='"b"', share=None, ids=[2, 1]),
        "ids: 1 is there twice; allowed: each client once",
    ),
    "no client": (
        SERVER + group(share=None, ids=[0, 99]),
        "group all: ids: 99 is not among the run's clients; allowed: 0 to 7",
    ),
    "outside": (SERVER + group(share=None, ids=[0, 2]), "ids: client 1 is in no group; allowed: all, or a group with"),
    "id": (SERVER + group(share=None, ids=[-1]), "group 1: ids.0: -1 is out of range"),
    "no server": (group(), "server: it has to have one of step_ms and gflop_s, and not both"),
    "unit": (SERVER + group(up_mbits=3.0), "group 1: field: 'up_mbits' is not known (did you mean up_mbit_s?)"),
    "number": (SERVER + group(latency_ms='"fast"'), "group 1: latency_ms: 'fast' is not a number"),
    "table": (SERVER + group() + "[sever]\n", "table: 'sever' is not known (did you mean server?)"),
    "no TOML": ("= 3", "cannot be read as TOML"),
    "hours": (SERVER + group(available="{ hours = [0.5, 0.5] }"), "group 1: available: hours: 2 of them; allowed: 24"),
    "begins_at": (
        SERVER + group(battery="{ wh = 5.0, begins_at = [0.1, 0.2, 0.3] }"),
        "group 1: battery: begins_at: [0.1, 0.2, 0.3]; allowed: two numbers",
    ),
    "battery": (SERVER + group(battery="{ hw = 5.0 }"), "group 1: battery.wh: is missing"),
    "battery's field": (
        SERVER + group(battery="{ wh = 5.0, stops_belw = 0.3 }"),
        "group 1: battery.stops_belw: is not known (did you mean stops_below?)",
    ),
    "trace's field": (
        SERVER + group(up_mbit_s='{ trce = "rates.txt" }'),
        "group 1: up_mbit_s.trce: is not known (did you mean trace?)",
    ),
    "names": (
        SERVER + group(share=0.5) + group(share=0.5),
        "group 2: name: 'all' is that of another group, too; allowed: one of its own",
    ),
    "slowdown": (SERVER + group(slowdown='{ trace = "rates.txt" }'), "group 1: slowdown"),
    "nested": ("a = " + 10_000 * "[", "cannot be read as TOML"),
    "trace": (SERVER + group(up_mbit_s='{ trace = "none.txt" }'), "group all: trace: "),
    "rate": (SERVER + group(up_mbit_s="{ median = 3.0 }"), "group 1: up_mbit_s.sigma: is missing"),
    "times": (SERVER + group(available='{ file = "none.txt" }'), "group all: available: file: "),
    "no result": (SERVER + group(device='"none.json"'), "group all: device: "),
}


@pytest.mark.parametrize("name", ["fleet.toml", "rates.txt", "times.txt"])
def test_a_fifo_is_no_file_to_wait_for(name, config, result, tmp_path, capsys):
    Simulation(config).save(tmp_path / "run")
    own = group(up_mbit_s='{ trace = "rates.txt" }', available='{ file = "times.txt" }')
    for file, text in (("fleet.toml", SERVER + own), ("rates.txt", "0 1\n1 2\n"), ("times.txt", "0-3600\n")):
        if file == name:
            os.mkfifo(tmp_path / file)
        else:
            (tmp_path / file).write_text(text)
    assert program.main([str(tmp_path / "run"), "--fleet", str(tmp_path / "fleet.toml")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert name in line
    assert "not a regular file" in line


@pytest.mark.parametrize(("text", "message"), WRONG.values(), ids=WRONG)
def test_mistakes_are_one_line(text, message, config, result, tmp_path, capsys):
    Simulation(config).save(tmp_path / "run")
    (tmp_path / "fleet.toml").write_text(text)
    assert program.main([str(tmp_path / "run"), "--fleet", str(tmp_path / "fleet.toml")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: fleet: ")
    assert message in line
    assert not (tmp_path / "run" / "fleet").exists()


def test_the_program_writes_tables_figure_and_json(config, result, tmp_path, capsys):
    simsfl.run(replace(config, rounds=2, eval_every=1), tmp_path / "run")
    (tmp_path / "fleet.toml").write_text(SERVER + group(share=0.5) + group(name='"slow"', share=0.5, slowdown=4.0))
    assert program.main([str(tmp_path / "run"), "--fleet", str(tmp_path / "fleet.toml")]) == 0
    shown = capsys.readouterr().out
    assert " s of the fleet, kNN" in shown
    story = json.loads((tmp_path / "run" / "fleet" / "fleet.json").read_text())
    assert [own["times"] for own in story["groups"]] == ["measured", "scaled"]
    assert [own["round"] for own in story["evaluations"]] == [0, 1, 2]
    assert story["evaluations"][-1]["hours"] == pytest.approx(story["hours"])
    assert sum(story["phases"].values()) == pytest.approx(3600 * story["hours"])
    assert (tmp_path / "run" / "fleet" / "fleet.png").read_bytes().startswith(b"\x89PNG")


def test_telling_a_run_for_another_fleet_leaves_what_its_clients_spent(config, result, tmp_path):
    simsfl.run(in_fleet(config, tmp_path, rounds=1, eval_every=0), tmp_path / "run")
    before = (tmp_path / "run" / "fleet" / "clients.csv").read_bytes()
    (tmp_path / "other.toml").write_text(SERVER + group(slowdown=9.0))
    assert program.main([str(tmp_path / "run"), "--fleet", str(tmp_path / "other.toml")]) == 0
    assert (tmp_path / "run" / "fleet" / "clients.csv").read_bytes() == before
    assert (tmp_path / "run" / "fleet" / "fleet.csv").read_bytes() != before


def in_fleet(config, tmp_path, **more):
    """Return a config with a fleet, half of which are four times slower than the others."""
    text = SERVER + group(share=0.5) + group(name='"slow"', share=0.5, slowdown=4.0)
    (tmp_path / "fleet.toml").write_text(text)
    return replace(config, clients=12, fleet=str(tmp_path / "fleet.toml"), **more)


def test_the_fastest_of_more_than_a_cohort_are_kept(config, result, tmp_path):
    config = in_fleet(config, tmp_path, over_select=4.0)
    parts = Simulation(config).parts
    slow = parts.timeline.costs.member == 1
    assert parts.config.cohort * 4 == config.clients  # so all are drawn, and there are enough fast ones
    for number in range(5):
        cohort = parts.cohort(number)
        assert not slow[cohort].any()
        assert len(set(cohort)) == parts.config.cohort
    assert len({tuple(parts.cohort(number)) for number in range(5)}) > 1
    usual = Simulation(in_fleet(config, tmp_path, over_select=1.0)).parts
    assert any(slow[usual.cohort(number)].any() for number in range(5))


def test_who_misses_the_deadline_does_not_come(config, result, tmp_path):
    step = sum(SECONDS.values()) - SECONDS["sync"]
    parts = Simulation(in_fleet(config, tmp_path, deadline=2 * step)).parts
    slow = parts.timeline.costs.member == 1
    late = [parts.plan(number) for number in range(8)]
    for number, plan in enumerate(late):
        if not slow[plan.cohort.numpy()].all():
            missing = {p for p, c in enumerate(plan.cohort.tolist()) if slow[c]}
            assert plan.absences.missing == missing
            assert set(np.flatnonzero(parts.timeline.told(number).late)) == missing
            assert parts.timeline.record(number).groups["slow"].late == len(missing)
    assert any(plan.absences.missing for plan in late)
    with pytest.raises(ValueError, match=r"deadline: 0\.1 is less than the 1\.03 s of a step of the fastest client"):
        Simulation(in_fleet(config, tmp_path, deadline=0.1))


def test_the_sampler_needs_a_fleet(config):
    with pytest.raises(ValueError, match="sampler: fleet knows devices, and there are none; allowed: with a fleet"):
        replace(config, sampler="fleet")


def test_how_times_are_known_is_readable_on_a_narrow_terminal(config, result, tmp_path):
    name = "boards of the second floor"
    costs = telling(config, tmp_path, SERVER + group(name=f'"{name}"', idle_watts=2.75, busy_watts=12.25)).costs
    own = described(costs, 0) | {"device": "one core of an AMD EPYC server", "up_mbit_s": 10_000.0}
    console = Console(width=80, file=io.StringIO())
    console.print(fleet_table([own]))
    assert "measured" in console.file.getvalue()
