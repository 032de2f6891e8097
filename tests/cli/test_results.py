"""The page of results: runs are found by their config, kept as JSON, and shown as mean and standard deviation."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from simsfl.attacks import spread
from simsfl.cli.cost.tables import outline_of
from simsfl.cli.results import cells, runs
from simsfl.cli.results import program as results
from simsfl.cli.results.cells import SECTIONS, Section, base, bytes_of, config_of, sections
from simsfl.cli.results.program import Pages
from simsfl.cli.sweep import runner
from simsfl.cli.sweep.cells import Attack, Cell
from simsfl.cli.table.cells import TABLES
from simsfl.runs.directory import RunDirectory
from simsfl.runs.records import AttackRecord, Scores, Summary, to_json
from simsfl.runs.records import read as read_record
from tests.conftest import TINY
from tests.test_architecture import generate

DEFAULT = "table-3-mocosfl-1-cifar-10-non-iid-1-000-clients"
"""Name of the file of the laptop setting."""


@pytest.fixture
def checkout(tmp_path):
    """Return an empty checkout."""
    for name in ("benchmarks", "docs"):
        (tmp_path / "checkout" / name).mkdir(parents=True)
    return tmp_path / "checkout"


@pytest.fixture
def finished(dataset, tmp_path):
    """Return a function that writes the run directory of a finished run, without training, and returns its path."""

    def write(name, knn_top1, **settings):
        directory = RunDirectory(tmp_path / "runs" / name)
        config = outline_of(replace(base(), **settings), None).config
        directory.path.mkdir(parents=True)
        directory.record(config, [], {}, dataset, {}, [], None)
        numbers = {"clients": config.clients, "cohort": config.cohort, "rounds": config.rounds, "steps": 500}
        empty = dict.fromkeys(("contrast_top1", "linear_top1", "client_steps_per_second", "images_per_second"))
        measured = {"knn_top1": knn_top1, "knn_top1_untrained": 20.0, "knn_top1_pixels": 35.0, "loss": knn_top1 / 10}
        summary = Summary(
            **{**numbers, **empty, **measured, "preset": "laptop", "method": config.method, "dataset": config.dataset},
            **{"probes": {}, "seconds": 36.0, "peak_memory_bytes": 1, "client_flops_per_step": 1},
            **{"bytes_up_per_client": 2_000, "bytes_down_per_client": 1_000, "bytes_saved_per_client": 0},
        )
        directory.outputs.write_json("summary.json", to_json(summary))
        return directory.path

    return write


def attack(path, **changed):
    """Write the result of the attack that cells have into the directory of a run."""
    score = Scores(0.5, None)
    how = cells._ATTACK
    record = AttackRecord(
        **{"decoder": how.decoder, "attacker_data": how.share, "epochs": how.epochs, "target_client": 0, "targets": 8},
        **{"seeds": [0], "rounds": 10, "mse": Scores(0.02, None), "ssim": score, "psnr": None, "by_seed": {}},
        **{"mean_image_mse": 0.06, "training": [None], "ssim_borders": "zeros", "ssim_mirrored": Scores(0.4, None)},
    )
    RunDirectory(path).outputs.write_json(f"attacks/{how.decoder}.json", to_json(replace(record, **changed)))


def run(checkout, *argv):
    """Run ``results_page.py`` for a checkout; return the exit code."""
    return results.main(["--checkout", str(checkout), *map(str, argv)])


def rows(checkout, name):
    """Return the rows of the page that begin with the name of a cell, each as the texts of its columns."""
    lines = (checkout / "docs" / "results.md").read_text().splitlines()
    return [[text.strip() for text in line.split("|")[1:-1]] for line in lines if line.startswith(f"| {name} |")]


def test_every_cell_can_be_run_and_has_a_name_of_its_own():
    found = [cell for section in sections().values() for cell in section.cells]
    assert len({cell.directory for cell in found}) == len(found)
    possible = [cell for cell in found if not cell.problem]
    for cell in possible:
        outline = outline_of(config_of(cell), None)
        if "participation" not in cell.directory and cell.settings.get("rounds") is None:
            expected = 464 if cell.settings.get("batch_size") == 3 else 500  # of 50 images, 48 are in steps of 3
            assert outline.steps * outline.config.rounds == expected, cell.name
    of_paper = [cell for cell in TABLES["3"]().cells if cell.settings["dataset"] == "cifar10"]
    assert [cell.published for cell in sections()["table-3"].cells] == [cell.published for cell in of_paper]
    aligned = [(cell.settings["cut_layer"], cell.settings["align_momentum"]) for cell in sections()["alignment"].cells]
    assert aligned == [(cut, align) for cut in (1, 2, 3, 4) for align in (False, True)]


def test_equal_bytes_are_equal_to_half_a_round():
    """The cost model says the same as arithmetic: maps of 16 x 16 x 16 numbers there and back, and whole networks."""
    by_name = {cell.row + " " + cell.column.split(",")[0]: cell for cell in SECTIONS["equal-bytes"]().cells}
    split = bytes_of(by_name["MocoSFL 5 clients"].settings)
    assert split == 500 * 100 * 3 * 4 * 16**3 + 10 * 5 * 2 * 4 * 464  # two views up, one gradient back; 464 weights
    for name in ("FL-MoCo", "FL-BYOL", "FedEMA"):
        settings = by_name[f"{name} 5 clients"].settings
        assert abs(bytes_of(settings) - split) <= bytes_of(settings) / settings["rounds"] / 2


def test_runs_are_found_by_their_config(checkout, finished, tmp_path, capsys):
    finished("a", 40.0, seed=0)
    finished("b", 42.0, seed=1, syncs_per_round=1, linear_probe=True, engine="loop")  # asked for otherwise
    finished("c", 44.0, seed=2)
    finished("d", 30.0, seed=0, objective="byol", head="large-mlp")
    finished("e", 30.0, seed=0, lr=0.07, client_lr=0.06)
    unfinished = finished("f", 30.0, seed=1, objective="byol")
    (unfinished / "summary.json").unlink()
    assert run(checkout, "--add", tmp_path / "runs") == 0
    said = capsys.readouterr().out
    assert f"left out: {tmp_path / 'runs' / 'e'} is of no cell: lr is 0.07, in the nearest cell ({DEFAULT})" in said
    assert f"left out: {unfinished} has not ended" in said
    files = {file.stem for file in (checkout / "benchmarks" / "results").iterdir()}
    assert files == {DEFAULT, "objectives-byol"}

    values = [40.0, 42.0, 44.0]
    for name in ("MocoSFL, 1,000 clients", "MoCo, the default", "mean, the default"):
        (row,) = rows(checkout, name)
        assert f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f} (3)" in row
        assert {"resnet8, width 16, cut 1", "500 of 100 x 1", "0.03"} <= set(row)  # three runs of 36 seconds
        assert f"{1000 * 3_000 / 1e9:.2f}" in row
    assert rows(checkout, "SimCLR")[0][1] == "not run"
    assert rows(checkout, "BYOL")[0][1] == "30.00 (1)"
    page = (checkout / "docs" / "results.md").read_text()
    assert page.endswith("## CUDA\n\nNot measured.\n")
    assert (checkout / "docs" / "results" / "objectives.svg").stat().st_size < 50_000

    capsys.readouterr()
    finished("g", 50.0, seed=1)
    assert run(checkout, "--add", tmp_path / "runs" / "g") == 0  # in place of the seed that is there
    assert "44.67 ± 5.03 (3)" in rows(checkout, "MoCo, the default")[0]
    assert run(checkout, "--add", tmp_path / "runs" / "e") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path / 'runs' / 'e'} is of no cell")
    assert run(checkout, "--add", tmp_path / "runs") == 2
    assert "are the same run; allowed: each seed once" in capsys.readouterr().err


@pytest.mark.slow
def test_attacks_count_where_they_are_the_cells_own(checkout, finished):
    how = {"defence": "int8"}
    attack(finished("a", 40.0, seed=0, **how))
    attack(finished("b", 40.0, seed=1, **how), mse=Scores(0.04, None))
    attack(finished("c", 40.0, seed=2, **how), epochs=21)
    attack(finished("d", 40.0, defence="fp16"), ssim_borders="mirror", ssim_mirrored=None)  # as of earlier versions
    assert run(checkout, "--add", *(checkout.parent / "runs" / name for name in "abcd")) == 0
    mse = spread([0.02, 0.04])
    assert rows(checkout, "int8")[0][2:4] == [
        "0.500 ± 0.000 [0.400 ± 0.000] (2)",
        f"{mse['mean']:.4f} ± {mse['std']:.4f}",
    ]
    assert rows(checkout, "fp16")[0][2:4] == ["not run", "-"]
    pages = Pages(checkout)
    by_row = {cell.row: cell for cell in pages.sections["defences"].cells}
    int8, fp16 = by_row["int8"], by_row["fp16"]
    assert pages.kept.missing(int8, [0, 1, 2, 3]) == [2, 3]
    assert pages.kept.missing(fp16, [0]) == [0]
    command = pages.kept.of(int8).command
    assert "--defence int8" in command
    assert command.endswith("--decoder conv_normN0C16 --attacker-data 0.02 --attack-epochs 20")


@pytest.mark.slow
def test_the_page_says_when_it_is_not_up_to_date(checkout, finished, capsys):
    assert run(checkout) == 0
    assert run(checkout, "--check") == 0
    Pages(checkout).kept.add([finished("a", 40.0)])
    assert run(checkout, "--check") == 2
    assert "results.md is not up to date" in capsys.readouterr().err


@pytest.mark.slow
def test_files_that_cannot_be_right_are_named_in_one_line(checkout, finished, capsys):
    finished("a", 40.0)
    assert run(checkout, "--add", checkout.parent / "runs") == 0
    file = checkout / "benchmarks" / "results" / f"{DEFAULT}.json"
    text = file.read_text()

    def error():
        capsys.readouterr()
        assert run(checkout) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    file.write_text(text[:-30])
    assert f"{file} cannot be read as JSON" in error()
    file.write_text(text.replace('"knn_top1": 40.0', '"knn_top1": 60.0'))
    assert f"{file} is damaged, or was edited" in error()
    content = json.loads(text)
    del content["sha256"]  # of an edited file, no longer true
    file.write_text(json.dumps(content | {"settings": content["settings"] | {"lr": 0.07}}))
    assert f"{file} is of no cell: lr is 0.07, in the nearest cell" in error()
    file.write_text(text)
    other = file.rename(file.with_name("other.json"))
    assert f"{other} is of the cell {DEFAULT}; allowed: to rename it" in error()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--run", "defenses"], "run: 'defenses' is not known (did you mean defences?); allowed: all, table-3"),
        (["--add", "."], "add: . holds no run"),
        (["--budget", "0", "--run"], "budget: 0 is no time"),
        (["--budget", "20"], "budget: has no effect without --run"),
        (["--checkout", "nowhere"], "checkout: nowhere has no benchmarks and docs"),
    ],
)
def test_bad_input(argv, message, checkout, monkeypatch, capsys):
    monkeypatch.chdir(checkout)
    assert results.main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.slow
def test_a_budget_takes_the_cells_that_fit(checkout, finished, monkeypatch, capsys):
    def timed(pairs, *_):
        return [SimpleNamespace(whole=lambda: runner.Plan(*pairs[0], base(), 0, 100.0))]

    monkeypatch.setattr(runs, "timed", timed)
    started = []
    monkeypatch.setattr(runner, "run_all", lambda plans, *_: started.extend(plans))
    run(checkout, "--add", finished("a", 40.0, seed=1, aggregation="median"))
    capsys.readouterr()
    names = ["mean-the-default", "by-images", "trimmed-mean", "median", "fedavgm"]
    assert run(checkout, "--run", "aggregations", "--budget", "10", "--jobs", "2", "--yes") == 0  # 12 runs of 100 s
    by_cell = [(DEFAULT if name == names[0] else f"aggregations-{name}", seed) for name in names for seed in (0, 1, 2)]
    expected = [pair for pair in by_cell if pair != ("aggregations-median", 1)][:12]
    assert [(plan.cell.directory, plan.seed) for plan in started] == expected
    assert started[0].cell.attack == cells._ATTACK  # for the cell is one of the defences, too
    said = capsys.readouterr().out
    assert "12 runs to do" in said
    assert "14 runs more would not fit in 10 minutes" in said
    started.clear()
    assert run(checkout, "--run", "equal-bytes", "--seeds", "0", "--yes") == 0  # those with more steps come later
    order = ["fl-byol", "fedema", "mocosfl-5", DEFAULT, "supervised", "fl-moco"]
    assert [name in plan.cell.directory for name, plan in zip(order, started, strict=True)] == [True] * 6


@pytest.mark.slow
def test_cells_are_made_from_nothing(checkout, monkeypatch, capsys):
    changed = {"dataset": "shapes", "knn_bank": 50, "knn_test": 40, "local_epochs": 0.04, "rounds": 2, "engine": "vmap"}
    network = {name: TINY[name] for name in ("width", "key_dim", "queue_length", "device")}
    monkeypatch.setattr(cells, "base", lambda: replace(base(), **changed, **network))
    monkeypatch.setattr(runs, "base", cells.base)
    small = Attack(decoder="conv_normN0C4", share=0.001, epochs=1)
    found = [cells._cell("plain", attack=small), Cell("other", "", {}, problem="is not possible")]
    monkeypatch.setattr(cells, "SECTIONS", {"tiny": lambda: Section("Tiny", "Two cells.", found)})
    assert run(checkout, "--run", "--seeds", "0,1", "--jobs", "2") == 0
    (plain,), (other,) = (rows(checkout, name) for name in ("plain", "other"))
    assert (plain[1][-3:], other[1]) == ("(2)", "not run")
    assert plain[2].count("±") == 2
    assert "is not possible" in (checkout / "docs" / "results.md").read_text()
    record = json.loads((checkout / "benchmarks" / "results" / "tiny-plain.json").read_text())
    for own in record["runs"]:
        path = checkout / "runs" / "results" / f"tiny-plain-seed-{own['seed']}"
        summary = read_record(path / "summary.json", Summary)
        assert (own["knn_top1"], own["loss"], own["seconds"]) == (summary.knn_top1, summary.loss, summary.seconds)
        assert own["bytes"] == 1000 * (summary.bytes_up_per_client + summary.bytes_down_per_client)
        assert own["machine"] == json.loads((path / "config.json").read_text())["machine"]
        attacked = read_record(path / "attacks" / "conv_normN0C4.json", AttackRecord)
        assert own["attack"]["mse"] == attacked.mse.mean
    times = {file: file.stat().st_mtime_ns for file in checkout.glob("runs/results/*/summary.json")}
    assert len(times) == 2
    assert run(checkout, "--run", "--seeds", "0,1") == 0
    assert times == {file: file.stat().st_mtime_ns for file in checkout.glob("runs/results/*/summary.json")}


def test_the_page_of_this_checkout_is_up_to_date():
    assert run(generate.ROOT, "--check") == 0
