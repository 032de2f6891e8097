"""Tables of the paper: their cells, and grids that are planned, run, interrupted and continued."""

import json
import shlex
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from simsfl import RunConfig
from simsfl.cli import run as run_program
from simsfl.cli.flags import asked_config
from simsfl.cli.sweep import grid, launchers, planning, runner, timing
from simsfl.cli.sweep.cells import Attack, Cell
from simsfl.cli.sweep.grid import Identity, read_grid
from simsfl.cli.sweep.outcomes import Outcomes
from simsfl.cli.table import program as table
from simsfl.cli.table.cells import TABLES
from simsfl.cli.table.results import Results
from simsfl.config.presets import named
from simsfl.runs.directory import RunDirectory
from simsfl.system.console import Output
from simsfl.system.outputs import _LIST, Outputs
from tests.conftest import flags

TINY = {
    "dataset": "shapes",
    "width": 4,
    "key_dim": 8,
    "queue_length": 40,
    "knn_bank": 100,
    "knn_test": 50,
    "engine": "vmap",
    "device": "cpu",
}


def run(*argv, out, **settings):
    """Run ``table.py`` with tiny runs that write into `out`; return the exit code."""
    return table.main([*argv, "--preset", "laptop", *flags(out=out, **TINY | settings)])


def test_cells_are_named_once_and_can_be_run():
    base = named("paper")[0]
    for name, build in TABLES.items():
        cells = build().cells
        assert len({cell.name for cell in cells}) == len(cells), name
        for cell in cells:
            replace(base, **cell.settings)
    published = [cell.published for cell in TABLES["3"]().cells]
    assert len(published) == 36
    assert (published[0], published[-1]) == (87.29, 91.28)
    few = {cell.name: cell for cell in TABLES["2"]().cells}
    assert few["MocoSFL-3, CIFAR-100 N=20"].published == 57.52
    assert few["MocoSFL-3, CIFAR-100 N=20"].settings["cohort"] == 5  # a quarter of the clients takes part


@pytest.mark.slow
def test_the_smoke_grids(tmp_path, capsys):
    """Two grids run on shapes, each within its budget; a cell of the second needs a data set that is not there."""
    out = tmp_path / "2"
    short = {"rounds": 2, "local_epochs": 0.02, "probe_epochs": 1}
    assert run("2", "--budget", "3", "--only", "CIFAR-10 N=5", out=out, **short) == 0
    text = capsys.readouterr().out
    page = (out / "table.md").read_text()
    for words in (
        "| FL-BYOL |",
        "| CIFAR-10 N=5 |",
        "linear probe",
        "| 83.34 |",
        "| 87.81 |",
        "| 87.29 |",
        "†",
    ):
        assert words in page
    assert (out / "table.png").stat().st_size > 10_000
    assert "table.md" in text
    times = {path: path.stat().st_mtime_ns for path in out.glob("*/summary.json")}
    assert len(times) == 3
    assert run("2", "--budget", "3", "--only", "CIFAR-10 N=5", out=out, **short) == 0
    assert times == {path: path.stat().st_mtime_ns for path in out.glob("*/summary.json")}  # finished cells are skipped

    out = tmp_path / "3"
    options = {name: value for name, value in TINY.items() if name != "dataset"}
    argv = ["3", "--budget", "3", "--only", "MocoSFL-1 ImageNet-12 IID, 1,000", "--preset", "laptop"]
    assert table.main([*argv, *flags(out=out, data_dir=tmp_path / "none", **options)]) == 0
    page = (out / "table.md").read_text()
    assert "91.76" in page
    assert "imagenet-12" in page  # the reason for which a cell did not run
    argv = ["3", "--budget", "3", "--only", "MocoSFL-3 CIFAR-10 non-IID", "--no-linear-probe"]
    assert run(*argv, out=tmp_path / "all", rounds=1, local_epochs=0.02) == 0
    page = (tmp_path / "all" / "table.md").read_text()
    assert page.count("| kNN |") == 3


