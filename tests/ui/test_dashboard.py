"""The live view fits a small terminal, and shows the run's progress, curves, figures and devices."""

import io
import json
import re
from dataclasses import asdict, replace

import numpy as np
import pytest
from rich.console import Console

from simsfl.algorithm.wire import DeviceStatus
from simsfl.cli import run, watch
from simsfl.cli.report import program as report
from simsfl.runs.history import History
from simsfl.runs.metrics import Status
from simsfl.system.console import Output
from simsfl.ui.dashboard import LiveView, PlainView, _Sparkline, histogram, render
from simsfl.ui.fleet import _Bar
from simsfl.ui.status import time_left
from simsfl.ui.text import time_text
from tests.conftest import TINY, flags
from tests.fleet import made

CONFIG = {
    "preset": "paper",
    "method": "mocosfl",
    "dataset": "cifar10",
    "device": "cuda",
    "clients": 100_000,
    "cohort": 1000,
    "engine": "vmap",
    "precision": "bf16",
    "key_dim": 1024,
    "rounds": 20_000,
    "eval_every": 10,
    "ssim_borders": "zeros",
}
STATUS = Status(
    activity="linear probe 37/100",
    updated=0.0,
    round=1234,
    step=12,
    rounds=20_000,
    steps=500,
    seconds=98_765.4,
    step_seconds=0.1,
    client_steps_per_second=123_456.7,
    images_per_second=1_234_567.8,
    phase_seconds=dict.fromkeys(("data", "client forward", "server", "client backward", "sync", "evaluation"), 1.0),
    peak_memory_bytes=123_456_789_012,
    participation=[90_000, 5000, 3000, 1000, 500, 300, 100, 50, 40, 10],
)


def history(rounds=300, std=None):
    """Return the records of a run; evaluations have the spread of outputs `std`, or None as in older runs."""
    result, spread = History(), {} if std is None else {"output_std": std}
    result.feed({"event": "evaluation", "round": 0, "knn_top1": 17.1, "pixel_knn_top1": 35.7} | spread)
    for r in range(1, rounds + 1):
        result.feed({"event": "step", "round": r, "step": 1, "loss": 12.3456, "contrast_top1": 12.34})
        result.feed({"event": "evaluation", "round": r, "knn_top1": 17.1 + r / 10} | spread)
        result.feed(
            {
                "event": "round",
                "round": r,
                "loss": 12 - r / 100,
                "contrast_top1": r / 4,
                "bytes_up_per_client": 123_456_789 * r,
                "bytes_down_per_client": 12_345_678 * r,
                "communication": "B",
                "bytes_saved_per_client": 1_234_567 * r,
                "attackers_ssim_before": 0.4,
                "attackers_ssim": 0.35,
            }
        )
    return result


def drawn(width, height, *arguments):
    """Return the lines that `render` draws on a terminal of the given size."""
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None)
    console.print(render(*arguments))
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (200, 50)])
def test_it_fits_the_terminal(width, height):
    lines = drawn(width, height, CONFIG, history(std=0.0181), STATUS)
    assert len(lines) <= height - 1
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert "…" not in text
    for word in (
        "100,000 clients",
        "cohort 1,000",
        "1,234/20,000",
        "47.1 %",
        "best 47.1",
        "pixels 35.7",
        "57.9 % std 0.0181 of 0.0312",  # 1 / sqrt(1024) is 0.03125
        "bf16",
        "linear probe 37/100",
        "SSIM (zeros), was 0.400",
    ):
        assert word in text, word
    for phase in STATUS.phase_seconds:
        assert phase in text
    assert "123,457 clients/s" in text
    assert "37.0 GB up" in text


