"""Sweeps: the grid that flags with several values are, and runs of it that are interrupted, continued and compared."""

import json
import signal
import sys
from dataclasses import replace

import pytest

from simsfl.cli.sweep import launchers, planning, runner, timing
from simsfl.cli.sweep import program as sweep
from simsfl.cli.sweep.axes import Range, check_effect, directory_of, points_of
from simsfl.cli.sweep.cells import Cell
from simsfl.cli.sweep.grid import Grid, Identity, Kept, Plan, Shortening
from simsfl.cli.sweep.launchers import Local
from simsfl.cli.sweep.outcomes import Outcomes
from simsfl.cli.sweep.results import RESULTS
from simsfl.config.presets import named
from simsfl.system.console import Output
from simsfl.system.files import alone_in
from tests.conftest import TINY, flags

SHORT = TINY | {"rounds": 1, "preset": "laptop", "knn_bank": 20, "knn_test": 10, "local_epochs": 0.1}


def test_combinations_of_any_flags():
    axes = {
        "preset": ["laptop"],
        "method": ["mocosfl", "federated"],
        "cut_layer": [1, 2],
        "width": [8],
        "objective.temperature": ["0.1", "0.2"],
        "objective": ["simclr"],
    }
    points = points_of(axes)
    assert len(points) == 6
    first, last = points[0].cell, points[-1].cell
    expected = {"method": "mocosfl", "cut_layer": 1, "width": 8, "arch": "resnet8", "objective": "simclr"}
    assert first.settings == first.settings | expected | {"options": {"objective.temperature": 0.1}}
    assert points[3].cell.name == "method mocosfl, cut layer 2, objective.temperature 0.2"
    assert last.name == "method federated, objective.temperature 0.2"  # without a cut
    assert not last.problem
    with pytest.raises(ValueError, match=r"^tau: 2\.0 is out of range"):
        points_of({"preset": ["laptop"], "tau": [0.9, 2.0]})


TRIMMED = {"preset": ["laptop"], "aggregation": ["mean", "trimmed-mean"], "aggregation.trim": ["0.1", "0.2"]}
DIRICHLET = {"preset": ["laptop"], "partition": ["iid", "dirichlet"], "alpha": [0.5, 0.1]}


@pytest.mark.parametrize("axes", [TRIMMED, DIRICHLET])
def test_flags_belong_to_the_combinations_in_which_they_have_an_effect(axes):
    (choice, (without, having)), (flag, values) = list(axes.items())[1:]
    points = [point.values for point in points_of(axes)]
    assert points == [{choice: without}, *({choice: having, flag: value} for value in values)]
    assert not any(point.cell.problem for point in points_of(axes))
    assert [point.values for point in points_of(axes | {choice: [having]})] == [{flag: value} for value in values]
    check_effect(axes)
    with pytest.raises(ValueError, match=rf"{flag}.*; allowed"):
        points_of(axes | {choice: [without]})
    with pytest.raises(ValueError, match=rf"{flag}.*; allowed"):
        check_effect(axes | {choice: [without], flag: Range(0.1, 0.3)})


def test_several_trackers_are_one_value():
    arguments = sweep.parser().parse(["--lr", "0.1,0.2", "--track", "csv,tensorboard"])
    assert (arguments.lr, arguments.track) == ([0.1, 0.2], ["csv,tensorboard"])


def test_a_value_that_no_combination_can_have_is_refused():
    with pytest.raises(ValueError, match=r"^aggregation\.trim: 0\.9 is out of range"):
        points_of(TRIMMED | {"aggregation.trim": ["0.1", "0.9"]})


def test_names_of_directories_differ_as_values_do():
    names = [directory_of({"dataset": text}) for text in ("a/b", "a-b", "a b", "x" * 100, "x" * 99)]
    assert len(set(names)) == 5
    assert names[1] == "dataset-a-b"
    assert directory_of({"lr": 0.02, "cut_layer": 2}) == "lr-0.02-cut-layer-2"
    assert directory_of({}) == ""


