"""Trackers have every record of a run once, however it was interrupted, and never stop it."""

import csv
import errno
import json
from contextlib import suppress
from importlib.util import find_spec
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from simsfl.cli import run
from simsfl.cli.track import images
from simsfl.cli.track import program as track
from simsfl.config.catalogue import TRACKERS, TrackerKind
from simsfl.config.registry import Code
from simsfl.runs.records import AttackRecord, Scores, to_json
from simsfl.runs.tracking import Tracked, Tracker, csv_files, tensorboard_events
from simsfl.runs.tracking.feed import Feed
from simsfl.runs.tracking.rows import EVENTS, Row, Rows
from tests.conftest import TINY, flags
from tests.fleet import made

STEPS = 5
"""Steps in a round of a run of `TINY`."""


def needs(package, *, slow=True):
    """Return the marks of a test with a tracker that needs a package, which may be missing."""
    missing = pytest.mark.skipif(find_spec(package) is None, reason=f"{package} is not installed")
    return [missing, pytest.mark.slow] if slow else [missing]


@pytest.fixture
def quick(monkeypatch):
    """Have a single small image instead of figures, which take long to draw."""

    def draw(place, directory, simulation=None):
        Image.new("RGB", (4, 3), "red").save(place / "red.png")
        return {"figures/red": place / "red.png"}

    for module in (images, track):
        monkeypatch.setattr(module, "draw_into", draw)


def lines_of(file):
    """Return the lines of a table, as dicts."""
    with file.open(newline="") as table:
        return list(csv.DictReader(table))


def argv(npz, out, names, **more):
    """Return the flags of a run whose averagings are recorded, with trackers."""
    return flags(dataset=npz, out=out, track=names, measure_divergence=True, dashboard="off", **TINY | more)


def records(out):
    """Return the records in ``metrics.jsonl``."""
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def expected(out):
    """Return the curves that trackers should have, by name, as lists of steps and values; from ``metrics.jsonl``."""
    curves = {}
    for record in records(out):
        of_step = record["event"] in ("step", "sync")
        steps = (record["round"] - 1) * STEPS + record["step"] if of_step else record["round"] * STEPS
        own = {f"{record['event']}/{name}": value for name, value in record.items() if name not in ("round", "step")}
        if record["event"] == "probe":
            own = {f"probe/{record['kind']}/{name}": record[name] for name in ("top1", "best_top1")}
        for name, value in zip(("mean", "worst_tenth", "std"), record.get("clients_top1") or (), strict=False):
            own[f"evaluation/clients_top1_{name}"] = value
        for name, value in own.items():
            if isinstance(value, int | float):
                curves.setdefault(name, []).append((steps, value))
    return curves


def of_tensorboard(out):
    """Return the curves in a run's event files."""
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    read = events.EventAccumulator(str(out / "tensorboard"), size_guidance={events.SCALARS: 0, events.IMAGES: 0})
    read.Reload()
    return {name: [(one.step, one.value) for one in read.Scalars(name)] for name in read.Tags()["scalars"]}


def of_csv(out):
    """Return the curves in a run's tables."""
    curves = {}
    for event in EVENTS:
        if (file := out / "csv" / f"{event}.csv").exists():
            for line in lines_of(file):
                begin = f"{event}/{line['kind']}" if event == "probe" else event
                for name, value in list(line.items())[2:]:
                    if value and name not in ("kind", "features", "communication"):
                        curves.setdefault(f"{begin}/{name}", []).append((int(line["steps"]), float(value)))
    return curves


def wandb_records(file):
    """Yield the records of a file of Weights & Biases: LevelDB's format of logs, after seven bytes."""
    content, at, whole = file.read_bytes(), 7, b""
    while at < len(content):
        if (left := 32768 - at % 32768) < 7:  # no header fits into the rest of the block
            at += left
            continue
        size, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        whole += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield whole
            whole = b""


def of_wandb(out):
    """Return the curves in the files of all sessions of a run of Weights & Biases, which ``wandb sync`` joins."""
    from wandb.proto import wandb_internal_pb2  # noqa: PLC0415  (an extra)

    curves, ids, numbers = {}, set(), []
    for file in sorted(out.glob("wandb/offline-run-*/*.wandb")):
        for data in wandb_records(file):
            record = wandb_internal_pb2.Record.FromString(data)
            if record.HasField("run"):
                ids.add(record.run.run_id)
            line = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            if line:
                numbers.append(line["_step"])
            for name, value in line.items():
                if "/" in name and not name.startswith("figures/"):
                    curves.setdefault(name, []).append((line["steps"], value))
    assert len(ids) == 1
    assert numbers == list(range(len(numbers)))
    return curves


