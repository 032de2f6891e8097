"""Reports of runs in a fleet: accuracy against its time and energy, who is left out, and the table of its clients."""

import json
from base64 import b64decode
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from simsfl import Simulation
from simsfl.cli.report import curves, figures
from simsfl.cli.report.cells import table_of_runs
from simsfl.cli.report.charts import charts
from simsfl.cli.report.curves import ENERGY, HOURS, SENT, STEPS
from simsfl.cli.report.fleet import excluded, fleet_figures
from simsfl.cli.report.runs import Run, _fleet_clients
from simsfl.cli.report.settings import grouped, measures
from simsfl.cli.serve import ServedRuns
from simsfl.config import RunConfig
from simsfl.data import make_dataset
from simsfl.data.partition import Partition
from simsfl.runs.fleet_totals import read_clients
from simsfl.runs.history import History
from tests.fleet import made

LINES = [("a", 4, 0, 0, 1.0, 2.0), ("a", 4, 3, 0, 0.5, 1.0), ("b", 3, 2, 1, 0.0, ""), ("b", 0, 0, 0, 0.0, 0.0)]
"""Lines of a table of clients: group, rounds drawn, late and away, hours and Wh."""


def _run(seed, seconds, wh=2.0, *, fleet=True, times="measured", **fields):
    """Return a run of three rounds that take a fleet some seconds each, evaluated in the beginning and at the end."""
    history = History()
    history.feed({"event": "evaluation", "round": 0, "knn_top1": 10.0})
    for number in (1, 2, 3):
        if number == 3:
            history.feed({"event": "evaluation", "round": 3, "knn_top1": 40.0 + seed, "class_top1": [20.0, None, 60.0]})
        if fleet:
            groups = {"a": (8, 1, 0, None), "b": (2, 1, 1, 0.5, times)}
            history.feed(made.record(number, seconds=seconds, wh=wh, **groups))
        sent = {"bytes_up_per_client": 1e6 * number, "bytes_down_per_client": 0, "communication": "A"}
        history.feed({"event": "round", "round": number, "loss": 1.0, "attackers_ssim": None, **sent})
    config = RunConfig(seed=seed, clients=4, cohort=2, batch_size=2, rounds=3, **fields).to_dict()
    return Run(f"{seed}-{fields}", Path("none"), config, {}, history, [0, 2, 4, 6], None, {}, (), [1.0] * 6)


def test_accuracy_is_known_at_the_time_energy_and_traffic_that_was_spent_by_then():
    found = curves.knn([_run(0, 3600.0), _run(1, 7200.0)])
    assert found.mean.tolist() == [10, 40.5]
    expected = {STEPS: [0, 6], SENT: [0, 3], HOURS: [0, (3 + 6) / 2], ENERGY: [0, 3 * 2 / 4]}
    for axis, places in expected.items():
        assert found.at[axis].tolist() == pytest.approx(places), axis
    losses = curves.of_steps([_run(0, 3600.0)], [[1.0] * 6])
    assert losses.at[HOURS].tolist() == pytest.approx([0.5, 1, 1.5, 2, 2.5, 3])


def test_axes_are_those_that_all_runs_of_a_setting_have():
    assert ENERGY not in curves.knn([_run(0, 9.0), _run(1, 9.0, wh=None)]).at
    assert HOURS in curves.knn([_run(0, 9.0), _run(1, 9.0, wh=None)]).at
    assert HOURS not in curves.knn([_run(0, 9.0), _run(1, 9.0, fleet=False)]).at