@pytest.mark.slow
def test_a_sweep_goes_on_and_grows(npz, tmp_path, monkeypatch, capsys):
    out = tmp_path / "sweep"
    given = flags(out=out, dataset=npz, **SHORT)
    interrupted = []

    def stop_once(seconds):
        if not interrupted:
            interrupted.append(seconds)
            raise KeyboardInterrupt

    monkeypatch.setattr(runner.time, "sleep", stop_once)
    assert sweep.main([*given, "--lr", "0.1,0.2", "--seeds", "0,1", "--jobs", "2"]) == 128 + signal.SIGINT
    monkeypatch.undo()
    assert sweep.main([*given, "--lr", "0.1,0.2", "--seeds", "0,1", "--jobs", "2", "--format", "svg"]) == 0
    found = json.loads((out / "sweep.json").read_text())["settings"]
    assert [entry["setting"] for entry in found] == [{"lr": 0.1}, {"lr": 0.2}]
    tops = [json.loads((out / f"lr-0.1-seed-{seed}" / "summary.json").read_text())["knn_top1"] for seed in (0, 1)]
    assert found[0]["measures"]["kNN [%]"]["mean"] == pytest.approx(sum(tops) / 2)
    assert (out / "figures" / "curves.svg").exists()
    assert "figures/curves.svg" in (out / "sweep.md").read_text()
    assert len((out / "sweep.csv").read_text().splitlines()) == 3
    times = {path: path.stat().st_mtime_ns for path in out.glob("*/summary.json")}
    assert len(times) == 4
    assert sweep.main([*given, "--lr", "0.1,0.3", "--seeds", "0"]) == 0  # the finished run of 0.1 stays
    after = {path: path.stat().st_mtime_ns for path in out.glob("*/summary.json")}
    assert after == after | times
    assert len(after) == 5
    capsys.readouterr()
    assert sweep.main([*given, "--width", "4", "--lr", "0.1,0.3", "--tau", "0.9"]) == 2
    assert "is of another grid, with no tau, and this one has tau 0.9;" in capsys.readouterr().err


def test_a_search_has_one_process_at_a_time(npz, tmp_path, capfd):
    pytest.importorskip("optuna")
    argv = [*flags(out=tmp_path, dataset=npz, **SHORT), "--lr", "0.01..0.3:log", "--search", "trials=2"]
    with alone_in(tmp_path, wait=True):
        assert sweep.main(argv) == 2
    assert capfd.readouterr().err == (
        f"error: search: another process searches in {tmp_path} at present; allowed: once that has ended, or another "
        "--out\n"
    )
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.slow
def test_a_search_tries_other_settings_each_time_and_goes_on_after_those_that_cannot_be(npz, tmp_path, capsys):
    """Three of the six combinations cannot be run, because a cohort has 30 clients and the run has 8."""
    pytest.importorskip("optuna")
    out = tmp_path / "search"
    argv = [*flags(out=out, dataset=npz, **SHORT), "--cohort", "3,30", "--lr", "0.1,0.2,0.3"]
    assert sweep.main([*argv, "--search", "trials=2"]) == 0
    first = capsys.readouterr().out
    assert first.count("trial ") == 2
    assert sweep.main([*argv, "--search", "trials=9"]) == 0
    both = first + capsys.readouterr().out
    tried = [line.partition(": ")[2] for line in both.splitlines() if line.startswith("trial ")]
    assert len(set(tried)) == len(tried) == 6
    assert sum("cohort: 30 is more than the clients" in line for line in tried) == 3
    assert "Optuna chooses no other settings than the 6 that were tried" in both
    found = json.loads((out / "sweep.json").read_text())["settings"]
    assert {(entry["setting"]["cohort"], entry["setting"]["lr"]) for entry in found} == {
        (3, lr) for lr in (0.1, 0.2, 0.3)
    }


@pytest.mark.slow
def test_a_search_goes_on_with_what_was_interrupted(npz, tmp_path, monkeypatch):
    pytest.importorskip("optuna")
    out = tmp_path / "search"
    argv = [*flags(out=out, dataset=npz, **SHORT), "--lr", "0.01..0.3:log", "--symmetric", "true,false"]
    interrupted = []

    def stop_once(seconds):
        if not interrupted:
            interrupted.append(seconds)
            raise KeyboardInterrupt

    monkeypatch.setattr(runner.time, "sleep", stop_once)
    assert sweep.main([*argv, "--search", "trials=2"]) == 128 + signal.SIGINT
    monkeypatch.undo()
    (begun,) = out.glob("*.log")
    assert sweep.main([*argv, "--search", "trials=2"]) == 0
    found = json.loads((out / "sweep.json").read_text())["settings"]
    assert {entry["runs"][0] for entry in found} == {log.stem for log in out.glob("*.log")}
    assert begun.stem in {entry["runs"][0] for entry in found}
    assert all(0.01 <= entry["setting"]["lr"] <= 0.3 for entry in found)
    tops = [entry["measures"]["kNN [%]"]["mean"] for entry in found]
    assert tops == sorted(tops, reverse=True)


