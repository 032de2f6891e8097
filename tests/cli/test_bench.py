"""The benchmark runs each engine, and its figures fit together."""

import json
import re

import numpy as np
import pytest

from docs.generate import ROOT
from simsfl import RunConfig, Simulation
from simsfl.cli.bench import program as bench
from simsfl.cli.bench.tables import tables
from tests.conftest import TINY, flags

SMALL = {name: value for name, value in TINY.items() if name not in bench._NO_MATTER}


@pytest.mark.slow
def test_engines_take_turns(npz, tmp_path, capsys):
    wide = SMALL | {"clients": 40, "cohort": 40, "batch_size": 1, "syncs_per_round": 1}
    report = tmp_path / "bench.json"
    argv = [*flags(dataset=npz, json=report, **wide), "--steps", "2", "--engines", "loop,fused"]
    assert bench.main(argv) == 0
    results = json.loads(report.read_text())
    assert list(results["engines"]) == ["loop", "fused"]
    seconds = {name: run["seconds"]["client phase"] for name, run in results["engines"].items()}
    for spread in seconds.values():
        assert 0 < spread["q1"] <= spread["median"] <= spread["q3"]
    assert len({spread["median"] for spread in seconds.values()}) == 2  # each is measured by itself
    assert results["peaks"]["step_flops"]["server"] > 0
    assert results["machine"]["torch"]
    table = capsys.readouterr().out
    for word in ("client backward", "times as fast", "fused", "garbage collection"):
        assert word in table


@pytest.mark.slow
def test_scale(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench, "_CLIENTS", (20, 50))
    report = tmp_path / "bench.json"
    small = {name: value for name, value in SMALL.items() if name not in bench._IDLE["scale"]}
    assert bench.main([*flags(json=report, **small | {"cohort": 4}), "--scale", "--steps", "2"]) == 0
    scale = json.loads(report.read_text())["scale"]
    assert list(scale) == ["20", "50"]
    assert scale["20"]["bytes_per_client"] > 0
    table = capsys.readouterr().out
    assert "step [ms]" in table
    assert "start [s]" in table


