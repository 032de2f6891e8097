"""The report of runs with any names: nothing overwrites anything, and everything says what it is of."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from markdown_it import MarkdownIt  # which rich needs

from simsfl import Simulation
from simsfl.cli import run
from simsfl.cli.report import cells, figures
from simsfl.cli.report import program as report
from simsfl.cli.report.cells import table_of_runs
from simsfl.cli.report.runs import Run, read_run, unique_names
from simsfl.cli.report.settings import grouped, summary_table
from simsfl.config import RunConfig
from simsfl.data import make_dataset
from simsfl.evaluation.encoding import embed
from simsfl.runs.history import History
from simsfl.runs.records import AttackRecord, Scores, to_json
from simsfl.system.messages import count_text
from tests.conftest import TINY, flags


@pytest.fixture(scope="module")
def trained(npz, tmp_path_factory):
    """Return the directory of a finished run."""
    out = tmp_path_factory.mktemp("trained") / "run"
    assert run.main(flags(dataset=npz, out=out, **TINY | {"rounds": 1}, dashboard="off")) == 0
    return out


@pytest.mark.slow
def test_names_of_any_letters(trained, tmp_path, monkeypatch):
    """Each run has figures of its own, a column and lines in legends, whatever file names leave out."""
    paths = [tmp_path / name for name in ("läufer-ä", "läufer-ö", "实验一", "a|b_n", "$x$", "x" * 250)]
    for path in paths:
        shutil.copytree(trained, path)
    drawn = {}
    monkeypatch.setattr(report, "save", lambda drawn_, *how: (drawn.update(drawn_), figures.save(drawn_, *how)))
    monkeypatch.setattr(figures, "FEW", len(paths))
    out = tmp_path / "all of them"
    assert report.main([*map(str, paths), "--out", str(out)]) == 0
    files = sorted(path.name for path in (out / "figures").iterdir())
    assert len(files) == 1 + 3 * len(paths)
    tokens = [t for t in MarkdownIt("commonmark").enable("table").parse((out / "report.md").read_text()) if t.children]
    shown_files = [c.attrs["src"] for t in tokens for c in t.children if c.type == "image"]
    assert sorted(unquote(file).removeprefix("figures/") for file in shown_files) == files
    texts = ["".join(child.content for child in token.children) for token in tokens]
    assert texts[1 : 1 + len(paths)] == [path.name for path in paths]
    assert "Test features of $x$, two principal components" in texts
    (legend,) = drawn["curves"][1].legends
    assert len(legend.get_texts()) == len(paths) + 1  # that of raw pixels


def test_many_runs_have_a_directory_and_few_figures_of_their_own(trained, tmp_path, monkeypatch, capsys):
    paths = [tmp_path / name for name in "abcd"]
    for path in paths:
        shutil.copytree(trained, path)
    before = sorted(path.name for path in paths[0].iterdir())
    monkeypatch.chdir(tmp_path)
    assert report.main([*map(str, paths), "--format", "svg,pdf"]) == 0
    first, last = capsys.readouterr().out.splitlines()
    assert first == "drawing figures of 4 runs"
    assert last.startswith("wrote reports/")
    (out,) = (tmp_path / "reports").iterdir()
    assert {path.name for path in (out / "figures").iterdir()} == {"curves.svg", "curves.pdf"}
    page = (out / "report.md").read_text()
    assert "(figures/curves.svg)" in page
    assert "in reports of 3 runs at most" in page
    assert sorted(path.name for path in paths[0].iterdir()) == before
    assert report.main([*map(str, paths), "--format", "svg,jpg"]) == 2
    assert "format: 'jpg' is not known" in capsys.readouterr().err


def _made(seed, losses, knn, **fields):
    """Return a run of two rounds with these losses of its steps, kNN accuracies after each round, and fields."""
    history, half = History(), len(losses) // 2
    for number, top1 in enumerate(knn, start=1):
        history.feed({"event": "evaluation", "round": number, "knn_top1": top1})
        sent = {"bytes_up_per_client": 1e6 * number, "bytes_down_per_client": 0}
        history.feed({"event": "round", "round": number, "loss": losses[-1], **sent})
    config = RunConfig(seed=seed, **fields).to_dict()
    return Run(f"{seed}-{fields}", Path("none"), config, {}, history, [0, half, len(losses)], None, {}, (), losses)


def test_seeds_of_a_setting_are_a_curve_with_a_band_and_a_row():
    made = ((0, [1.0, 2.0], (40, 50), 0.1), (1, [3.0, 4.0], (42, 56), 0.1), (0, [9.0, 9.0], (30, 30), 0.2))
    settings = grouped([_made(seed, losses, knn, lr=rate) for seed, losses, knn, rate in made])
    figure = figures._curves(settings, spread=False)
    loss, knn = figure.axes[0], figure.axes[2]
    mean = next(line for line in loss.lines if line.get_label() == "lr 0.1")
    assert mean.get_xydata().tolist() == [[1, 2], [2, 3]]
    assert [line.get_ydata().tolist() for line in knn.lines] == [[41, 53], [30, 30]]
    (band,) = knn.collections  # of the setting with two seeds
    assert band.get_datalim(knn.transData).intervaly == pytest.approx([41 - 2**0.5, 53 + 18**0.5])
    table = summary_table(settings)
    cells = [list(column.cells) for column in table.columns]
    assert cells[:5] == [
        ["lr 0.1", "lr 0.2"],
        ["0, 1 (2 unfinished)", "0 (1 unfinished)"],
        ["2", "2"],
        ["3.000 ± 1.414", "9.000"],
        ["53.00 ± 4.24", "30.00"],
    ]


def _follows(rate, name, clients_have=None):
    """Return a run whose clients have a rate of their own, or one that follows from the server's by rule."""
    resolved = {"rounds": 2, "cohort": 5, "batch_size": 1, "lr": rate}
    run = _made(0, [1.0, 1.0], (1, 1), **resolved, client_lr=rate if clients_have is None else clients_have)
    return replace(run, by_rule=("client_lr",) if clients_have is None else (), name=name)