def test_a_run_that_fails_makes_the_sweep_fail(npz, tmp_path, monkeypatch, capsys):
    program = tmp_path / "program"
    program.write_text(f"#!{sys.executable}\nprint('error: of this run')\nraise SystemExit(1)\n")
    program.chmod(0o755)
    monkeypatch.setattr(launchers.sys, "executable", str(program))
    given = flags(out=tmp_path / "sweep", dataset=npz, **SHORT)
    assert sweep.main([*given, "--lr", "0.1,0.2"]) == 1
    assert "lr-0.2-seed-0: error: of this run" in capsys.readouterr().out


@pytest.fixture
def grid_of(tmp_path, monkeypatch):
    """Return a function that carries out a grid as far as to the start of its runs, and returns their plans."""
    monkeypatch.setattr(runner, "run_all", lambda *_: None)

    def carry_out(names, steps, share=None):
        plans = [Plan(Cell("", name, {}, directory=name), 0, named("laptop")[0], 0, 1.0, steps=steps) for name in names]
        outcomes = Outcomes("a grid", plans, tmp_path / "grid", Shortening(share, True) if share else None)
        outcomes.write = None
        identity = Identity("sweep", "laptop", {"lr": "several values"})
        assert runner.carried_out(outcomes, RESULTS, identity, Local(), Output(), yes=True)
        return {plan.name: plan.steps for plan in outcomes.plans}

    return carry_out


def test_grids_that_begin_at_once_in_a_directory_have_the_same_plans(grid_of, tmp_path):
    """Both find no plans, and time their steps; then one begins after the other."""
    assert grid_of(["a", "b"], steps=10) == {"a-seed-0": 10, "b-seed-0": 10}
    assert grid_of(["b", "c"], steps=20) == {"b-seed-0": 10, "c-seed-0": 20}
    kept = json.loads((tmp_path / "grid" / "grid.json").read_text())["runs"]
    assert {name: run["steps"] for name, run in kept.items()} == {"a-seed-0": 10, "b-seed-0": 10, "c-seed-0": 20}


def test_of_grids_that_begin_at_once_with_other_budgets_the_second_adds_nothing(grid_of, tmp_path):
    grid_of(["a"], steps=10)
    before = (tmp_path / "grid" / "grid.json").read_bytes()
    assert grid_of(["a"], steps=5, share=0.5) == {"a-seed-0": 10}
    with pytest.raises(ValueError, match=r"^out: .* by now, with whole schedules, and these have .* to 50\.00% of the"):
        grid_of(["a", "b"], steps=5, share=0.5)
    assert (tmp_path / "grid" / "grid.json").read_bytes() == before


WRONG = {
    "range": (["--lr", "0.1..0.2"], "lr: a range is for --search"),
    "trials": (["--search", "30"], "search: '30' is no number of trials; allowed: such as trials=30"),
    "empty range": (["--lr", "0.2..0.1"], "lr: '0.2..0.1' is no range; allowed: from a lower to a higher number"),
    "value": (["--lr", "0.1,x"], "lr: 'x' is no number; allowed: a number"),
    "truth": (["--align-momentum", "true,maybe"], "align_momentum: 'maybe' is neither; allowed: true or false"),
    "name": (["--arch", "resnet8,resnet9"], "arch: 'resnet9' is not known"),
    "live view": (["--dashboard", "off"], "flag: '--dashboard' is not known; allowed: --seeds, --dry-run, --budget,"),
    "seed": (["--seed", "1"], "flag: '--seed' is not known (did you mean --seeds?)"),
    "jobs": (["--jobs", "0"], "jobs: '0' is no count; allowed: 1 or more"),
}


