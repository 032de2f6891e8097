"""What a user types wrong gets one line that helps, exit code 2, and leaves no trace."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, flags
from PIL import Image

import report
import run
import watch


def npz_file(path, **changes):
    """A valid .npz with some arrays changed; None leaves one out."""
    rng = np.random.default_rng(0)
    arrays = {
        "train_x": rng.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8),
        "train_y": np.arange(40) % 4,
        "test_x": rng.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8),
        "test_y": np.arange(20) % 4,
    } | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return str(path)


def truncated(path):
    content = Path(npz_file(path)).read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return str(path)


def folder(path, *, broken=False, splits=("train", "test")):
    for split in splits:
        for name in ("a", "b"):
            (path / split / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(path / split / name / "1.png")
    if broken:
        (path / "train" / "b" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\nnot an image")
    return str(path)


DATA = {
    "lacks arrays": (lambda p: npz_file(p / "d.npz", test_y=None), ["dataset", "lacks test_y"]),
    "dtype": (
        lambda p: npz_file(p / "d.npz", train_x=np.zeros((40, 8, 8, 3))),
        ["train_x", "float64", "uint8"],
    ),
    "shape": (
        lambda p: npz_file(p / "d.npz", test_x=np.zeros((20, 3, 8, 8), np.uint8)),
        ["test_x", "(20, 3, 8, 8)"],
    ),
    "lengths": (lambda p: npz_file(p / "d.npz", train_y=np.arange(39) % 4), ["train_y", "39", "40"]),
    "label type": (lambda p: npz_file(p / "d.npz", train_y=np.linspace(0, 1, 40)), ["train_y", "integers"]),
    "label range": (lambda p: npz_file(p / "d.npz", train_y=np.arange(40) - 1), ["train_y", "-1"]),
    "label unseen": (lambda p: npz_file(p / "d.npz", test_y=np.arange(20)), ["test_y", "4"]),
    "objects": (lambda p: npz_file(p / "d.npz", train_y=np.array([{}] * 40)), ["d.npz", "plain numbers"]),
    "truncated": (lambda p: truncated(p / "d.npz"), ["d.npz", "not a whole"]),
    "empty file": (lambda p: (p / "d.npz").touch() or str(p / "d.npz"), ["d.npz", "not a whole"]),
    "missing file": (lambda p: str(p / "none.npz"), ["no file or directory"]),
    "bad image": (lambda p: folder(p / "d", broken=True), ["b/1.png", "not a readable image"]),
    "no test split": (lambda p: folder(p / "d", splits=("train",)), ["test/ (or val/)"]),
    "empty directory": (lambda p: (p / "d").mkdir() or str(p / "d"), ["train/"]),
}

FLAGS = {
    "flag": (["--clints", "5"], ["'--clints'", "did you mean --clients"]),
    "flag with value": (["--cohrt=5"], ["'--cohrt'", "did you mean --cohort"]),
    "word": (["laptop"], ["'laptop'"]),
    "not a number": (["--clients", "many"], ["--clients", "'many'", "whole number"]),
    "missing value": (["--clients"], ["--clients", "expected one argument"]),
    "preset": (["--preset", "papr"], ["preset", "'papr'", "did you mean paper"]),
    "dataset": (["--dataset", "cifar11"], ["dataset", "'cifar11'", "did you mean cifar10"]),
    "arch": (["--arch", "resnet19"], ["arch", "'resnet19'", "did you mean resnet18"]),
    "engine": (["--engine", "vamp"], ["engine", "'vamp'", "did you mean vmap"]),
    "precision": (["--precision", "fp16"], ["precision", "'fp16'", "bf16"]),
    "partition": (["--partition", "dirichlett"], ["partition", "did you mean dirichlet"]),
    "dashboard": (["--dashboard", "of"], ["dashboard", "did you mean off"]),
    "no clients": (["--clients", "0"], ["clients: 0", "1 or more"]),
    "negative": (["--clients", "-5"], ["clients", "-5"]),
    "cohort": (["--cohort", "9"], ["cohort: 9", "1 to 8"]),
    "more clients than images": (["--clients", "500"], ["clients: 500", "40 training images"]),
    "batch size": (["--batch-size", "6"], ["batch_size: 6", "client 0", "5 images", "6 clients"]),
    "cut layer low": (["--cut-layer", "0"], ["cut_layer: 0", "1 to 4"]),
    "cut layer high": (["--cut-layer", "5"], ["cut_layer: 5", "1 to 4"]),
    "cut layer of resnet18": (["--arch", "resnet18", "--cut-layer", "10"], ["cut_layer: 10", "1 to 9"]),
    "width": (["--width", "10"], ["width: 10", "multiples of 4"]),
    "temperature": (["--temperature", "0"], ["temperature: 0"]),
    "nan": (["--lr", "nan"], ["lr: nan"]),
    "alpha": (["--alpha", "-1"], ["alpha", "-1"]),
    "own queues": (["--no-feature-sharing", "--queue-length", "7"], ["queue_length: 7", "8 or more"]),
    "image size": (["--image-size", "4"], ["image_size: 4", "8 to"]),
    "device": (["--device", "cud"], ["device", "'cud'", "did you mean cuda"]),
    "config": (["--config", "none.json"], ["config", "none.json"]),
    "resume nothing": (["--resume", "none"], ["none", "config.json"]),
    "preset and config": (["--config", "x.json", "--preset", "paper"], ["preset", "--config"]),
}


def assert_refused(main, argv, words, capfd):
    capfd.readouterr()
    assert main(argv) == 2
    error = capfd.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1, error
    for word in words:
        assert word in error
    assert "Traceback" not in error


def base(tmp_path, **changes):
    values = {"dataset": npz_file(tmp_path / "base.npz"), "out": tmp_path / "out", **TINY, **changes}
    return flags(**values)


@pytest.mark.parametrize(("argv", "words"), FLAGS.values(), ids=FLAGS)
def test_flags(argv, words, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    start = [] if argv[0] in ("--resume", "--config") else base(tmp_path)
    assert_refused(run.main, [*start, *argv], words, capfd)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("make", "words"), DATA.values(), ids=DATA)
def test_data(make, words, tmp_path, capfd):
    path = make(tmp_path)
    assert_refused(run.main, [*base(tmp_path), "--dataset", path], words, capfd)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_cuda_without_cuda(device, tmp_path, capfd):
    assert_refused(run.main, [*base(tmp_path), "--device", device], [f"device: {device}", "no CUDA", "cpu"], capfd)


@pytest.mark.parametrize("out", ["/dev/null/run", "/proc/run", "file"])
def test_out_that_cannot_be_written(out, tmp_path, capfd):
    (tmp_path / "file").write_text("mine")
    out = str(tmp_path / out)  # an absolute `out` stays itself
    assert_refused(run.main, base(tmp_path, out=out), [f"out: {out}"], capfd)
    assert (tmp_path / "file").read_text() == "mine"


def test_out_that_holds_another_run_is_kept_unless_overwritten(tmp_path, capfd):
    assert run.main(base(tmp_path, rounds=1)) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert_refused(run.main, base(tmp_path, seed=5), ["out", "another run", "--overwrite", "--resume"], capfd)
    assert_refused(run.main, [*base(tmp_path), "--overwrite", "--clients", "0"], ["clients: 0"], capfd)
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert run.main([*base(tmp_path, seed=5, rounds=1), "--overwrite"]) == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["config"]["seed"] == 5
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def test_resume_that_contradicts_or_finds_nothing(tmp_path, capfd):
    assert run.main(base(tmp_path, rounds=1)) == 0
    resume = ["--resume", str(tmp_path / "out")]
    assert_refused(run.main, [*resume, "--clients", "9"], ["clients", "9", "contradicts", "8"], capfd)
    assert_refused(run.main, [*resume, "--out", str(tmp_path / "b")], ["out", "--resume"], capfd)
    assert run.main([*resume, "--clients", "8"]) == 0
    whole = (tmp_path / "out" / "metrics.jsonl").read_bytes()
    (tmp_path / "out" / "metrics.jsonl").write_bytes(whole[:100])
    assert_refused(run.main, resume, ["metrics.jsonl has 100 bytes"], capfd)
    (tmp_path / "out" / "metrics.jsonl").write_bytes(whole)
    for path in (tmp_path / "out" / "checkpoints").glob("*.safetensors"):
        path.write_bytes(b"damaged")
    assert_refused(run.main, resume, ["no usable checkpoint", "damaged"], capfd)


def test_resume_with_other_data(tmp_path, capfd):
    assert run.main(base(tmp_path, rounds=1)) == 0
    npz_file(tmp_path / "base.npz", train_y=(np.arange(40) + 1) % 4)
    assert_refused(run.main, ["--resume", str(tmp_path / "out")], ["dataset", "not what the run"], capfd)


def test_config_file_with_a_wrong_field(tmp_path, capfd):
    (tmp_path / "c.json").write_text('{"config": {"clients": 5, "cohrot": 2}}')
    assert_refused(run.main, ["--config", str(tmp_path / "c.json")], ["'cohrot'", "did you mean cohort"], capfd)
    (tmp_path / "c.json").write_text('{"config": {"clients": "five"}}')
    assert_refused(run.main, ["--config", str(tmp_path / "c.json")], ["clients: 'five'", "int"], capfd)
    (tmp_path / "c.json").write_text('{"config": ')
    assert_refused(run.main, ["--config", str(tmp_path / "c.json")], ["c.json", "JSON"], capfd)


@pytest.mark.parametrize("program", [watch, report], ids=["watch", "report"])
def test_other_programs_on_what_is_no_run(program, tmp_path, capfd):
    assert_refused(program.main, [str(tmp_path / "none")], ["none", "config.json"], capfd)
    assert_refused(program.main, [], ["RUN_DIR"], capfd)