@pytest.mark.slow
def test_clients_that_resist_start_from_an_expert_and_are_attacked(npz, tmp_path, capsys):
    out = tmp_path / "4"
    argv = ["4", "--only", "cut layer 1, lambda 2, 0.5%", "--budget", "1", "--no-linear-probe"]
    short = {"rounds": 2, "local_epochs": 0.01, "ressfl_decoder": "conv_normN0C4", "image_size": 16, "aux_dataset": npz}
    assert run(*argv, out=out, **short) == 0
    page = (out / "table.md").read_text()
    assert "| 80.78 |" in page
    assert "| 0.033 |" in page
    (attacked,) = out.glob("*/attacks/res_normN4C64.json")
    assert f"| {json.loads(attacked.read_text())['mse']['mean']:.3f} |" in page.replace(" † |", " |")
    assert "the published MSE is of images at four fifths of their contrast" in page
    final = json.loads((attacked.parent.parent / "config.json").read_text())["config"]
    assert (final["client_lr"], final["init_server"], final["ressfl_lambda"]) == (0.0, True, 0.0)
    expert = json.loads((out / final["init_client"].rsplit("/", 1)[-1] / "config.json").read_text())["config"]
    assert (expert["clients"], expert["aux_dataset"], expert["ressfl_lambda"]) == (1, str(npz), 2.0)
    capsys.readouterr()
    assert run(*argv, "--dry-run", out=out, **short) == 0
    assert capsys.readouterr().out == ""  # nothing is left to do
    assert run(*argv, "--dry-run", out=tmp_path / "anew", **short) == 0
    text = capsys.readouterr().out
    assert "--init-client" in text
    assert "simsfl attack" in text


@pytest.mark.slow
def test_a_grid_goes_on_where_it_stopped_and_survives_what_fails(tmp_path, monkeypatch):
    out = tmp_path / "grid"
    argv = ["sync", "--only", "MocoSFL-1, IID, 1 per round", "--seeds", "0,1"]
    rng = np.random.default_rng(0)
    pictures = {"train_x": 1000, "train_y": 1000, "test_x": 10, "test_y": 10}
    sizes = {name: (count, 8, 8, 3) if name.endswith("x") else count for name, count in pictures.items()}
    np.savez(tmp_path / "pictures.npz", **{name: rng.integers(0, 10, size, np.uint8) for name, size in sizes.items()})
    short = {"dataset": tmp_path / "pictures.npz", "rounds": 2, "local_epochs": 0.2, "knn_bank": 10, "knn_test": 10}
    interrupted = []

    def stop_once(*arguments):
        if not interrupted:
            interrupted.append(1)
            raise KeyboardInterrupt

    monkeypatch.setattr(runner.time, "sleep", stop_once)
    assert run(*argv, out=out, **short) == 130
    monkeypatch.undo()
    broken = out / "mocosfl-1-iid-1-per-round-seed-1"
    broken.mkdir()
    (broken / "config.json").write_text("{")
    assert run(*argv, out=out, **short) == 1
    good = out / "mocosfl-1-iid-1-per-round-seed-0"
    assert RunDirectory(good).summary.exists()
    assert not RunDirectory(broken).summary.exists()
    assert "1 of 2 seeds" in (out / "table.md").read_text()
    (broken / "config.json").write_text("[]")
    assert run(*argv, out=out, **short) == 1
    log = (out / f"{broken.name}.log").read_text()
    assert log.count("$ simsfl run --resume") == 2  # an earlier attempt stays to be read
    assert log.count("a list is not an object") == 1


@pytest.mark.parametrize("name", ["1", "hardware"])
def test_tables_that_nothing_is_run_for(name, tmp_path, capsys):
    assert table.main([name, "--out", str(tmp_path / "costs")]) == 0
    assert "MocoSFL-1" in capsys.readouterr().out
    assert "| 8,269.2 / 8,269.2 |" in (tmp_path / "costs" / "table.md").read_text()