def test_figures_show_each_setting_in_its_colour():
    settings = grouped([_run(0, 3600.0, lr=0.1), _run(1, 3600.0, lr=0.1), _run(0, 7200.0, None, lr=0.2)])
    drawn = fleet_figures(settings)
    hours, energy, traffic = drawn["fleet"][1].axes
    assert [line.get_xdata().tolist() for line in hours.lines] == [[0, 3], [0, 6]]
    assert [line.get_xdata().tolist() for line in energy.lines] == [[0, 1.5]]
    assert len(traffic.lines) == 2
    assert len(hours.collections) == 1  # the band of two seeds
    (below,) = drawn["fleet"][1].legends  # an axis is too narrow for it
    assert len(below.get_texts()) == 2
    waits, absent = drawn["fleet_work"][1].axes
    widths = np.array([bar.get_width() for bar in waits.patches]).reshape(4, 2)
    assert widths.sum(axis=0) == pytest.approx([3, 6])
    heights = np.array([bar.get_height() for bar in absent.patches]).reshape(2, 2, 2)  # setting, late or away, group
    np.testing.assert_allclose(heights, [[[12.5, 50], [0, 50]]] * 2)
    assert fleet_figures(grouped([_run(0, 9.0, fleet=False)])) == {}
    assert "fleet" not in figures.draw_settings({"x": [_run(0, 9.0, fleet=False)]})


def test_lines_and_hatches_tell_how_the_times_of_devices_are_known():
    runs = [_run(0, 9.0), _run(0, 9.0, times="scaled", lr=0.1), _run(0, 9.0, times="published", lr=0.2)]
    drawn = fleet_figures(grouped(runs))
    hours, energy, traffic = drawn["fleet"][1].axes
    for axis in (hours, energy):
        assert [line.get_linestyle() for line in axis.lines] == ["-", "--", ":"]
    assert {line.get_linestyle() for line in traffic.lines} == {"-"}  # bytes are counted in any case
    told = [text.get_text() for text in hours.get_legend().get_texts()]
    assert told == ["times measured", "times scaled", "times published"]
    waits = drawn["fleet_work"][1].axes[0]
    assert [bar.get_hatch() or "" for bar in waits.patches[:3]] == ["", "///", "..."]
    rows = {row[0]: row[1:] for row in table_of_runs(runs)}
    assert rows["times of its devices"] == ["measured", "a measured, b scaled", "a measured, b published"]


def test_histograms_are_of_all_clients(tmp_path):
    made.write_clients(tmp_path / "fleet" / "clients.csv", LINES)
    run = replace(_run(0, 9.0), fleet_clients=read_clients(tmp_path / "fleet" / "clients.csv"))
    for settings, counted in (({"x": [run]}, 2), ({"x": [run], "y": [run, run]}, 2)):  # groups, then settings
        hours, energy = fleet_figures(settings)["fleet_work"][1].axes[2:]
        for axis in (hours, energy):
            assert [step.get_data().values.sum() for step in axis.patches] == pytest.approx([100.0] * counted)
        assert hours.patches[-1].get_data().edges[-1] == 1.0


def test_a_page_has_charts_of_a_fleet_where_there_is_one():
    settings = grouped([_run(0, 3600.0), _run(0, 9.0, fleet=False, lr=0.2)])
    found = {chart["id"]: chart["figures"] for chart in charts(settings)}
    assert list(found["accuracy"]) == [STEPS, SENT, HOURS, ENERGY]
    assert [trace["meta"] for trace in found["accuracy"][HOURS]["data"]] == [0]
    assert [trace["meta"] for trace in found["accuracy"][STEPS]["data"]] == [0, 1]
    (line,) = found["absent"][STEPS]["data"]
    assert np.frombuffer(b64decode(line["y"]["bdata"]), line["y"]["dtype"]) == pytest.approx([30, 30, 30])
    assert "absent" not in {chart["id"] for chart in charts({"x": [_run(0, 9.0, fleet=False)]})}