def _names(*runs):
    """Return the names of the runs of each setting, by its label."""
    return {label: [run.name for run in own] for label, own in grouped(runs).items()}


def test_names_have_what_users_set_alone():
    """The rate of clients follows from the server's by rule, and one seed twice is no repetition."""
    first, *others = _follows(0.1, "a"), _follows(0.2, "b"), _follows(0.2, "c")
    assert _names(first, *others) == {"lr 0.1": ["a"], "lr 0.2, b": ["b"], "lr 0.2, c": ["c"]}
    frozen = _follows(0.1, "d", clients_have=0.0)
    assert _names(first, others[0], frozen) == {"lr 0.1": ["a"], "lr 0.2": ["b"], "lr 0.1, client lr 0": ["d"]}
    assert _names(first, frozen) == {"client lr 0.1": ["a"], "client lr 0": ["d"]}


def test_fields_that_follow_from_others_are_not_what_runs_differ_in():
    rows = {row[0] for row in table_of_runs([_follows(0.1, "a"), _follows(0.2, "b")])}
    assert "lr" in rows
    assert "client lr" not in rows
    assert "client lr" in {row[0] for row in table_of_runs([_follows(0.1, "a"), _follows(0.1, "b", 0.0)])}


def test_unique_names():
    names = unique_names(list(map(Path, ("/a/run", "/b/run", "/c/run-1", "/a/u\u0308", "/b/\u00fc", "/d/run"))))
    assert names == ["run-2", "run-3", "run-1", "\u00fc-1", "\u00fc-2", "run-4"]


def test_links_to_pictures_in_directories_of_any_name(trained, tmp_path):
    path = tmp_path / "a (run) of 50 %"
    shutil.copytree(trained, path)
    (path / "attacks").mkdir()
    scores = {score: Scores(0.5, None) for score in ("mse", "ssim", "psnr")}
    found = AttackRecord("custom", 0.01, 50, 0, 8, [0], 2, **scores, by_seed={}, mean_image_mse=0.1, training=[])
    (path / "attacks" / "custom.json").write_text(json.dumps(to_json(found)))
    assert report.main([str(path), "--out", str(tmp_path / "elsewhere")]) == 0
    tokens = MarkdownIt("commonmark").parse((tmp_path / "elsewhere" / "report.md").read_text())
    links = [unquote(c.attrs["src"]) for t in tokens for c in t.children or () if c.type == "image"]
    assert links[-1] == "../a (run) of 50 %/attacks/custom.png"


def test_features_are_those_of_images_of_all_classes(arrays, config, monkeypatch):
    """They are drawn from the seed: in the files of directories, images are in the order of their classes."""
    order = np.argsort(arrays.test_y, kind="stable")
    by_class = replace(arrays, test_x=arrays.test_x[order], test_y=arrays.test_y[order])
    monkeypatch.setattr(figures, "_PCA_IMAGES", 12)
    drawn = []

    def record(encode, images, rows):
        drawn.append(rows.tolist())
        return embed(encode, images, rows)

    monkeypatch.setattr(figures, "embed", record)
    for seed in (0, 0, 1):
        figures._features(Simulation(replace(config, seed=seed), make_dataset("sorted", "made up", by_class)))
    assert drawn[0] == drawn[1] != drawn[2]
    for rows in drawn:
        assert len(set(rows)) == 12
        assert set(by_class.test_y[rows]) == {0, 1, 2}


