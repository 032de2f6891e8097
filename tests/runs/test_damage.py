"""A run directory that is damaged or hostile is refused in one line, or leads to the same result as a whole one."""

import json
import os
import random
import shutil

import pytest
import torch

from simsfl.cli import export_checkpoint, run, watch
from simsfl.cli.attack import program as attack
from simsfl.cli.report import program as report
from tests.conftest import flags
from tests.runs.changing import SETTINGS, as_before, begun, final, resumed, rewritten, with_metrics


@pytest.fixture(scope="module")
def whole(npz, tmp_path_factory):
    """A run that was never interrupted, and attacked and reported on at its end."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert run.main(flags(dataset=npz, out=out, **SETTINGS)) == 0
    argv = ["--decoder", "conv_normN0C4", "--attack-epochs", "1", "--attacker-data", "0.2", "--device", "cpu"]
    assert attack.main([str(out), *argv]) == 0
    return out


@pytest.fixture(scope="module")
def half(npz, tmp_path_factory):
    """The same run, killed in its last round."""
    with pytest.MonkeyPatch.context() as patch:
        return begun(patch, npz, tmp_path_factory.mktemp("half") / "run")


def copied(directory, tmp_path):
    return shutil.copytree(directory, tmp_path / "run", dirs_exist_ok=True)


def refused(code, capfd):
    """Return the error of a program; it must be one line."""
    error = capfd.readouterr().err
    assert code == 2, error
    assert error.startswith("error: ")
    assert error.count("\n") == 1, error
    return error


def other_digit(content, rng):
    places = [at for at, byte in enumerate(content) if 48 <= byte < 58]
    at = rng.choice(places)
    return content[:at] + rng.choice([b"%d" % d for d in range(10) if d != content[at] - 48]) + content[at + 1 :]


def other_bit(content, rng):
    at = rng.randrange(len(content))
    return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]


def shorter(content, rng):
    return content[: rng.randrange(len(content))]


def other_value(content, rng):
    """JSON with an entry deleted, or of another type; other content with a few bytes deleted."""
    try:
        value = json.loads(content)
    except ValueError:
        at = rng.randrange(len(content))
        return content[:at] + content[at + 8 :]
    here = value
    while True:
        key = rng.choice(list(here) if isinstance(here, dict) else range(len(here)))
        if not isinstance(here[key], dict | list) or not here[key] or rng.random() < 0.3:
            break
        here = here[key]
    new = rng.choice([None, -1, 2.5, 1e308, float("inf"), float("nan"), [], {}, "", True, 10**30, [[[1]]], "gone"])
    if new == "gone":
        del here[key]
    else:
        here[key] = new
    return json.dumps(value).encode()


def damaged(directory, seed):
    """Damage one file of a run directory in one way."""
    rng = random.Random(seed)
    file = rng.choice(sorted(path for path in directory.rglob("*") if path.is_file()))
    how = rng.choice([other_digit, other_bit, shorter, other_value])
    file.write_bytes(how(file.read_bytes(), rng))


@pytest.mark.parametrize("seed", [*range(24), *(pytest.param(n, marks=pytest.mark.slow) for n in range(24, 300))])
def test_a_damaged_run_ends_as_a_whole_one_or_is_refused(seed, half, whole, tmp_path, capfd):
    out = copied(half, tmp_path)
    damaged(out, seed)
    code = resumed(out)
    if code == 0:
        assert final(out) == final(whole)
        assert "Traceback" not in capfd.readouterr().err
    else:
        refused(code, capfd)


@pytest.mark.parametrize("seed", [*range(16), *(pytest.param(n, marks=pytest.mark.slow) for n in range(16, 200))])
def test_a_damaged_finished_run_stays_as_it_was_or_is_refused(seed, whole, tmp_path, capfd):
    out = copied(whole, tmp_path)
    damaged(out, 1000 + seed)
    for main, argv in (
        (watch.main, [str(out), "--once"]),
        (run.main, ["--resume", str(out), "--dashboard", "off"]),
    ):
        capfd.readouterr()
        code = main(argv)
        if code:
            refused(code, capfd)
    if code == 0:
        assert final(out) == final(whole)


def newest(out):
    return max((out / "checkpoints").glob("*.safetensors"))


def test_a_damaged_manifest_loses_no_checkpoint(half, whole, tmp_path, capfd):
    """Only the times are lost, which is said once, and one of the checkpoints may be damaged as well."""
    for both in (False, True):
        for content in (b"", b"{}", b'{"checkpoints": [5]}', b"[" * 100_000, None):
            out = copied(half, tmp_path)
            manifest = out / "checkpoints" / "manifest.json"
            manifest.unlink() if content is None else manifest.write_bytes(content)
            if both:
                newest(out).write_bytes(b"damaged")
            capfd.readouterr()
            assert resumed(out) == 0
            said = capfd.readouterr().out.replace("\n", "")
            assert said.count("manifest.json is missing or damaged: earlier times are lost") == 1
            assert said.count("the one before is used") == both
            assert f"after round {1 if both else 2}" in said
            assert final(out) == final(whole)
            shutil.rmtree(out)


def test_metrics_of_another_run_send_it_back_or_are_refused(half, whole, tmp_path, capfd):
    out = copied(half, tmp_path)
    lines = (out / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    ends = [at for at, line in enumerate(lines) if b'"event": "round"' in line]
    changed = [*lines]
    changed[ends[1]] = lines[ends[1]].replace(b'"loss": ', b'"loss": 1')  # after the first of two checkpoints
    (out / "metrics.jsonl").write_bytes(b"".join(changed))
    assert resumed(out) == 0
    assert "metrics.jsonl is damaged, or was edited, before byte" in capfd.readouterr().out.replace("\n", "")
    assert final(out) == final(whole)
    out = copied(half, tmp_path / "again")
    changed[0] = lines[0].replace(b'"loss": ', b'"loss": 1')
    (out / "metrics.jsonl").write_bytes(b"".join(changed))
    assert "metrics.jsonl is damaged" in refused(resumed(out), capfd)


def test_an_edited_config_is_refused_and_its_door_is_named(half, tmp_path, capfd):
    out = copied(half, tmp_path)
    content = json.loads((out / "config.json").read_text())
    content["config"]["rounds"] = 5
    (out / "config.json").write_text(json.dumps(content))
    for main, argv in (
        (run.main, ["--resume", str(out)]),
        (report.main, [str(out)]),
        (watch.main, [str(out), "--once"]),
        (attack.main, [str(out)]),
        (export_checkpoint.main, [str(out), "--out", str(tmp_path / "exported")]),
    ):
        error = refused(main(argv), capfd)
        assert "config.json is damaged, or was edited" in error
        assert f"--config {out / 'config.json'} for a new run" in error
    del content["sha256"]  # nor does it help to take its checksum away
    (out / "config.json").write_text(json.dumps(content))
    error = refused(resumed(out), capfd)
    assert "another run than config.json describes" in error
    assert "--config" in error
    argv = ["--config", str(out / "config.json"), "--out", str(tmp_path / "new"), "--dashboard", "off"]
    assert run.main(argv) == 0
    assert (tmp_path / "new" / "metrics.jsonl").read_text().count('"event": "round"') == 5


def test_a_run_of_an_older_version_goes_on(half, whole, tmp_path, capfd):
    out = copied(half, tmp_path)
    as_before(out)
    assert resumed(out) == 0
    assert final(out) == final(whole)
    assert "damaged" not in capfd.readouterr().out
    seconds = json.loads((out / "summary.json").read_text())["seconds"]
    before = json.loads((half / "checkpoints" / "manifest.json").read_text())["checkpoints"][0]["meta"]["seconds"]
    assert seconds > before
    out = copied(half, tmp_path / "again")
    as_before(out)
    newest(out).write_bytes(b"damaged")
    assert resumed(out) == 0
    assert "damaged" in capfd.readouterr().out
    assert final(out) == final(whole)


def test_an_older_run_that_is_over_stays_over(whole, tmp_path, capfd):
    out = copied(whole, tmp_path)
    as_before(out)
    assert resumed(out) == 0
    assert "is finished" in capfd.readouterr().out
    assert report.main([str(out)]) == 0


def standing(way, value):
    """A preparation: the header of the checkpoints says something else, and their checksums fit."""

    def change(about):
        *outer, last = way.split(".")
        for key in outer:
            about = about[key]
        about[last] = value

    return lambda out: rewritten(out, standing=change)


def tensor(name, value):
    """A preparation: the first number of a tensor is another one, or the tensor is replaced; the checksums fit."""

    def change(tensors):
        if isinstance(value, torch.Tensor):
            tensors[name] = value
        else:
            tensors[name].view(-1)[0] = value

    return lambda out: rewritten(out, tensors=change)


def config(**changes):
    """A preparation: the config has other values, and all checksums fit."""
    return lambda out: rewritten(out, config=lambda content: content["config"].update(changes))


def edited(**changes):
    """A preparation: the config has other values, and no checksum."""

    def prepare(out):
        content = json.loads((out / "config.json").read_text())
        del content["sha256"]
        content["config"].update(changes)
        (out / "config.json").write_text(json.dumps(content))

    return prepare


def header_without_end(out):
    for file in (out / "checkpoints").glob("*.safetensors"):
        file.write_bytes((2**62).to_bytes(8, "little") + file.read_bytes()[8:])
        seal(file)


def header_nested_without_end(out):
    for file in (out / "checkpoints").glob("*.safetensors"):
        header = json.dumps({"__metadata__": {"simsfl.checkpoint": "[" * 5000}}).encode()
        file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(32))
        seal(file)


def seal(file):
    """Make the checksum at the end of a checkpoint fit."""
    import hashlib  # noqa: PLC0415

    content = file.read_bytes()[:-32]
    file.write_bytes(content + hashlib.sha256(content).digest())


def pipe(name):
    """A preparation: a pipe, which nobody writes into, in the place of a file."""

    def prepare(out):
        (out / name).unlink()
        os.mkfifo(out / name)

    return prepare


HOSTILE = {
    "a fraction of a round": (standing("round", 2.5), "round: 2.5 is not a whole number"),
    "a negative round": (standing("round", -1), "round: -1 is out of range"),
    "a round beyond the end": (standing("round", 7), "beyond the end of the run"),
    "a step beyond the end": (standing("step", 99), "step 99 is beyond the end"),
    "a list for a state": (standing("communication.state", []), "communication.state: a list is not known"),
    "a state that never is": (standing("communication.state", "C"), "communication C is never saved"),
    "an infinite loss": (standing("communication.loss", float("inf")), "communication.loss: inf is out of range"),
    "negative traffic": (standing("traffic.up", -5), "traffic.up: -5 is out of range"),
    "no traffic": (standing("traffic", {"pu": 1}), "traffic.pu: is not known"),
    "negative metrics": (standing("metrics.bytes", -1), "metrics.bytes: -1 is out of range"),
    "negative participation": (tensor("clients.participation", -1), "clients.participation is out of range"),
    "much participation": (tensor("clients.participation", 99), "clients.participation is out of range"),
    "half participation": (tensor("clients.participation", torch.full((8,), 1.5)), "dtype torch.float32 is not"),
    "a client that is none": (tensor("cohort.ids", 8), "cohort.ids is out of range; allowed: 0 to 7"),
    "a place outside the queue": (tensor("queues.pointer", 40), "queues.pointer is out of range; allowed: 0 to 39"),
    "weights that are not numbers": (tensor("server.online", float("nan")), "its weights are not finite"),
    "infinite velocities": (tensor("clients.velocity", float("inf")), "its weights are not finite"),
    "other shapes": (tensor("server.online", torch.zeros(3)), "shape [3] is not"),
    "another tensor": (tensor("mine", torch.zeros(3)), "it holds other tensors"),
    "a header without end": (header_without_end, "no usable checkpoint"),
    "a header nested without end": (header_nested_without_end, "no usable checkpoint"),
    "no cohort": (edited(cohort=None), "config.cohort: null is not what a run has"),
    "an open precision": (edited(precision="auto"), "config.precision: 'auto'"),
    "another width": (config(width=8), "is not of the run that config.json describes"),
    "a config nested without end": (lambda out: (out / "config.json").write_text("[" * 100_000), "nested too deeply"),
    "a config 900 levels deep": (
        lambda out: (out / "config.json").write_text('{"config": ' + '{"a":' * 900 + "1" + "}" * 901),
        "config.json is damaged",
    ),
    "a pipe for a config": (pipe("config.json"), "it has no config.json"),
    "a pipe for metrics": (pipe("metrics.jsonl"), "metrics.jsonl"),
}


@pytest.mark.parametrize(("prepare", "words"), HOSTILE.values(), ids=HOSTILE)
def test_what_is_impossible_is_refused_though_its_checksums_fit(prepare, words, half, tmp_path, capfd):
    out = copied(half, tmp_path)
    prepare(out)
    assert words in refused(resumed(out), capfd)


def record(**changes):
    """A preparation: a record of ``metrics.jsonl`` has another value, and all checksums fit."""

    def change(lines):
        event = changes.pop("event", "round")
        next(line for line in lines if line["event"] == event).update(changes)

    return lambda out: with_metrics(out, change)


RECORDS = {
    "a fraction of a round": record(round=1.5),
    "round 0": record(round=0),
    "an infinite loss": record(loss=float("inf")),
    "a state that is none": record(communication="D"),
    "a list for bytes": record(bytes_up_per_client=[1]),
    "an accuracy above 100": record(event="evaluation", knn_top1=101),
    "a negative client": record(event="sync", clients=[-1]),
    "step 0": record(event="sync", step=0),
    "a field more": record(colour=1),
    "another event": lambda out: with_metrics(out, lambda lines: lines[0].update(event=["step"])),
    "nested without end": lambda out: (out / "metrics.jsonl").write_text("[" * 100_000 + "\n"),
    "no object": lambda out: (out / "metrics.jsonl").write_text("5\n"),
}


@pytest.mark.parametrize("prepare", RECORDS.values(), ids=RECORDS)
def test_records_that_are_impossible_are_refused_by_every_program(prepare, half, tmp_path, capfd):
    out = copied(half, tmp_path)
    prepare(out)
    for main, argv in (
        (watch.main, [str(out), "--once"]),
        (report.main, [str(out)]),
        (run.main, ["--resume", str(out), "--dashboard", "off"]),
    ):
        assert "metrics" in refused(main(argv), capfd)


DEVICE = dict.fromkeys(("step_seconds", "compute_seconds", "network_seconds"))
DEVICE |= {"client": 1, "presence": "here", "steps": 1, "bytes_up": 1, "bytes_down": 1}
OTHER_FILES = {
    "seconds without end": ("summary.json", {"seconds": float("inf")}, [report.main, run.main]),
    "probes as a list": ("summary.json", {"probes": []}, [report.main, run.main]),
    "scores as text": ("attacks/conv_normN0C4.json", {"ssim": "good"}, [report.main]),
    "negative epochs": ("attacks/conv_normN0C4.json", {"epochs": -1}, [report.main]),
    "a time that is none": ("live.json", {"updated": float("nan")}, [watch.main]),
    "negative participation": ("live.json", {"participation": [-1]}, [watch.main]),
    "a device that is none": ("live.json", {"devices": [{"client": 1}]}, [watch.main]),
    "a device that is lost": ("live.json", {"devices": [DEVICE | {"presence": "lost"}]}, [watch.main]),
}


@pytest.mark.parametrize(("name", "changes", "programs"), OTHER_FILES.values(), ids=OTHER_FILES)
def test_impossible_results_are_refused(name, changes, programs, whole, tmp_path, capfd):
    out = copied(whole, tmp_path)
    content = json.loads((out / name).read_text()) | changes
    content.pop("sha256", None)
    (out / name).write_text(json.dumps(content))
    argv = {run.main: ["--resume", str(out)], watch.main: [str(out), "--once"], report.main: [str(out)]}
    for main in programs:
        error = refused(main(argv[main]), capfd)
        assert name in error
        assert next(iter(changes)) in error


def test_a_changed_result_is_not_shown(whole, tmp_path, capfd):
    """One other digit is enough."""
    for name, key in (("summary.json", "knn_top1"), ("attacks/conv_normN0C4.json", "mean_image_mse")):
        out = copied(whole, tmp_path / key)
        content = json.loads((out / name).read_text())
        content[key] += 0.5
        (out / name).write_text(json.dumps(content))
        assert f"{name} is damaged, or was edited" in refused(report.main([str(out)]), capfd)