@pytest.mark.slow
def test_dry_run_prints_commands_that_run(tmp_path, capsys):
    out = tmp_path / "grid"
    argv = ["participation", "--only", "MocoSFL-1, non-IID, 10%", "--dry-run"]
    assert run(*argv, out=out, rounds=2, local_epochs=0.02) == 0
    text, forecast = capsys.readouterr()
    (line,) = text.splitlines()
    words = shlex.split(line)
    asked = asked_config(run_program.parser().parse(words[2:]))
    expected = replace(named("laptop")[0], rounds=2, local_epochs=0.02, linear_probe=True, clients=200, cohort=20)
    assert asked == replace(expected, **{name: TINY[name] for name in TINY})
    assert "--cohort 20" in line
    assert "--clients 200" in line
    assert "% " in forecast
    assert not out.exists()


def test_commands_go_on_with_what_is_begun(tmp_path):
    plan = grid.Plan(Cell("", "a", {}, directory="a", attack=Attack()), 0, RunConfig(), 0, 1.0, attack_epochs=2)
    run_, attack = runner.command_line(plan, tmp_path).split(" && ")
    directory = tmp_path / "a-seed-0"
    assert run_.endswith(f"--preset custom --out {directory}")
    directory.mkdir()
    (directory / "config.json").touch()
    assert runner.command_line(plan, tmp_path) == f"simsfl run --resume {directory} && {attack}"
    (directory / "summary.json").touch()
    assert runner.command_line(plan, tmp_path) == attack


def test_dry_run_prints_no_command_for_what_cannot_run(tmp_path, capsys):
    argv = ["cuts", "--only", "cut layer 5, IID", "--dry-run"]
    assert run(*argv, out=tmp_path / "grid", rounds=2, local_epochs=0.02) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "is out of range" in line)
    assert line.startswith("# cut-layer-5-iid-seed-0: cut_layer: 5 is out of range")


def test_what_cannot_run_for_one_reason_is_one_line(tmp_path, capsys, monkeypatch):
    """The data are missed once, and the published figures are shown all the same."""
    tried = []
    measured = planning.measured
    monkeypatch.setattr(planning, "measured", lambda *given, **how: tried.append(given) or measured(*given, **how))
    options = {name: value for name, value in TINY.items() if name != "dataset"}
    argv = ["3", "--only", "ImageNet-12 non-IID", "--preset", "laptop"]
    missing = flags(out=tmp_path / "grid", data_dir=tmp_path / "none", **options)
    assert table.main([*argv, *missing, "--dry-run"]) == 0
    assert len(tried) == 1
    output, forecast = capsys.readouterr()
    lines = [line for line in output.splitlines() if line.startswith("# ")]
    where = f"{tmp_path / 'none' / 'imagenet-12'}, which does not exist; allowed: another --data-dir"
    assert lines == [f"# 6 runs: dataset: imagenet12 is read from {where}"]
    assert "simsfl run" not in output
    for published in ("92.24", "91.44", "91.28", "92.60", "91.83"):
        assert published in forecast
    assert forecast.count("impossible") == 6
    assert table.main([*argv, *missing]) == 0
    page = (tmp_path / "grid" / "table.md").read_text()
    assert page.count("imagenet12 is read from") == 1
    assert page.count("| impossible |") == 6
    assert "| 92.60 |" in page


def test_a_forecast_names_experts_under_the_row_of_their_cell():
    cells = [cell for cell in TABLES["4"]().cells if cell.published][:3]
    plans = [grid.Plan(cell, 0, RunConfig(), 1000, 60.0, steps=10) for pair in cells for cell in (pair.expert, pair)]
    forecast = Results(TABLES["4"](), plans, Path("none"), None, {}).forecast()
    first, published, *_ = ([*column.cells] for column in forecast.columns)
    assert first == [
        "cut layer 1, lambda 2",
        *(f"{expert}{share} of the target's data" for share in ("0.0%", "0.5%", "1.0%") for expert in ("expert, ", "")),
        "all",
    ]
    assert published == ["", "-", "81.14", "-", "80.78", "-", "79.96", ""]