def test_tables_have_hours_and_energy():
    run = _run(0, 3600.0)
    assert {"fleet [h]": 3.0, "client [Wh]": 1.5}.items() <= measures(run).items()
    assert not {"fleet [h]", "client [Wh]"} & set(measures(_run(0, 9.0, fleet=False)))
    rows = {row[0]: row[1:] for row in table_of_runs([run, _run(0, 9.0, fleet=False)])}
    assert rows["time of the fleet"] == ["3:00:00", "-"]
    assert rows["energy per client, of the server"] == ["1.50 Wh, 1.50 Wh", "-"]
    assert rows["of those drawn of each group"] == ["a 12.5 % late, b 50.0 % late, b 50.0 % away", "-"]


def test_the_table_of_a_served_page_has_the_clock(config, npz, tmp_path):
    Simulation(replace(config, dataset=str(npz))).save(tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").write_text(json.dumps(made.record(1, 3600.0)) + "\n")
    assert [row[-1] for row in ServedRuns([tmp_path / "run"])._update()] == ["time of the fleet", "1:00:00"]


def test_classes_of_those_left_out(config, arrays, tmp_path):
    """The first class is held by a client that comes and one that is mostly late; the last by those that never came."""
    made.write_clients(tmp_path / "fleet" / "clients.csv", LINES)
    clients = read_clients(tmp_path / "fleet" / "clients.csv")
    assert clients.never.tolist() == [False, False, True, True]
    assert clients.mostly_late.tolist() == [False, True, False, False]
    labels = arrays.train_y
    own = [np.flatnonzero(labels == label) for label in range(3)]
    quarter = len(own[0]) // 4
    parts = [np.concatenate([own[0][quarter:], own[1]]), own[0][:quarter], own[2][2:], own[2][:2]]
    simulation = Simulation(
        replace(config, clients=4, cohort=2), make_dataset("made", "up", arrays), partition=Partition.of(parts)
    )
    figure = excluded(_run(0, 9.0), clients, simulation)
    held, accuracy = figure.axes
    widths = np.array([bar.get_width() for bar in held.patches]).reshape(2, 3)  # never, late; from the most left out
    np.testing.assert_allclose(widths, [[100, 0, 0], [0, 100 * quarter / len(own[0]), 0]])
    assert [bar.get_width() for bar in accuracy.patches] == [60, 20, 0]


def test_the_table_of_clients_is_used_for_the_records_that_it_is_of(tmp_path):
    path = tmp_path / "fleet" / "clients.csv"
    assert _fleet_clients(path, _run(0, 9.0).history, 4) is None
    lines = [
        ("a", 12, 2, 0, 1.0, 2.0),
        ("a", 12, 1, 0, 0.5, 1.0),
        ("b", 6, 3, 3, 0.0, 0.0),
        ("never", 0, 0, 0, 0.0, 0.0),
    ]
    made.write_clients(path, lines)
    assert _fleet_clients(path, _run(0, 9.0).history, 4).hours.tolist() == [1.0, 0.5, 0.0, 0.0]
    assert _fleet_clients(path, _run(0, 9.0, fleet=False).history, 4) is None
    made.write_clients(path, LINES)  # of another fleet
    assert _fleet_clients(path, _run(0, 9.0).history, 4) is None


DAMAGED = {
    "nothing": ("", "no column"),
    "a column less": ("client,group\n0,a\n", "has no column 'drawn'"),
    "a word": (None, "could not convert string to float"),
    "a line less": (None, "does not have each client once"),
    "a line that is cut": (None, "is no table of a fleet's clients"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_table_is_one_line(kind, tmp_path):
    path, (text, message) = tmp_path / "fleet" / "clients.csv", DAMAGED[kind]
    made.write_clients(path, LINES)
    whole = path.read_text()
    other = {"a word": whole.replace("4,1,3", "4,x,3"), "a line less": whole.replace("1,a", "7,a")}
    path.write_text(other.get(kind, whole[: whole.rindex("b,3") + 3]) if text is None else text)
    if kind == "nothing":
        path.write_text("\n0\n")
    with pytest.raises(ValueError, match=message) as caught:
        read_clients(path)
    assert str(caught.value).startswith(f"fleet: {path}")
    assert "\n" not in str(caught.value)