def test_the_untrained_network_is_never_the_best():
    curves = History()
    for round_, accuracy in enumerate([14.0, 12.5, 12.8, 12.1]):
        curves.feed({"event": "evaluation", "round": round_, "knn_top1": accuracy, "output_std": 0.02})
    assert curves.best_knn == 12.8
    assert "12.1 % best 12.8" in "\n".join(drawn(120, 40, CONFIG, curves, STATUS))


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40)])
def test_real_devices_are_shown_those_at_work_first(width, height):
    devices = [
        DeviceStatus(client, presence, 1_234_567, 123_456_789, 98_765_432, 0.0125, 0.0014, 1.2345)
        for client, presence in enumerate(["away"] * 4 + ["here"] * 3 + ["at work"] * 3, start=99_990)
    ]
    devices[-1] = replace(devices[-1], steps=0, step_seconds=None, compute_seconds=None, network_seconds=None)
    lines = drawn(width, height, CONFIG, history(), replace(STATUS, devices=devices))
    assert len(lines) <= height - 1
    assert max(map(len, lines)) <= width
    (title,) = [row for row, line in enumerate(lines) if "real devices: 6 of 10 there, 4 not shown" in line]
    rows = [line.strip("│ ").split() for line in lines[title + 2 : -1]]
    assert [row[0] for row in rows] == ["99,997", "99,998", "99,999", "99,994", "99,995", "99,996"]
    seen = ["at", "work", "1,234,567", "80.0", "123.5", "MB", "98.8", "MB", "1.4", "ms", "1234.5", "ms"]
    assert rows[0][1:] == seen
    assert rows[2][1:] == ["at", "work", "0", "-", "123.5", "MB", "98.8", "MB", "-", "-"]


GROUPS = {"boards": (90, 9, 0, None), "slow boards": (30, 20, 5, 0.456), "<phones>\n": (0, 0, 0, 1.0)}


def in_fleet(groups, rounds=3):
    """Return the records of a run with a fleet, whose rounds take 2,000 s each."""
    records = history(rounds=rounds, std=0.0181)
    for number in range(1, rounds + 1):
        records.feed(made.record(number, seconds=2000.0, **groups))
    return records


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40)])
def test_a_fleet_is_shown_in_the_room_that_is_left(width, height):
    """All other lines stay as they are, but for that of the training time, which has the fleet's beside it."""
    plain = drawn(width, height, CONFIG, history(rounds=3, std=0.0181), STATUS)
    lines = drawn(width, height, CONFIG, in_fleet(GROUPS), STATUS)
    assert len(lines) <= height - 1
    assert max(map(len, lines)) <= width
    assert [line for line in plain if line not in lines] == [next(line for line in plain if "training 27:" in line)]
    text = "\n".join(lines)
    assert "training 27:26:05  fleet 1:40:00" in text
    assert "fleet  6.00 Wh  server 1.50 Wh" in text
    assert "waits: computing 50 %, sending 25 %" in text
    bars = [line for line in lines if " came" in line]
    if height == 40:
        assert len(lines) == len(plain) + 4  # energy, and three groups
        assert "81 came 9 late 0 away" in " ".join(bars[0].split())
        assert "5 came 20 late 5 away battery 46 %" in " ".join(bars[1].split())
        assert "<phones>\\n" in bars[2]
    else:
        (bar,) = bars
        assert "86 came 29 late 5 away" in " ".join(bar.split())
        assert bar.startswith("all groups ")


def test_groups_without_room_are_one_row():
    groups = {f"group {number}": (10, number, 0, None) for number in range(9)}
    lines = drawn(100, 28, CONFIG, in_fleet(groups), STATUS)
    bars = [" ".join(line.split()) for line in lines if " came" in line]
    assert len(lines) == 27
    assert [bar.split("█")[0].strip() for bar in bars] == [
        *(f"group {n}" for n in range(len(bars) - 1)),
        f"{10 - len(bars)} others",
    ]
    counts = np.array([[int(word) for word in re.findall(r"(\d+) (?:came|late|away)", bar)] for bar in bars])
    assert counts.sum(axis=0).tolist() == [90 - 36, 36, 0]


def test_parts_of_a_bar_are_shares_of_those_drawn():
    console = Console(file=io.StringIO(), width=20)
    console.print(_Bar({"came": 10, "late": 5, "away": 5}))
    console.print(_Bar({"came": 0, "late": 0, "away": 0}))
    assert console.file.getvalue().split("\n") == ["█" * 10 + "▒" * 5 + "░" * 5, "", ""]


