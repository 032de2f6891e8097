"""The timeline of a fleet: who can come at what time, batteries, samplers that know devices, and the records of it."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest

import simsfl
from simsfl import Simulation
from simsfl.fleet.readiness import HOUR, Readiness, _within
from simsfl.runs.metrics import to_dict
from tests.fleet.conftest import SECONDS, SERVER, group

STEP = sum(SECONDS.values()) - SECONDS["sync"]
WATTS = {"idle_watts": 2.0, "busy_watts": 4.0}


def timeline(config, tmp_path, text, **more):
    """Return the timeline of a run of 12 clients in a fleet."""
    (tmp_path / "fleet.toml").write_text(text)
    return Simulation(replace(config, clients=12, fleet=str(tmp_path / "fleet.toml"), **more)).parts.timeline


def hours(chances):
    """Return when clients are available, given the chance by hours of the day, 0 in the others."""
    return f"{{ hours = {[float(chances.get(hour, 0)) for hour in range(24)]} }}"


def test_rounds_can_be_told_in_any_order(config, result, tmp_path):
    text = SERVER + group(available=hours(dict.fromkeys(range(24), 0.5)), battery="{ wh = 0.05 }", **WATTS)
    one, other = (timeline(config, tmp_path, text) for _ in range(2))
    expected = [one.record(number) for number in range(12)]
    assert [other.record(number) for number in (11, 3, 3, 0, 7)] == [expected[number] for number in (11, 3, 3, 0, 7)]
    ends = [own.clock for own in expected]
    assert np.diff([0, *ends]) == pytest.approx([own.seconds for own in expected])
    assert all(own.seconds == pytest.approx(sum(own.phases.values())) for own in expected)


def test_who_is_not_available_does_not_come(config, result, tmp_path):
    text = SERVER + group(share=0.5) + group(name='"day"', share=0.5, available=hours({8: 1}))
    own = timeline(config, tmp_path, text)
    cohort = {client for number in range(6) for client in own.told(number).cohort[own.told(number).came]}
    assert all(own.costs.member[list(cohort)] == 0)  # the run ends long before 8 o'clock
    at_eight = timeline(config, tmp_path, text.replace(SERVER, SERVER + "begins_at_hour = 8.0\n"))
    assert any((at_eight.costs.member[at_eight.told(number).cohort] == 1).any() for number in range(6))


def test_a_cohort_is_filled_up_with_clients_who_do_not_come(config, result, tmp_path):
    text = SERVER + group(share=1 / 12) + group(name='"never"', share=11 / 12, available=hours({}))
    own = timeline(config, tmp_path, text).told(0)
    assert own.came.sum() == 1
    assert not own.late.any()
    record = timeline(config, tmp_path, text).record(0)
    assert {own.times for own in record.groups.values()} == {"measured"}
    assert (record.groups["all"].away, record.groups["never"].away) == (0, len(own.cohort) - 1)


def test_the_server_waits_until_enough_are_available(config, result, tmp_path):
    text = SERVER + "idle_watts = 10.0\nbusy_watts = 30.0\n" + group(available=hours({6: 1}))
    record = timeline(config, tmp_path, text).record(0)
    assert record.phases["away"] == 6 * HOUR
    works = record.phases["server"]
    assert record.server_wh * HOUR == pytest.approx(10 * (record.seconds - works) + 30 * works)
    never = text.replace("[server]\n", "[server]\nwaits_for = 12\n") + group(
        name='"no"', share=0.5, available=hours({})
    )
    with pytest.raises(ValueError, match="for 30 days before round 1, fewer than 12 of its clients are available"):
        timeline(config, tmp_path, never.replace("share = 1.0", "share = 0.5"))


def test_the_server_cannot_wait_for_more_clients_than_there_are(config, result, tmp_path, caplog):
    text = SERVER + "waits_for = 99\n" + group(available=hours({6: 1}))
    assert timeline(config, tmp_path, text).record(0).phases["away"] == 6 * HOUR
    (warned,) = (record.getMessage() for record in caplog.records)
    assert warned == "fleet: waits_for is 99, and there are 12 clients, so the server waits for all of them"


def test_the_server_begins_when_a_short_time_of_availability_does(config, result, tmp_path):
    (tmp_path / "times.txt").write_text("100-101,899-900\n")  # it repeats after a quarter of an hour
    own = timeline(config, tmp_path, SERVER + group(available='{ file = "times.txt" }'))
    assert own.before(0).clock == pytest.approx(100)
    assert 101 < own.told(0).begin.clock + own.told(0).time.seconds < 899
    assert own.before(1).clock == pytest.approx(899)
    early = SERVER + "begins_at_hour = 5.95\n" + group(available=hours({6: 1}))
    assert timeline(config, tmp_path, early).before(0).clock == pytest.approx(0.05 * HOUR)


def test_batteries_go_down_by_what_clients_take_and_are_charged(config, result, tmp_path):
    battery = "{ wh = 0.02, begins_at = 0.9, stops_below = 0.5 }"
    own = timeline(config, tmp_path, SERVER + group(battery=battery, **WATTS))
    left, capacity = np.full(12, 0.9), 0.02 * HOUR
    for number in range(4):
        told = own.told(number)
        left[told.cohort] -= told.joules / capacity
        np.testing.assert_allclose(own.level(own.before(number + 1)), np.clip(left, 0, 1))
        assert set(np.flatnonzero(own.before(number + 1).ready)) == set(np.flatnonzero(left >= 0.5))
    assert (left < 0.5).any()


def test_nobody_is_waited_for_after_the_last_round(config, result, tmp_path):
    """Batteries that are empty after a round do not end it, and their charge is that at its end."""
    battery = "{ wh = 0.01, begins_at = 0.5, stops_below = 0.5 }"
    text = SERVER.replace("[server]\n", "[server]\nwaits_for = 12\n") + group(battery=battery, **WATTS)
    own = timeline(config, tmp_path, text)
    told, record = own.told(0), own.record(0)
    left = 0.5 - told.joules.sum() / (0.01 * HOUR) / 12
    assert record.groups["all"].battery == pytest.approx(left)
    assert left < 0.5
    with pytest.raises(ValueError, match="for 30 days before round 2, fewer than 12 of its clients are available"):
        own.before(1)


def test_slow_clients_compute_in_the_steps_that_they_miss(config, result, tmp_path):
    own = timeline(config, tmp_path, SERVER + group(), straggler=0.6, straggler_factor=2.0)
    checked = 0
    for number in range(4):
        told, (_, absences) = own.told(number), own.attendance.draw(number)
        steps, syncs = len(own._averaged), own._averaged.sum()
        for position in absences.slow:
            there = sum(position not in absences.in_step(s) for s in range(steps))
            alone = 2 * (there * STEP + syncs * SECONDS["sync"])
            assert told.time.compute[position] == pytest.approx(min(alone, told.time.seconds), rel=1e-3)
            checked += 1
    assert checked


def test_charging_is_that_of_every_minute_of_its_hours(config, result, tmp_path):
    battery = "{ wh = 1e3, begins_at = 0.0, charge_watts = 5.0, charge_hours = [22.0, 6.5] }"
    server = SERVER + "begins_at_hour = 21.0\n"
    own = timeline(config, tmp_path, server + group(battery=battery.replace("0.0,", "0.5,"), **WATTS))
    ready = Readiness(own.costs, 0)
    for begin, end in ((0, 2), (0.5, 30), (9, 9.4), (9.4, 10), (10, 24), (3, 80)):
        minutes = np.arange(begin * 60, end * 60) + 0.5
        lit = sum(m / 60 % 24 >= 22 or m / 60 % 24 < 6.5 for m in minutes + 21 * 60)
        found = ready.charged(np.zeros(12), begin * HOUR, end * HOUR)
        np.testing.assert_allclose(found, 5.0 * 60 * lit)
    assert _within(30 * HOUR, 0, 24) == 30 * HOUR


@pytest.mark.parametrize("by", ["seconds", "energy"])
def test_the_fleets_sampler_weighs_speed_against_coming_seldom(by, config, result, tmp_path):
    text = SERVER + group(share=0.5, **WATTS) + group(name='"slow"', share=0.5, slowdown=4.0, **WATTS)
    options = {"sampler": "fleet", "options": {"sampler.by": by, "sampler.fairness": 0.0}}
    fastest = timeline(config, tmp_path, text, **options)
    assert all((fastest.costs.member[fastest.told(number).cohort] == 0).all() for number in range(6))
    options["options"] = {"sampler.by": by, "sampler.fairness": 1.0}
    fair = timeline(config, tmp_path, text, **options).before(8).rounds
    assert fair.max() - fair.min() <= 1


def test_energy_can_be_preferred_only_where_it_is_known(config, result, tmp_path):
    content = json.loads((tmp_path / "result.json").read_text()) | {"energy": None}
    (tmp_path / "result.json").write_text(json.dumps(content))
    options = {"sampler": "fleet", "options": {"sampler.by": "energy"}}
    with pytest.raises(ValueError, match=r"sampler\.by: energy of fleet group all is not known; allowed: seconds, or"):
        timeline(config, tmp_path, SERVER + group(), **options)
    with pytest.raises(ValueError, match="group all: battery: the power of its device is not known; allowed: with"):
        timeline(config, tmp_path, SERVER + group(battery="{ wh = 1.0 }"))


def test_a_run_in_a_fleet_goes_on_as_one_that_was_not_stopped(config, result, tmp_path):
    available = hours(dict.fromkeys(range(24), 0.6))
    text = SERVER + group(available=available, battery="{ wh = 0.05 }", **WATTS)
    (tmp_path / "fleet.toml").write_text(text)
    config = replace(config, clients=12, rounds=5, fleet=str(tmp_path / "fleet.toml"), eval_every=0)
    whole = [to_dict(record) for record in Simulation(config).train()]
    first = Simulation(config)
    for record in (records := first.train()):
        if record.event == "round" and record.round == 3:
            break
    records.close()
    first.save(tmp_path / "run")
    rest = [to_dict(record) for record in Simulation.load(tmp_path / "run").train()]
    assert [own for own in whole if own.get("round", 0) > 3] == rest
    assert [own["round"] for own in whole if own["event"] == "fleet"] == [1, 2, 3, 4, 5]


def test_what_clients_have_spent_is_the_sum_of_the_records(config, result, tmp_path):
    text = SERVER + group(share=0.5, **WATTS) + group(name='"slow"', share=0.5, slowdown=4.0, **WATTS)
    (tmp_path / "fleet.toml").write_text(text)
    config = replace(config, clients=12, rounds=4, fleet=str(tmp_path / "fleet.toml"), deadline=2 * STEP)
    simsfl.run(config, tmp_path / "run")
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    fleet = [own for own in records if own["event"] == "fleet"]
    with (tmp_path / "run" / "fleet" / "clients.csv").open() as file:
        clients = list(csv.DictReader(file))
    assert [int(own["client"]) for own in clients] == list(range(12))
    assert sum(float(own["wh"]) for own in clients) == pytest.approx(sum(own["wh"] for own in fleet), rel=1e-4)
    for way in ("bytes_up", "bytes_down"):
        assert sum(int(own[way]) for own in clients) == sum(own[way] for own in fleet)
    late = sum(group["late"] for own in fleet for group in own["groups"].values())
    assert sum(int(own["late"]) for own in clients) == late > 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["fleet_hours"] == pytest.approx(fleet[-1]["clock"] / HOUR)
    last = [own for own in records if own["event"] == "round"][-1]
    assert last["bytes_up_per_client"] == round(sum(own["bytes_up"] for own in fleet) / 12)


def test_a_device_that_is_measured_anew_is_another_file(config, result, tmp_path, caplog):
    (tmp_path / "fleet.toml").write_text(SERVER + group())
    config = replace(config, fleet=str(tmp_path / "fleet.toml"))
    assert list(config.files) == ["fleet", "fleet: result.json"]
    Simulation(config).save(tmp_path / "run")
    content = json.loads((tmp_path / "result.json").read_text())
    content["latency"]["views"]["mean"] = 9.0
    (tmp_path / "result.json").write_text(json.dumps(content))
    Simulation.load(tmp_path / "run")
    assert "fleet: result.json: " in caplog.text
    assert "has changed since the run in" in caplog.text
