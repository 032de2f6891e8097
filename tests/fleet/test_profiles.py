"""Device profiles: what was not measured is scaled as the formula says, and files of different kinds are not mixed."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from simsfl.cli.fleet import program
from simsfl.fleet.costs import _work_of_file
from simsfl.fleet.profile_files import about, files_of, read_profile, shipped
from simsfl.fleet.profiles import PASSES, PHASES, Profile, Work

NETWORK = {
    "arch": "resnet8",
    "width": 4,
    "image_size": 16,
    "norm": "group",
    "cut_layer": 1,
    "bottleneck": None,
    "client_residual": True,
    "weight_standardisation": True,
}
FIXED = dict(zip(PHASES, (2e-3, 3e-3, 1e-4, 3e-3, 5e-3, 2e-4, 3e-4), strict=True))
EACH = dict(zip(PHASES, (1e-7, 1e-9, 1e-8, 1e-9, 2e-9, 3e-8, 1e-8), strict=True))
"""Seconds of each phase in any case, and in proportion to its work."""


def work(cut=1, images=1, **more):
    fields = {"images": images, "pixels": 1024, "forward": 10**6 * cut, "backward": 2 * 10**6 * cut, "weights": 500}
    return Work(**fields | more, named={"arch": "resnet8", "cut_layer": cut})


def straight(own, fixed=1.0):
    """Return the seconds of some work on a device whose times are straight lines."""
    return {phase: fixed * FIXED[phase] + EACH[phase] * amount for phase, amount in own.amounts().items()}


def profile_of(*works, seconds=straight):
    return Profile("a board", [(own, seconds(own)) for own in works])


def test_times_on_a_line_are_found_between_and_beyond_the_measured_points():
    profile = profile_of(work(1), work(1, 8), work(3), work(3, 8, weights=900))
    assert profile.rule == "line"
    assert profile.error() < 0.01
    for other in (work(2, 4), work(3, 32, weights=900), work(2, 4, weights=700)):
        found = profile.times(other)
        assert found.source == "scaled"
        assert found.seconds == pytest.approx(straight(other))


def test_the_error_is_that_of_each_point_scaled_from_the_others():
    """A line through the others is that of `numpy.polyfit` with relative weights."""
    works = [work(1, images) for images in (1, 2, 4, 8)]
    uneven = dict(zip([1, 2, 4, 8], (1.0, 1.1, 0.95, 1.05), strict=True))
    profile = profile_of(*works, seconds=lambda own: straight(own, fixed=uneven[own.images]))
    assert profile.rule == "line"
    errors = []
    for left in works:
        others = [(own.amounts(), seconds) for own, seconds in profile.points if own is not left]
        found = {}
        for phase in PHASES:
            x, y = (np.array(values) for values in zip(*((a[phase], s[phase]) for a, s in others), strict=True))
            if phase in (*PASSES, "views"):
                found[phase] = np.polyval(np.polyfit(x, y, 1, w=1 / y), left.amounts()[phase])
            else:  # all have the same weights, so a line is a constant
                found[phase] = (1 / y).sum() / (1 / y**2).sum()
        (true,) = (seconds for own, seconds in profile.points if own is left)
        errors.append(abs(step(found) / step(true) - 1))
    assert profile.error() == pytest.approx(max(errors))


def step(seconds):
    return sum(seconds[phase] for phase in PHASES if phase != "sync")


def test_few_points_are_scaled_in_proportion_to_the_nearest():
    profile = profile_of(work(1), work(3, 8))
    assert profile.rule == "nearest"
    found = profile.times(work(3, 16)).seconds
    expected = straight(work(3, 8))
    assert found["backward"] == pytest.approx(2 * expected["backward"])
    assert found["sync"] == pytest.approx(expected["sync"])


def test_a_client_that_does_not_learn_has_no_backward_pass():
    profile = profile_of(work(1), work(1, 8), work(3), work(3, 8))
    found = profile.times(work(2, graded=0)).seconds
    assert found["backward"] == found["sgd"] == 0
    assert found["query"] == pytest.approx(straight(work(2, graded=0))["query"])
    frozen = profile_of(work(1, views=1), work(3, views=1))
    assert frozen.times(work(1)).seconds["key"] == pytest.approx(straight(work(1))["query"])


def test_a_published_speed_is_divided_into_operations():
    profile = Profile("a board", [], flops=1e9)
    found = profile.fitting(work(2, 3)).times(work(2, 3))
    assert found.source == "published"
    assert found.before == pytest.approx(2 * 3 * 2 * 10**6 / 1e9)
    assert found.after == pytest.approx(3 * 2 * 2 * 10**6 / 1e9)


def test_another_network_is_refused():
    profile = profile_of(work(1), replace(work(1), named={"arch": "resnet18", "norm": "batch"}))
    assert profile.fitting(work(3)).points == profile.points[:1]
    with pytest.raises(
        ValueError, match=r"^arch is resnet8 there, and vgg11 here; allowed: a profile of the run's arch"
    ):
        profile.fitting(replace(work(1), named={"arch": "vgg11"}))


def point(cut, dtype, times):
    """Return a point of a profile's file, whose seconds are some times `FIXED`."""
    return {
        "network": NETWORK | {"cut_layer": cut},
        "batch_size": 2,
        "dtype": dtype,
        "steps": 10,
        "seconds": {phase: {"median": times * FIXED[phase], "lowest": 0.0, "highest": 1.0} for phase in PHASES},
        "idle_watts": 1.0,
        "busy_watts": 2.0 + cut,
    }