def test_lines_of_rounds_have_the_time_of_the_fleet():
    records, console = History(), Output(file=io.StringIO(), width=200)
    with PlainView(CONFIG, records, console) as view:
        for record in (*in_fleet(GROUPS, 2).fleet, *history(rounds=2).rounds):
            records.feed(record)
        view.show(STATUS)
    first, second = console.file.getvalue().splitlines()
    assert "  fleet 33:20  " in first
    assert "  fleet 1:06:40  " in second


def test_the_status_comes_back_from_its_file(tmp_path):
    status = replace(STATUS, devices=[DeviceStatus(3, "here", 1, 2, 3, None, 0.5, 0.25)])
    (tmp_path / "live.json").write_text(json.dumps(asdict(status)))
    assert Status.load(tmp_path / "live.json") == status


def test_replayed_steps_are_one_phase():
    status = replace(STATUS, phase_seconds={"data": 1.0, "capture": 2.0, "step": 9.0, "sync": 0.0})
    text = "\n".join(drawn(120, 40, CONFIG, history(), status))
    assert "step " in text
    assert "capture " in text
    assert "75 %" in text
    assert "client forward" not in text


def test_it_draws_before_anything_is_known():
    empty = replace(
        STATUS,
        round=0,
        step=0,
        seconds=0.0,
        step_seconds=None,
        client_steps_per_second=None,
        images_per_second=None,
        phase_seconds={},
        participation=[10],
    )
    for status in (None, empty):
        assert drawn(80, 24, CONFIG, History(), status)


def test_a_collapsed_network_is_shown_and_warned_of_once():
    """In both views, also of a resumed run that had collapsed before; nothing is said of an untrained network."""
    words = (
        "After round 1, outputs hardly differ from image to image: normalised, their standard deviation is 0.0001 of"
    )
    for std, times in ((0.0001, 1), (0.0181, 0), (None, 0)):
        assert ("outputs almost the same" in "\n".join(drawn(80, 24, CONFIG, history(std=std), STATUS))) == (times > 0)
        for kind in (PlainView, LiveView):
            records, console = History(), Output(file=io.StringIO(), width=80, height=24)
            with kind(CONFIG | {"rounds": 9}, records, console) as view:
                view.show(STATUS)
                for record in history(rounds=4, std=std).evaluations + history(rounds=4, std=std).rounds:
                    records.feed(record)
                    view.show(STATUS)
            assert console.file.getvalue().count(words) == times, kind
    console = Output(file=io.StringIO(), width=80)
    with PlainView(CONFIG | {"rounds": 9}, history(rounds=4, std=0.0), console) as view:  # of a resumed run
        view.show(STATUS)
    assert console.file.getvalue() == ""
    untrained = History()
    untrained.feed({"event": "evaluation", "round": 0, "knn_top1": 17.1, "output_std": 0.0})
    assert "outputs almost the same" not in "\n".join(drawn(80, 24, CONFIG, untrained, STATUS))


def test_the_first_evaluation_is_announced_until_there_is_one():
    """That of the untrained network comes earlier, and is no evaluation of what is learnt."""
    started = History()
    started.feed({"event": "step", "round": 1, "step": 1, "loss": 7.0, "contrast_top1": 1.0})
    untrained = history(rounds=0)
    for every, rounds, first in ((10, 20_000, "10"), (0, 20_000, "20,000"), (50, 7, "7")):
        config = CONFIG | {"eval_every": every, "rounds": rounds}
        for records, value in ((started, "kNN  "), (untrained, "17.1 % untrained, pixels 35.7")):
            (line,) = (line for line in drawn(80, 24, config, records, STATUS) if line.startswith("kNN"))
            assert value in line
            assert f"first evaluation after round {first}" in line
            assert "-" not in line
    assert "first evaluation" not in "\n".join(drawn(80, 24, CONFIG, history(rounds=1), STATUS))