def of_mlflow(out):
    """Return the curves in a run's database, which has that run alone."""
    from mlflow import MlflowClient  # noqa: PLC0415  (an extra)

    client = MlflowClient(f"sqlite:///{out}/mlflow/mlflow.db")
    experiment = client.get_experiment_by_name("simsfl")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert found.data.params["cohort"] == "3"
    assert "figures" in {file.path for file in client.list_artifacts(found.info.run_id)}
    names = found.data.metrics
    return {name: [(m.step, m.value) for m in client.get_metric_history(found.info.run_id, name)] for name in names}


READERS = {"tensorboard": of_tensorboard, "csv": of_csv, "wandb": of_wandb, "mlflow": of_mlflow}
ALL = [
    pytest.param("tensorboard", marks=needs("tensorboard", slow=False)),
    "csv",
    pytest.param("wandb", marks=needs("wandb")),
    pytest.param("mlflow", marks=needs("mlflow")),
]


def assert_tracked(name, out):
    """Raise an AssertionError unless a tracker has the curves of a finished run, each point once."""
    found, wanted = READERS[name](out), expected(out)
    assert {tag for tag in found if tag.startswith("summary/")} >= {"summary/seconds", "summary/peak_memory_bytes"}
    assert {tag for tag in found if not tag.startswith("summary/")} == set(wanted)
    for tag, curve in wanted.items():
        assert sorted(found[tag]) == sorted((steps, pytest.approx(value, rel=1e-6)) for steps, value in curve), tag


class Killed(RuntimeError):
    """Ends a run as if it had been killed: no checkpoint is written."""


def killed_at(number):
    """Return a replacement of `Feed.take` that ends the run at the record with this number, after taking it."""
    taken = []

    def take(feed, record, before=Feed.take):
        before(feed, record)
        taken.append(record)
        if len(taken) == number:
            feed._hand_over()
            raise Killed

    return take


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", ALL)
def test_a_run_that_is_killed_and_goes_on_is_the_same_run_without_a_step_twice(name, npz, tmp_path, monkeypatch):
    """Killed twice, in the first round and after the second, and each time some records are made again."""
    out = tmp_path / "run"
    begin = argv(npz, out, name, checkpoint_every=2, linear_probe=True)
    for flagged, number in ((begin, 6), (["--resume", str(out), "--dashboard", "off"], 20)):
        with monkeypatch.context() as patched:
            patched.setattr(Feed, "take", killed_at(number))
            with pytest.raises(Killed):
                run.main(flagged)
    assert run.main(["--resume", str(out), "--dashboard", "off"]) == 0
    assert_tracked(name, out)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", ALL)
def test_finished_runs_are_converted_and_again_without_a_change(name, npz, tmp_path, capfd):
    outs = [tmp_path / "one", tmp_path / "two"]
    for out, seed in zip(outs, (0, 1), strict=True):
        assert run.main(argv(npz, out, "csv", seed=seed, rounds=1)) == 0
    capfd.readouterr()
    for _ in range(2):
        assert track.main([*map(str, outs), "--track", name]) == 0
        assert capfd.readouterr().err == ""
        for out in outs:
            assert_tracked(name, out)


