"""``pi_bench.py --profile-out``: points take turns, medians are kept, and a fleet can read the file."""

import json
from types import SimpleNamespace

import pytest

from simsfl.fleet.costs import _work_of_file
from simsfl.fleet.profile_files import read_profile
from simsfl.fleet.profiles import PHASES
from simsfl.hw_profile.bench import grid
from simsfl.hw_profile.bench import program as pi_bench

NETWORK = {
    "image_size": 32,
    "arch": "resnet8",
    "width": 4,
    "norm": "group",
    "bottleneck": None,
    "client_residual": True,
    "weight_standardisation": True,
    "head": "mlp",
}
SECONDS = {(1, 1): [3.0, 1.0, 2.0], (1, 4): [9.0, 9.0, 7.0], (2, 1): [4.0, 6.0, 5.0], (2, 4): [8.0, 8.0, 8.0]}
"""What a phase takes in each measurement, by cut layer and batch size."""


def bench(*flags):
    """Run ``pi_bench.py`` on one thread, without a meter; return the exit code."""
    return pi_bench.main(["--threads", "1", "--dashboard", "off", "--meter", "none", *map(str, flags)])


@pytest.fixture
def measured(monkeypatch):
    """Let measurements return `SECONDS`; return the list of what is measured, in order."""
    done = []

    def replayed(trace, job, *rest):
        point = (trace.settings["cut_layer"], trace.settings["batch_size"])
        seconds = SECONDS[point][sum(one == (*point, job["dtype"]) for one in done)]
        done.append((*point, job["dtype"]))
        watts = {"below_zero": 0, "mean_watts": seconds, "idle_before": 1.0, "idle_after": 2.0, "label": "ina226 ±2%"}
        return {
            "board": {"model": "a board", "cores": 4},
            "versions": {"numpy": "2"},
            **{name: job[name] for name in ("runtime", "dtype", "threads", "compile")},
            "trace": NETWORK | {"cut_layer": point[0], "batch_size": point[1]},
            "steps": 10,
            "latency": {phase: {"median": seconds, "mean": 99.0} for phase in (*PHASES, "step")},
            "energy": watts,
            "energy_failed": False,
            "verified": {"activations": 0.0, "weights": 0.0, "tolerance": 1e-3},
        }

    written = {}
    monkeypatch.setattr(grid, "standard_trace", lambda file, settings: written.update({file: settings}))
    about = {"optimiser": {"precision": "fp32"}}
    monkeypatch.setattr(grid, "opened", lambda file: SimpleNamespace(path=file, settings=written[file], about=about))
    monkeypatch.setattr(grid, "replayed", replayed)
    return done


def test_points_take_turns_and_medians_are_kept(measured, tmp_path, capsys):
    file = tmp_path / "board.json"
    assert bench("--profile-out", file, "--cuts", "1,2", "--arch", "resnet8") == 0
    assert measured == [(*point, "fp32") for point in SECONDS] * 3
    content = json.loads(file.read_text())
    assert [own["seconds"]["query"] for own in content["points"]] == [
        {"median": 2.0, "lowest": 1.0, "highest": 3.0},
        {"median": 9.0, "lowest": 7.0, "highest": 9.0},
        {"median": 5.0, "lowest": 4.0, "highest": 6.0},
        {"median": 8.0, "lowest": 8.0, "highest": 8.0},
    ]
    assert content["meter"] == "ina226 ±2%"
    profile = read_profile([file], _work_of_file)
    assert [(own.named["cut_layer"], own.images) for own, _ in profile.points] == list(SECONDS)
    assert [seconds["sync"] for _, seconds in profile.points] == [2.0, 9.0, 5.0, 8.0]
    assert (profile.idle_watts, profile.busy_watts) == (1.5, 6.0)
    shown = capsys.readouterr().out
    assert "4 points, 3 times each: about " in shown
    assert "2000.00" in shown


def test_a_precision_is_one_more_axis(measured, tmp_path):
    file = tmp_path / "board.json"
    assert bench("--profile-out", file, "--cuts", 2, "--batches", 4, "--dtypes", "fp32,bf16", "--repeats", 2) == 0
    assert measured == [(2, 4, "fp32"), (2, 4, "bf16")] * 2
    assert len(read_profile([file], _work_of_file, "bf16").points) == 1


def test_what_differs_from_the_trace_is_no_profile(measured, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(grid, "difference_of", lambda result: "replay: what is computed here differs")
    assert bench("--profile-out", tmp_path / "board.json") == 1
    assert capsys.readouterr().err == "error: cut layer 1, batch 1, fp32: replay: what is computed here differs\n"
    assert not list(tmp_path.iterdir())


def test_mistakes_are_one_line(tmp_path, capsys):
    own = tmp_path / "own.json"
    own.write_text("mine")
    for flags, message in (
        (["--cuts", "1"], "cuts: has no effect on a single result; allowed: with --profile-out"),
        (["--repeats", "2"], "repeats: has no effect on a single result"),
        (["--cut-layer", "1"], "cut_layer: has no effect on a profile; allowed: --cuts"),
        (["--dtype", "bf16"], "dtype: has no effect on a profile; allowed: --dtypes"),
        (["--out", "x"], "out: has no effect on a profile; allowed: without --profile-out"),
        (["--cuts", "1,x"], "cuts: '1,x' are no counts; allowed: 1 or more, separated by commas"),
        (["--batches", "0"], "batches: '0' are no counts"),
        (["--dtypes", "fp23"], "dtypes: 'fp23' is not known (did you mean fp32?)"),
        (["--dtypes", "bf16", "--runtime", "lean"], "dtypes: lean computes in fp32, not bf16"),
        (["--arch", "resnet19"], "arch: 'resnet19' is not known (did you mean resnet"),
        (["--cuts", "99"], "cuts: 99 is out of range; allowed for resnet18: 1 to 9"),
        (["--batches", "51"], "batches: 51 is more than the client's images; allowed: 1 to 50"),
        (["--profile-out", own], f"profile_out: {own} was not written by simsfl"),
        (["--profile-out", tmp_path / "none" / "p.json"], "profile_out: "),
    ):
        alone = flags[0] in ("--profile-out",) or "single result" in message
        assert bench(*flags, *([] if alone else ["--profile-out", tmp_path / "p.json"])) == 2, flags
        error = capsys.readouterr().err
        assert error.startswith(f"error: {message}")
        assert error.count("\n") == 1
        assert [file.name for file in tmp_path.iterdir()] == ["own.json"]
    assert own.read_text() == "mine"


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["torch", "lean"])
def test_a_small_network_is_measured(runtime, tmp_path):
    file = tmp_path / "board.json"
    small = ("--arch", "resnet8", "--width", 4, "--cuts", 1, "--batches", "1,2", "--repeats", 2, "--seconds", 0.2)
    assert bench("--profile-out", file, "--runtime", runtime, *small) == 0
    profile = read_profile([file], _work_of_file)
    assert [own.images for own, _ in profile.points] == [1, 2]
    assert all(seconds[phase] > 0 for _, seconds in profile.points for phase in PHASES)
    for own in json.loads(file.read_text())["points"]:
        assert own["steps"] > 0
        spread = own["seconds"]["step"]
        assert spread["lowest"] <= spread["median"] <= spread["highest"]