@pytest.mark.parametrize("width", [80, 120])
def test_the_queue_is_shown_while_it_fills(width):
    for share, activity, shown in (
        (0.379, "training", "training, queue filling 37 %"),
        (0.9999, "training", "training, queue filling 99 %"),
        (1.0, "training", ""),
        (None, "training", ""),
        (0.5, "finished", ""),
    ):
        status = replace(STATUS, queue_filled=share, activity=activity, round=4)
        text = "\n".join(drawn(width, 24, CONFIG, history(), status))
        assert shown in text
        assert ("queue filling" in text) == bool(shown)
        records, console = history(rounds=2), Output(file=io.StringIO(), width=80)
        with PlainView(CONFIG, records, console) as view:
            for record in history(rounds=4).rounds[2:]:
                records.feed(record)
            view.show(status)
        lines = console.file.getvalue().splitlines()
        expected = [False, bool(shown)]  # how it was at the end of earlier rounds is not known
        assert [shown.removeprefix("training, ") in line and "queue" in line for line in lines] == expected


def test_histogram_keeps_every_client():
    for counts in ([5], [1, 2, 3], list(range(40))):
        bins = histogram(counts)
        assert len(bins) <= 6
        assert sum(count for _, count in bins) == sum(counts)
    assert histogram([7, 1]) == [("0", 7), ("1", 1)]


def test_sparkline_spans_its_range():
    console = Console(file=io.StringIO(), width=4)
    console.print(_Sparkline([0, 1, 2, 3], "red"))
    assert console.file.getvalue().strip() == "▁▃▆█"
    console = Console(file=io.StringIO(), width=3)
    console.print(_Sparkline([5.0] * 9, "red"))
    assert console.file.getvalue().strip() == "▁▁▁"


def test_times():
    assert [time_text(s) for s in (0, 59.6, 61, 3600 * 30 + 5)] == ["0:00", "1:00", "1:01", "30:00:05"]
    status = replace(STATUS, round=1, step=0, steps=10, rounds=3, step_seconds=2.0)
    assert time_left(replace(status, phase_seconds={"server": 10.0})) == pytest.approx(40)
    assert time_left(replace(status, phase_seconds={"server": 10.0, "evaluation": 5.0})) == pytest.approx(60)


def test_a_terminal_that_knows_ascii_only():
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    Console(file=file, width=80, force_terminal=True).print(render(CONFIG, history(), STATUS))
    file.flush()
    assert b"47.1 %" in file.buffer.getvalue()


@pytest.mark.parametrize("content", ["{}", "[]", "5", "{", '{"activity": "finished"}'])
def test_a_damaged_status_is_refused(content, tmp_path):
    assert Status.load(tmp_path / "live.json") is None  # there is none yet
    for damaged in (content, json.dumps(asdict(STATUS) | {"updated": "x"})):
        (tmp_path / "live.json").write_text(damaged)
        with pytest.raises(ValueError, match=r"live: .*live.json is damaged"):
            Status.load(tmp_path / "live.json")
    (tmp_path / "live.json").write_text(json.dumps(asdict(STATUS)))
    assert Status.load(tmp_path / "live.json") == STATUS


def test_live_watch_and_report_of_a_real_run(npz, tmp_path, capfd):
    out = tmp_path / "run"
    assert run.main(flags(dataset=npz, out=out, **TINY, dashboard="on")) == 0
    output = capfd.readouterr().out
    assert "time per phase" in output
    assert watch.main([str(out), "--once"]) == 0
    watched = capfd.readouterr().out
    assert "finished" in watched
    assert "3/3" in watched
    other = tmp_path / "other"
    assert run.main(flags(dataset=npz, out=other, **(TINY | {"seed": 3}), dashboard="off")) == 0
    assert report.main([str(out)]) == 0
    assert report.main([str(out), str(other), "--out", str(tmp_path / "both")]) == 0
    for page, figures in ((out, 4), (tmp_path / "both", 7)):
        text = (page / "report.md").read_text()
        pictures = sorted((page / "figures").glob("*.png"))
        assert len(pictures) == figures
        for picture in pictures:
            assert f"figures/{picture.name}" in text
    knn = json.loads((out / "summary.json").read_text())["knn_top1"]
    assert f"{knn:.2f}" in (out / "report.md").read_text()