@pytest.mark.slow
def test_tensorboard_has_the_config_and_the_images(npz, tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    out = tmp_path / "run"
    assert run.main(argv(npz, out, "tensorboard")) == 0
    read = events.EventAccumulator(str(out / "tensorboard"))
    read.Reload()
    (config,) = read.Tensors("config/text_summary")
    config = json.loads(config.tensor_proto.string_val[0].decode().strip("`\n"))
    assert config == json.loads((out / "config.json").read_text())["config"]
    assert set(read.Tags()["images"]) >= {f"figures/{name}" for name in ("curves", "partition", "views", "features")}
    (picture,) = read.Images("figures/partition")
    assert picture.encoded_image_string.startswith(b"\x89PNG")
    assert (picture.width, picture.height) == (1200, 1200)  # 6 inches, at 200 dots per inch
    assert picture.step == 3 * STEPS


def sheets_of_tensorboard(out):
    """Return the sheets of reconstructions in a run's event files, by name, as arrays of pixels."""
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    read = events.EventAccumulator(str(out / "tensorboard"))
    read.Reload()
    found = {name: read.Images(name) for name in read.Tags()["images"] if name.startswith("reconstructions/")}
    return {name: pixels(BytesIO(one.encoded_image_string)) for name, (one,) in found.items()}


def sheets_of_wandb(out):
    """Return the sheets of reconstructions in the files of a run of Weights & Biases, by name, as arrays of pixels."""
    files = sorted(out.glob("wandb/offline-run-*/files/media/images/reconstructions/*.png"))
    found = {f"reconstructions/{file.name.split('_')[0]}": pixels(file) for file in files}
    assert len(found) == len(files)
    return found


def sheets_of_mlflow(out):
    """Return the sheets of reconstructions among the files of a run of MLflow, by name, as arrays of pixels."""
    files = out.glob("mlflow/artifacts/*/artifacts/reconstructions/*.png")
    return {f"reconstructions/{file.stem}": pixels(file) for file in files}


def pixels(file):
    """Return the pixels of an image."""
    with Image.open(file) as picture:
        return np.asarray(picture.convert("RGB")).tolist()


@pytest.mark.parametrize(
    ("name", "sheets"),
    [
        pytest.param("tensorboard", sheets_of_tensorboard, marks=needs("tensorboard", slow=False)),
        pytest.param("wandb", sheets_of_wandb, marks=needs("wandb")),
        pytest.param("mlflow", sheets_of_mlflow, marks=needs("mlflow")),
    ],
)
def test_sheets_of_attacks_are_images(name, sheets, npz, tmp_path, monkeypatch):
    """Attacks come after the run, so its trackers get their sheets later, each once."""
    monkeypatch.setattr(images, "draw", lambda runs: {})
    out = tmp_path / "run"
    assert run.main(argv(npz, out, "csv", rounds=1)) == 0
    (out / "attacks").mkdir()
    scores = {score: Scores(0.5, None) for score in ("mse", "ssim", "psnr")}
    attack = AttackRecord("custom", 0.01, 50, 0, 8, [0], 2, **scores, by_seed={}, mean_image_mse=0.1, training=[])
    (out / "attacks" / "custom.json").write_text(json.dumps(to_json(attack)))
    Image.effect_noise((40, 30), 90).convert("RGB").save(out / "attacks" / "custom.png")
    for _ in range(2):
        assert track.main([str(out), "--track", name]) == 0
        assert sheets(out) == {"reconstructions/custom": pixels(out / "attacks" / "custom.png")}


def test_records_that_are_damaged_are_given_to_no_tracker(npz, tmp_path, capsys):
    out = tmp_path / "run"
    assert run.main(flags(dataset=npz, out=out, dashboard="off", **TINY | {"rounds": 1})) == 0
    (out / "summary.json").unlink()
    (out / "metrics.jsonl").write_text((out / "metrics.jsonl").read_text() + "{}\n")
    before = sorted(out.rglob("*"))
    assert track.main([str(out), "--track", "csv"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: metrics: {out}/metrics.jsonl holds no record before byte ")
    assert sorted(out.rglob("*")) == before


def test_a_flag_that_is_misspelt_is_one_line(capsys):
    assert track.main(["run", "--trak", "csv"]) == 2
    said = "flag: '--trak' is not known (did you mean --track?); allowed: those that --help lists"
    assert capsys.readouterr().err == f"error: {said}\n"


def test_a_new_run_in_the_directory_has_none_of_the_earlier_one(npz, tmp_path):
    out = tmp_path / "run"
    assert run.main(argv(npz, out, "csv", linear_probe=True)) == 0
    assert (out / "csv" / "probe.csv").exists()
    (out / "csv" / "mine.csv").write_text("mine")
    new = flags(dataset=npz, out=out, overwrite=True, dashboard="off", **TINY | {"rounds": 1})
    assert run.main(new) == 0
    assert [path.name for path in (out / "csv").iterdir()] == ["mine.csv"]


class Failing(Tracker):
    """Fails as its class says."""

    where = "log"

    def __init__(self, run):
        super().__init__(run)
        self._fail("start")

    def log(self, rows):
        self._fail("log")

    def image(self, name, file):
        self._fail("image")

    def close(self, *, finished):
        self._fail("close")

    def _fail(self, now):
        if now == Failing.where:
            raise OSError(errno.ENOSPC, "No space left\non device")


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("where", ["start", "log", "image", "close"])
def test_a_tracker_that_fails_is_warned_of_once_and_the_run_goes_on(where, npz, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(Failing, "where", where)
    monkeypatch.setitem(TRACKERS, "failing", TrackerKind(Code("", Failing)))
    out = tmp_path / "run"
    assert run.main(argv(npz, out, "failing,csv", rounds=1)) == 0
    (line,) = [message for message in caplog.messages if message.startswith("track:")]
    assert line == "track: failing has failed ([Errno 28] No space left on device); the run goes on without it"
    assert_tracked("csv", out)
    assert track.main([str(out)]) == 1


def test_a_full_disk_is_an_error_of_tensorboard_and_of_no_thread(tmp_path, capfd):
    """It writes in a thread of its own, which says nothing itself; pytest fails for errors that are left in threads."""
    pytest.importorskip("tensorboard")
    tracker = tensorboard_events.TensorBoard(Tracked(tmp_path, {}))
    (file,) = (tmp_path / "tensorboard").iterdir()
    file.unlink()
    file.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):  # noqa: PT012
        for number in range(3):
            tracker.log([Row(number, "step", number + 1, 1, {"loss": 1.5})])
    with suppress(OSError):
        tracker.close(finished=False)
    assert capfd.readouterr().err == ""


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", [pytest.param("mlflow", marks=needs("mlflow"))])
def test_a_server_that_is_away_is_warned_of_once_and_soon(name, npz, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # where nothing listens
    assert run.main(argv(npz, tmp_path / "run", f"{name},csv", rounds=1)) == 0
    (line,) = caplog.messages
    assert line.startswith("track: mlflow has failed (")
    assert_tracked("csv", tmp_path / "run")


def test_images_that_cannot_be_drawn_do_not_fail_the_run(npz, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(Failing, "where", "never")
    monkeypatch.setitem(TRACKERS, "failing", TrackerKind(Code("", Failing)))
    monkeypatch.setattr("simsfl.cli.track.images.save", lambda *_: 1 / 0)
    assert run.main(argv(npz, tmp_path / "run", "failing", rounds=1)) == 0
    assert "track: images could not be drawn (division by zero)" in caplog.messages


def test_a_table_of_somebody_else_stays(npz, tmp_path, caplog):
    out = tmp_path / "run"
    assert run.main(flags(dataset=npz, out=out, dashboard="off", **TINY | {"rounds": 1})) == 0
    (out / "csv").mkdir()
    (out / "csv" / "round.csv").write_text("mine\n1\n")
    assert track.main([str(out), "--track", "csv"]) == 1
    assert f"{out}/csv/round.csv was not written by simsfl" in caplog.text
    assert (out / "csv" / "round.csv").read_text() == "mine\n1\n"


def test_tables_get_the_columns_that_come_later(tmp_path):
    tables = csv_files.Csv(csv_files.Tracked(tmp_path, {}))
    tables.log([Row(0, "step", 1, 1, {"loss": 1.5})])
    tables.log([Row(1, "step", 2, 1, {"loss": 2.5, "mine": "a,b"}), Row(2, "step", 3, 1, {"loss": None})])
    tables.close(finished=True)
    lines = [list(line.values()) for line in lines_of(tmp_path / "csv" / "step.csv")]
    assert lines == [["1", "1", "1.5", ""], ["2", "1", "2.5", "a,b"], ["3", "1", "", ""]]


def test_a_package_that_is_missing_is_said_before_a_run_begins(npz, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(TRACKERS, "missing", TrackerKind(Code(""), "no_such_package"))
    out = tmp_path / "run"
    assert run.main(argv(npz, out, "csv,missing")) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: track: no_such_package is not installed; allowed: ")
    assert line.endswith(", or pip install simsfl[track]\n")
    assert not out.exists()


def test_a_run_goes_on_with_another_tracker_which_has_the_earlier_steps_too(npz, tmp_path, monkeypatch):
    out = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(Feed, "take", killed_at(12))
        with pytest.raises(Killed):
            run.main(flags(dataset=npz, out=out, measure_divergence=True, dashboard="off", **TINY))
    assert not (out / "csv").exists()
    config = (out / "config.json").read_bytes()
    assert run.main(["--resume", str(out), "--track", "csv", "--dashboard", "off"]) == 0
    assert_tracked("csv", out)
    assert (out / "config.json").read_bytes() == config


def test_rows_are_counted_alike_whatever_clients_are_absent():
    step = {"event": "step", "round": 1, "step": 1, "loss": 1.0}
    absence = {"event": "absence", "round": 1, "step": 1, "clients": [3]}
    rows = Rows()
    assert rows.of(absence) is None
    assert rows.of(step) == Rows().of(step)


def test_a_fleet_is_followed_by_numbers():
    row = Rows().of(made.record(2, seconds=30.0, boards=(5, 1, 2, None), phones=(4, 3, 0, 0.5)))
    numbers = {"seconds": 30, "clock": 60, "wh": 2, "server_wh": 0.5, "bytes_up": 4000, "bytes_down": 2000}
    assert row.numbers() == {f"fleet/{name}": value for name, value in {**numbers, "late": 4, "away": 2}.items()}
    assert row.round == 2