def test_the_figure_has_room_for_all_flags(tmp_path):
    cells = TABLES["3"]().cells[:1]
    many = {f"setting_{number}": "/a/path/that/is/long/" * 3 for number in range(20)}
    plans = [grid.Plan(cell, 0, RunConfig(), 1000, 60.0, steps=10) for cell in cells]
    Results(TABLES["3"](), plans, tmp_path, None, many).write()  # a warning, and so an error, where it has none
    assert (tmp_path / "table.png").exists()


def test_a_schedule_that_fits():
    cell = Cell("row", "column", {})
    config = RunConfig(preset="laptop", rounds=100, epochs=200, linear_probe=True, knn_bank=1000, knn_test=100)
    cost = timing.Cost(
        start=2.0, step=0.1, image=0.001, steps=50, steps_of_pass=50, train=50_000, images=60_000, compared=1100
    )
    run = planning.Timed(cell, 0, config, config, cost)
    for share in (10.0, 30.0, 100.0, 500.0):
        plan = run.shortened(planning.shortening([run], share / 60, 1))
        assert cost.total(plan.config, plan.steps) <= share
        assert cost.total(plan.config, plan.steps + plan.steps // 5 + 10) > share
        assert plan.steps == plan.config.rounds * max(1, int(plan.config.local_epochs * 50))
        assert plan.config.linear_probe == (share > 150)


def test_only_takes_whole_words():
    def chosen(table_, words):
        return [cell.name for cell, _ in table._chosen_cells(table_, words, "0")]

    assert chosen("sync", "MocoSFL-1, IID, 1 per round") == ["MocoSFL-1, IID, 1 per round"]
    assert len(chosen("3", "CIFAR-10")) == 12
    assert all(" IID" in name for name in chosen("3", "IID"))
    assert len(chosen("3", "iid, 100 clients")) == 6
    with pytest.raises(ValueError, match=r"only: '5%' is in no cell of table 4"):
        chosen("4", "5%")


@pytest.mark.slow
def test_a_cell_whose_expert_is_not_possible_is_not_run(tmp_path, capsys):
    argv = ["4", "--only", "cut layer 1, lambda 2, 0.5%", "--dry-run", "--aux-dataset", str(tmp_path / "none")]
    assert run(*argv, out=tmp_path / "grid", rounds=1, local_epochs=0.01) == 0
    assert "simsfl run" not in capsys.readouterr().out


def test_long_work_is_confirmed_by_those_who_can_answer(monkeypatch, capsys):
    plans = [grid.Plan(Cell("", "a", {}, directory="a"), seed, RunConfig(), 0, 400.0) for seed in (0, 1)]
    outcomes = Outcomes("two runs", plans, Path("none"))
    console = Output()
    assert runner.may_go_on(outcomes, console, jobs=1, yes=False)  # nobody can answer
    assert capsys.readouterr().out == "2 runs to do: about 13:20, into none\n"
    monkeypatch.setattr(runner.sys, "stdin", SimpleNamespace(isatty=lambda: True))
    console.redraws = True
    answers = iter(["", "y"])
    monkeypatch.setattr("builtins.input", lambda *prompt: next(answers))
    assert not runner.may_go_on(outcomes, console, jobs=1, yes=False)
    assert "go on? [y/N] " in capsys.readouterr().out
    assert runner.may_go_on(outcomes, console, jobs=1, yes=False)
    assert runner.may_go_on(outcomes, console, jobs=2, yes=False)  # 400 seconds
    assert runner.may_go_on(outcomes, console, jobs=1, yes=True)


WRONG = {
    "table": (["33"], "table: '33' is not known (did you mean 3?); allowed: 1, hardware, 2, 3, 4, cuts"),
    "cell": (["3", "--only", "CIFAR-11"], "only: 'CIFAR-11' is in no cell"),
    "seeds": (["3", "--seeds", "a"], "seeds: 'a'"),
    "budget": (["3", "--budget", "0"], "budget: 0 is no time"),
    "budget in words": (["3", "--budget", "x"], "budget: 'x' is no number; allowed: minutes"),
    "tiny budget": (["sync", "--only", "1 per round", "--budget", "0.001"], "budget: 0.001 minutes are too few"),
    "flag": (["3", "--archs", "resnet8"], "flag: '--archs' is not known (did you mean --arch?)"),
    "config": (["3", "--tau", "2"], "tau: 2.0 is out of range"),
    "no runs": (["1"], "preset: has no effect with table 1, which needs no runs; allowed: --out"),
}


def test_a_run_is_ended_even_where_interrupts_are_ignored(tmp_path):
    """As in a job of a script in the background, whose processes ignore them, too."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        argv = ["run", *flags(out=tmp_path / "run", rounds=3, preset="laptop", **TINY)]
        with (tmp_path / "log").open("w") as log, launchers.running(argv, log) as process:
            assert process.poll() is None
    finally:
        signal.signal(signal.SIGINT, before)
    assert process.returncode in (-signal.SIGTERM, 128 + signal.SIGTERM)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        pytest.param(*case, id=name, marks=pytest.mark.slow if name == "tiny budget" else ())
        for name, case in WRONG.items()
    ],
)
def test_bad_input(argv, message, tmp_path, capfd):
    assert run(*argv, out=tmp_path / "grid") == 2
    error = capfd.readouterr().err
    assert error.startswith("error: " + message)
    assert error.count("\n") == 1
    assert not (tmp_path / "grid").exists()


def test_a_directory_of_another_grid_or_of_something_else(tmp_path, capfd):
    out = tmp_path / "grid"
    out.mkdir()
    (out / "grid.json").write_text(json.dumps({"identity": {"table": "2"}, "runs": {}}))
    assert run("sync", "--only", "1 per round", out=out) == 2
    assert "is of another grid, with table '2', and this one has table 'sync'" in capfd.readouterr().err
    (out / "grid.json").write_text("{")
    assert run("sync", "--only", "1 per round", out=out) == 2
    assert "is damaged" in capfd.readouterr().err
    (out / "grid.json").unlink()
    (out / "mine.txt").touch()
    assert run("sync", "--only", "1 per round", out=out) == 2
    assert "holds something else" in capfd.readouterr().err


@pytest.mark.parametrize(
    "content", ['{"identity": {"table": "sync"}, "runs": []}', '{"identity": 5, "runs": {}}', "[" * 100_000]
)
def test_a_damaged_grid_is_one_line(content, tmp_path, capsys):
    (tmp_path / "grid").mkdir()
    (tmp_path / "grid" / "grid.json").write_text(content)
    assert run("sync", "--only", "1 per round", out=tmp_path / "grid") == 2
    error = capsys.readouterr().err
    assert "grid.json is damaged" in error
    assert error.count("\n") == 1


def test_what_a_killed_process_left_is_no_grid_of_others(tmp_path):
    (tmp_path / _LIST).write_text("")
    assert read_grid(Outputs(tmp_path), Identity(), ()) == grid.Grid(Identity(), {})


def test_a_data_set_that_is_not_there_is_refused_before_anything_is_written(tmp_path, capsys):
    assert run("3", "--only", "CIFAR-10 IID", out=tmp_path / "grid", rounds=1, **{"dataset": "cifar11"}) == 2
    assert "dataset: 'cifar11' is not known (did you mean cifar10?)" in capsys.readouterr().err
    assert not (tmp_path / "grid").exists()