def measured(path, *, cuts=(1,), dtypes=("fp32",), **more):
    """Write a profile as ``pi_bench.py`` does, and return its path."""
    points = [point(cut, dtype, cut) for cut in cuts for dtype in dtypes]
    texts = {"source": "measured", "date": "2026-01-01", "how": "measured", "meter": "ina226"}
    own = {"profile": 1, "device": "a board", "runtime": "torch", "threads": 1, "compile": False, "points": points}
    path.write_text(json.dumps(own | texts | {"energy_failed": False, "versions": {}, "board": {}} | more))
    return path


def test_a_profile_is_read_with_its_medians(tmp_path):
    found = read_profile([measured(tmp_path / "p.json", cuts=(1, 2))], _work_of_file)
    assert [own.named["cut_layer"] for own, _ in found.points] == [1, 2]
    assert found.points[1][1] == pytest.approx({phase: 2 * seconds for phase, seconds in FIXED.items()})
    assert (found.idle_watts, found.busy_watts) == (1.0, 3.5)
    (one,) = read_profile([measured(tmp_path / "p.json")], _work_of_file).points
    assert one[0].images == 2
    assert (one[0].views, one[0].graded) == (2, 1)


def test_figures_of_different_kinds_are_not_mixed(tmp_path):
    both = measured(tmp_path / "both.json", dtypes=("fp32", "bf16"))
    with pytest.raises(
        ValueError, match=r"of a board torch fp32 1 thread \(.*\) and a board torch bf16 1 thread \(.*both.json\);"
    ):
        read_profile([both], _work_of_file)
    assert len(read_profile([both], _work_of_file, "bf16").points) == 1
    with pytest.raises(ValueError, match=r"^dtype: 'bf61' is not known \(did you mean bf16\?\)"):
        read_profile([both], _work_of_file, "bf61")
    one = measured(tmp_path / "one.json")
    for more in ({"runtime": "lean"}, {"device": "another"}, {"threads": 2}, {"compile": True}):
        with pytest.raises(
            ValueError, match=r"of a board torch fp32 1 thread \(.*one\.json\) and .* \(.*other\.json\);"
        ):
            read_profile([one, measured(tmp_path / "other.json", **more)], _work_of_file)


def test_files_that_are_no_profiles_say_why(tmp_path):
    for more, message in (
        ({"profile": 2}, "profile: 2 is another format; allowed: 1"),
        ({"points": []}, "it has no points"),
        ({"threads": 0}, "threads: 0 is out of range"),
        ({"points": [point(1, "fp32", 0)]}, "query: it took no time"),
        ({"source": "guessed"}, "source: guessed is neither measured nor published"),
        ({"source": "published"}, "gflop_s: is missing"),
    ):
        with pytest.raises(ValueError, match=f"p.json is no result or profile of pi_bench.py .*{message}"):
            read_profile([measured(tmp_path / "p.json", **more)], _work_of_file)


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf"), 1e300, 10**400, "0.5", True])
def test_times_of_a_result_are_seconds(seconds, tmp_path):
    latency = {phase: {"mean": 0.1, "median": 0.1} for phase in PHASES}
    content = {"board": {"model": "a board"}, "trace": NETWORK | {"batch_size": 2}, "latency": latency, "energy": None}
    (file := tmp_path / "result.json").write_text(json.dumps(content))
    assert read_profile([file], _work_of_file).points[0][1]["views"] == 0.1
    latency["views"]["mean"] = seconds
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"result.json is no result or profile of pi_bench.py \(views.mean: .* is "):
        read_profile([file], _work_of_file)


@pytest.mark.parametrize(("text", "message"), [("[]", "a list is not an object"), ("{}", "'latency' is missing")])
def test_json_of_something_else_says_what_it_lacks(text, message, tmp_path):
    (file := tmp_path / "result.json").write_text(text)
    with pytest.raises(ValueError, match=rf"result.json is no result or profile of pi_bench.py \({message}\)"):
        read_profile([file], _work_of_file)


@pytest.mark.parametrize("name", shipped())
def test_what_comes_along_can_be_read(name):
    files = files_of(name, Path())
    profile, told = read_profile(files, _work_of_file), about(files)
    assert told["device"] == profile.device
    assert (told["source"] == "published") == (profile.flops is not None)
    assert told["source"] == "measured" or "github.com/" in told["how"]


def test_the_error_for_a_new_network_is_that_between_networks():
    """Each of three has its own line, so that points of one say nothing of another."""
    works = [work(cut, images) for cut in (1, 2, 3) for images in (1, 2, 4)]
    profile = profile_of(*works, seconds=lambda own: straight(own, fixed=own.named["cut_layer"]))
    known, new = profile.fitting(work(3, 8)), profile.fitting(work(4))
    assert (known.of_others, new.of_others) == (False, True)
    assert known.rule == "line of the network"
    assert known.error() == pytest.approx(0, abs=1e-6)
    assert known.times(work(3, 8)).seconds == pytest.approx(straight(work(3, 8), fixed=3))
    assert new.error() > 0.2


def test_names_of_what_comes_along_are_listed_and_suggested(tmp_path, capsys):
    with pytest.raises(SystemExit, match=r"^0$"):
        program.main(["--list"])
    assert set(shipped()) <= set(capsys.readouterr().out.split())
    assert files_of("own.json", tmp_path) == [tmp_path / "own.json"]
    with pytest.raises(ValueError, match=r"^name: 'raspbery-pi-4' is not known \(did you mean raspberry-pi-4\?\)"):
        files_of("raspbery-pi-4", tmp_path)