@pytest.mark.slow
def test_ranks(npz, tmp_path, capsys):
    report = tmp_path / "bench.json"
    argv = [*flags(dataset=npz, json=report, **SMALL | {"cohort": 4, "syncs_per_round": 1}), "--steps", "3"]
    assert bench.main([*argv, "--ranks", "1,2"]) == 0
    ranks = json.loads(report.read_text())["ranks"]
    assert list(ranks) == ["1", "2"]
    assert ranks["1"]["told"]["q3"] == ranks["1"]["sent_bytes"] == 0
    assert 0 < ranks["2"]["told"]["median"] < ranks["2"]["step"]["median"]
    config = RunConfig(**TINY, dataset=str(npz))
    gradient, keys = Simulation(config).model.server.size + 2, 2 * 2 * config.batch_size * config.key_dim
    assert ranks["2"]["sent_bytes"] == 4 * (gradient + keys)  # of 2 clients, in both directions of the loss
    twice = 2 * ranks["2"]["kept_bytes"] - ranks["1"]["kept_bytes"]  # each rank knows of all who has taken part
    assert 0 < twice == 8 * SMALL["clients"] < ranks["1"]["kept_bytes"]
    assert "exchange [ms]" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_an_error_on_ranks_is_the_ranks_own(tmp_path, capsys):
    np.savez(tmp_path / "images.npz", x=np.zeros((4, 8, 8, 3), np.uint8))
    assert bench.main([*flags(dataset=tmp_path / "images.npz", **SMALL), "--steps", "1", "--ranks", "2"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: dataset: {tmp_path / 'images.npz'} lacks train_x")


WRONG = {
    "ranks": (["--ranks", "1,x"], "ranks: 'x'"),
    "no ranks": (["--ranks", "2", "--engines", "vmap"], "engines: has no effect with --ranks"),
    "modes": (["--ranks", "2", "--start"], "ranks: cannot be given with --start; allowed: one of the two"),
    "engine": (["--engines", "fused,vampp"], "engines: 'vampp' is not known (did you mean vmap?)"),
    "no engine": (["--engines", "fused,"], "engines: '' is not known"),
    "precision": (["--engines", "fused+"], "engines: 'fused+' is not known"),
    "no precision": (["--engines", "fused+auto"], "engines: 'fused+auto' is not known"),
    "the loop's precision": (["--engines", "loop+bf16"], "engines: loop+bf16 is not the published way of working"),
    "nothing to compare": (["--scale", "--engines", "vmap"], "engines: has no effect with --scale"),
    "scale": (["--scale", "--clients", "10"], "clients: has no effect with --scale"),
    "start": (["--start", "--steps", "3"], "steps: has no effect with --start"),
    "alpha": (["--alpha", "0.3"], "alpha: has no effect where partition is shards"),
    "json": (["--json", "/"], "json: / cannot be written"),
    "evaluation": (["--linear-probe"], "flag: '--linear-probe' is not known"),
    "worker": (["--dataset", "nowhere.npz", "--engines", "vmap"], "dataset: "),
}


@pytest.mark.parametrize(("argv", "message"), WRONG.values(), ids=WRONG)
def test_bad_input(argv, message, capfd):
    assert bench.main(argv) == 2
    error = capfd.readouterr().err
    assert error.startswith("error: " + message)
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "flag",
    [
        ["--no-symmetric"],
        *(
            pytest.param(flag, marks=pytest.mark.slow)
            for flag in (
                ["--views", "v1"],
                ["--no-feature-sharing"],
                ["--objective", "simclr"],
                ["--defence", "clip"],
                ["--dropout", "0.1"],
                ["--ressfl-lambda", "1"],
            )
        ),
    ],
)
def test_what_the_loop_does_not_do_is_not_compared(flag, npz, capfd):
    settings = {name: value for name, value in SMALL.items() if name != "queue_length"}
    argv = [*flags(dataset=npz, **settings), "--steps", "1", "--engines", "loop", *flag]
    assert bench.main(argv) == 2
    name = flag[0].removeprefix("--").removeprefix("no-").replace("-", "_")
    assert f"error: {name}: " in capfd.readouterr().err


def test_shapes_stand_in_for_small_images_where_there_are_more_clients():
    asked = [{"dataset": name, "clients": clients} for name in ("cifar10", "svhn") for clients in (50_000, 100_000)]
    assert [bench._with_enough(fields)["dataset"] for fields in asked] == ["cifar10", "shapes", "svhn", "svhn"]


@pytest.mark.parametrize("name", ["cpu-2-cores", "h200"])
def test_the_caption_speaks_of_the_rows_that_are_there(name):
    report = json.loads((ROOT / "benchmarks" / f"{name}.json").read_text(encoding="utf-8"))
    for table in tables(report):
        rows = list(table.columns[0].cells)
        assert ("the rest [ms]" in rows) == ("the rest: " in (table.caption or ""))


@pytest.mark.parametrize("name", ["cpu-2-cores", "h200"])
def test_every_figure_has_its_unit_beside_it(name):
    """In the heading of its column or of its row; ratios and counts have none."""
    report = json.loads((ROOT / "benchmarks" / f"{name}.json").read_text(encoding="utf-8"))
    for table in tables(report):
        unit = re.compile(r"\[(ms|s|h|MB|bytes|GFLOP/s|%)\]$")
        columns = [str(column.header) for column in table.columns]
        rows = list(table.columns[0].cells)
        by_rows = columns[0] == ""
        headings = [row for row in rows if "times as fast" not in row] if by_rows else columns[1:]
        assert headings
        assert all(map(unit.search, headings)), headings


def test_all_phases_of_a_step_have_a_row():
    """Attackers train in TAResSFL alone."""
    report = json.loads((ROOT / "benchmarks" / "cpu-2-cores.json").read_text(encoding="utf-8"))
    seconds = report["engines"]["fused"]["seconds"]
    seconds["attackers"] = seconds["server"]
    table = next(tables(report))
    rows = list(table.columns[0].cells)
    at = [rows.index(f"{phase} [ms]") for phase in ("server", "attackers", "client backward", "sync", "step")]
    assert at == sorted(at)


def test_a_worker_that_is_killed_is_one_line():
    with bench._Worker("engine", {"dataset": "shapes"}, "vmap") as worker:
        worker.process.kill()
        worker.process.wait()
        with pytest.raises(ValueError, match="ended with -9"):
            worker.step()