def test_features_of_a_collapsed_network_have_no_variance(config, black):
    simulation = Simulation(replace(config, rounds=1), black)
    assert figures._features(simulation).axes[0].get_xlabel() == "first component (0 % of variance)"


def test_the_table_says_in_what_runs_differ(trained, npz, tmp_path, capsys):
    other = tmp_path / "other"
    settings = {name: value for name, value in TINY.items() if name != "queue_length"} | {"rounds": 1}
    chosen = ["--objective", "simclr", "--objective.temperature", "0.3", "--defence", "clip+gaussian", "--seed", "1"]
    assert run.main([*flags(dataset=npz, out=other, **settings, dashboard="off"), *chosen]) == 0
    assert report.main([str(trained), str(other), "--out", str(tmp_path / "both")]) == 0
    page = (tmp_path / "both" / "report.md").read_text()
    rows = {cells[0]: cells[1:] for line in page.splitlines() if len(cells := line.strip("| ").split(" | ")) == 3}
    assert rows["objective"] == ["-", "simclr"]
    assert rows["defence"] == ["-", "clip+gaussian"]
    assert rows["options"] == ["-", "objective.temperature 0.3"]
    assert not {"aggregation", "dropout", "device"} & rows.keys()
    assert rows["up, down per client"][0].count("kB") == 2


def test_the_table_of_settings_names_the_convention_of_each_similarity():
    """Attacks of earlier versions have mirrored borders, and are no repetitions of those that pad with zeros."""
    scores = {score: Scores(0.5, None) for score in ("mse", "psnr")}
    base = AttackRecord(
        "custom", 0.01, 50, 0, 8, [0], 2, ssim=Scores(0.25, None), **scores, by_seed={}, mean_image_mse=0.1, training=[]
    )
    now = replace(base, ssim_borders="zeros", ssim=Scores(0.75, None), ssim_mirrored=Scores(0.25, None))
    runs = [replace(_made(seed, [1.0], (1,)), attacks={"custom": one}) for seed, one in enumerate((now, base))]
    table = summary_table({"all": runs})
    cells = {str(column.header): list(column.cells) for column in table.columns}
    assert cells["SSIM (zeros, as published) of custom"] == ["0.750"]
    assert cells["SSIM (mirrored) of custom"] == ["0.250"]
    assert cells["MSE of custom"] == ["0.500 ± 0.000"]


@pytest.mark.parametrize(("borders", "name"), [("zeros", "SSIM (zeros, as published)"), ("mirror", "SSIM (mirrored)")])
def test_the_figure_of_simulated_attackers_names_the_convention_of_its_similarity(borders, name):
    run = _made(0, [1.0, 2.0], (1, 2), ressfl_lambda=1.0, ssim_borders=borders)
    for record in run.history.rounds:
        record |= {"attackers_ssim": 0.4, "attackers_ssim_before": 0.3}
    left, right = figures._taressfl(grouped([run])).axes
    assert left.get_ylabel() == f"{name}\nof the attackers"
    assert right.get_xlabel() == f"{name} of the attackers"


def test_absences_are_counted_in_the_summary_and_in_the_report(trained, npz, tmp_path):
    """Their counts are those of the draws (tests/rounds/test_traffic.py); a run in which none was says nothing."""
    out = tmp_path / "away"
    settings = TINY | {"rounds": 2, "dropout": 0.4, "straggler": 0.5, "seed": 1}
    assert run.main(flags(dataset=npz, out=out, **settings, dashboard="off")) == 0
    summary = json.loads((out / "summary.json").read_text())
    counts = summary["absences"]
    plans = [Simulation.load(out).parts.plan(number).absences for number in range(2)]
    assert counts["rounds_missed"] == sum(len(one.missing) for one in plans)
    assert counts["rounds_slow"] == sum(len(one.slow) for one in plans) > 0
    assert counts["steps_missed"] == sum(len(one.in_step(s)) for one in plans for s in range(5))
    column = cells._cells(read_run(out, "away"), [])
    assert column["absent clients"] == (
        f"missed {count_text(counts['rounds_missed'], 'round')}, slow in {counts['rounds_slow']}; "
        f"{counts['steps_missed']} of 30 client steps missed"
    )
    assert "absent clients" not in cells._cells(read_run(trained, "all come"), [])
    older = {name: value for name, value in summary.items() if name not in ("absences", "sha256")}
    (out / "summary.json").write_text(json.dumps(older))  # as an earlier version wrote it
    assert "absent clients" not in cells._cells(read_run(out, "not counted"), [])
