"""The figure of privacy against accuracy: runs of one setting are one point, and its text says what differs."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from simsfl import RunConfig
from simsfl.cli.report.privacy import privacy
from simsfl.cli.report.runs import Run
from simsfl.cli.report.settings import grouped
from simsfl.runs.history import History
from simsfl.runs.records import Scores


def _run(name, ssim=None, top1=50.0, mirrored=None, **fields):
    """Return a run with these fields, kNN accuracy, and SSIM of an attack by each name, also mirrored, or only so."""
    history = History()
    history.feed({"event": "evaluation", "round": 1, "knn_top1": top1})
    kinds = {"zeros": ssim or {}, "mirror": mirrored or {}}
    attacks = {
        title: SimpleNamespace(
            similarities={one: Scores(own[title], None) for one, own in kinds.items() if title in own}
        )
        for title in kinds["zeros"] | kinds["mirror"]
    }
    return Run(name, Path(name), RunConfig(**fields).to_dict(), {}, history, [0], None, attacks)


GROUPS = {
    "one run": ([{}], {"run-0": 1}),
    "seeds": ([{"seed": 0}, {"seed": 1}], {"2 seeds": 2}),
    "defences": (
        [{}, {"defence": "clip", "seed": 1}, {"defence": "clip"}, {"ressfl_lambda": 2.0}],
        {"none of these": 1, "clip": 2, "ressfl lambda 2": 1},
    ),
    "options": (
        [{"defence": "clip", "options": {"defence.norm": norm}} for norm in (1.0, 0.5)],
        {"norm 1": 1, "norm 0.5": 1},
    ),
}
"""Fields of runs, and the texts of their groups with the number of runs in each."""


@pytest.mark.parametrize(("fields", "groups"), GROUPS.values(), ids=GROUPS)
def test_runs_of_one_setting(fields, groups):
    runs = [_run(f"run-{number}", **own) for number, own in enumerate(fields)]
    assert {label: len(own) for label, own in grouped(runs).items()} == groups


def test_a_setting_is_one_point_for_each_attack():
    runs = [
        _run("a", {"custom": 0.2, "fsha-custom": 0.9}, 40.0, seed=0, defence="clip"),
        _run("b", {"custom": 0.4}, 44.0, seed=1, defence="clip"),
        _run("c", {"custom": 0.8}, 50.0),
        _run("d", {}, 60.0, objective="simclr"),
    ]
    figure = privacy(runs)
    points = [tuple(float(xy[0]) for xy in bar.lines[0].get_data()) for bar in figure.axes[0].containers]
    assert points == [pytest.approx(at) for at in ((0.3, 42.0), (0.9, 40.0), (0.8, 50.0))]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "clip",
        "no defence",
        "custom",
        "fsha-custom",
    ]


def test_similarities_of_two_conventions_are_never_on_one_axis():
    """Attacks of earlier versions have mirrored borders alone, and later ones have both."""
    new = _run("a", {"custom": 0.5}, 40.0, mirrored={"custom": 0.3})
    old = _run("b", {}, 44.0, mirrored={"custom": 0.2}, defence="clip")
    for runs, name, at in (([new], "zeros, as published", {0.5}), ([new, old], "mirrored", {0.3, 0.2})):
        (axis,) = privacy(runs).axes
        assert name in axis.get_xlabel()
        assert {float(bar.lines[0].get_data()[0][0]) for bar in axis.containers} == at