@pytest.mark.parametrize(("argv", "message"), WRONG.values(), ids=WRONG)
def test_bad_input(argv, message, tmp_path, capfd):
    assert sweep.main([*argv, "--preset", "laptop", "--out", str(tmp_path / "sweep")]) == 2
    error = capfd.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1
    assert not (tmp_path / "sweep").exists()


COST = timing.Cost(start=0.0, step=0.1, image=0.0, steps=50, steps_of_pass=50, train=1, images=1, compared=1)


def _points(**axes):
    """Return pairs of a cell and a seed, one for each combination of values."""
    axes = {name: value if isinstance(value, list) else [value] for name, value in axes.items()}
    return [(point.cell, 0) for point in points_of({"preset": ["laptop"], "cohort": [100], **axes})]


@pytest.fixture
def timed(monkeypatch):
    """Return a function that times runs whose steps take `COST`, or as many times that as the layers of a client."""
    monkeypatch.setattr(
        planning, "measured", lambda config, *_: (config, replace(COST, step=COST.step * config.cut_layer))
    )
    return lambda cells: planning.timed(cells, named("laptop")[0], {})


def test_a_budget_counts_runs_side_by_side(timed):
    """Three runs, two at a time, take turns twice, so each may take half of the budget."""
    runs = timed(_points(rounds=1000, lr=[0.1, 0.2, 0.3]))
    plans = [run.shortened(planning.shortening(runs, 4.0, 2)) for run in runs]
    assert len({plan.steps for plan in plans}) == 1
    assert all(100 < COST.total(plan.config, plan.steps) == plan.seconds <= 120 for plan in plans)


def test_a_budget_shortens_all_schedules_by_the_same_share(timed):
    """Whatever a step takes: runs that differ in nothing else have as many steps."""
    runs = timed(_points(rounds=[1000, 500], cut_layer=[1, 4]))
    shorter = planning.shortening(runs, 20.0, 1)
    plans = [run.shortened(shorter) for run in runs]
    assert [plan.steps // 50 for plan in plans] == [int(shorter.share * 1000)] * 2 + [int(shorter.share * 500)] * 2
    assert 1100 < sum(plan.seconds for plan in plans) <= 1200
    assert planning.shortening(runs, 1e6, 1) is None
    with pytest.raises(ValueError, match=r"budget: 0\.1 minutes are too few for one step in each of 4 runs; allow"):
        planning.shortening(runs, 0.1, 1)


def test_runs_that_are_added_are_shortened_as_those_before(timed, monkeypatch, capsys):
    """The budget may be another than that of the runs before; one that is too small for as many steps is refused."""
    monkeypatch.setattr(runner, "timed", lambda cells, base, flags: timed(list(cells)))
    cells, base = _points(rounds=1000, lr=[0.1, 0.2]), named("laptop")[0]
    plans, shorter = runner.plans_of(cells[:1], Grid(Identity(), {}), base, {}, 4.0, 1, Output())
    before = Grid(Identity(), {plan.name: plan.kept() for plan in plans}, shorter)
    for budget in (8.0, None):
        more, again = runner.plans_of(cells, before, base, {}, budget, 1, Output())
        assert again == shorter
        assert more[0] == plans[0]
        assert more[1].steps == plans[0].steps < 50_000
    message = r"budget: 4 minutes are too few for 1 more run as long as those before; allowed: 7\.9 or more, or without"
    with pytest.raises(ValueError, match=message):
        runner.plans_of(cells, before, base, {}, 4.0, 1, Output())
    impossible = Grid(Identity(), {plans[0].name: replace(plans[0].kept(), problem="no data")}, shorter)
    assert isinstance(impossible.runs[plans[0].name], Kept)
    assert runner.plans_of(cells, impossible, base, {}, None, 1, Output())[1] is None


def test_what_diverges_while_it_is_timed_is_a_run_that_fails(npz, tmp_path):
    """Such a run is no impossible one: it is carried out, and says itself why it ends."""
    cell = Cell("", "a", TINY | {"dataset": str(npz), "lr": 1e8, "rounds": 3}, directory="a")
    (run,) = planning.timed([(cell, 0)], named("laptop")[0], {})
    assert not run.problem
    assert run.cost.step > 0
