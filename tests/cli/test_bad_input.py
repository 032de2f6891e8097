"""A user's mistake gets one line that helps and exit code 2, and leaves no files behind."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from simsfl import Simulation, kernels
from simsfl.cli import run, watch
from simsfl.cli.bench import program as bench
from simsfl.cli.report import program as report
from tests.conftest import TINY, flags


def npz(path, **changes):
    """Write a valid .npz with some arrays changed, None to leave one out; return its path."""
    rng = np.random.default_rng(0)
    arrays = {
        "train_x": rng.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8),
        "train_y": np.arange(40) % 4,
        "test_x": rng.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8),
        "test_y": np.arange(20) % 4,
    } | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def data(**changes):
    """Return a preparation, which writes an .npz with some arrays changed and returns flags to train on it."""
    return lambda p: ["--dataset", npz(p / "d.npz", **changes)]


def damaged(cut):
    """Return a preparation, which writes an .npz whose bytes `cut` has changed and returns flags to train on it."""

    def prepare(p):
        content = npz(p / "d.npz").read_bytes()
        (p / "d.npz").write_bytes(cut(content))
        return ["--dataset", p / "d.npz"]

    return prepare


def with_method_99(content):
    """Return a zip archive whose directory names an unknown method of compression."""
    header = b"PK\x01\x02"
    entries = content.split(header)
    return header.join([entries[0], *(entry[:6] + b"\x63\x00" + entry[8:] for entry in entries[1:])])


def folder(content=None, splits=("train", "test"), name="1.png"):
    """Return a preparation, which makes an ImageFolder with another `content` in one file and returns its flags."""

    def prepare(p):
        for split in splits:
            for label in ("a", "b"):
                (p / "d" / split / label).mkdir(parents=True)
                Image.new("RGB", (8, 8)).save(p / "d" / split / label / "1.png")
        if content is not None:
            (p / "d" / "train" / "b" / name).write_bytes(content)
        return ["--dataset", p / "d"]

    return prepare


def file(name, content, *argv):
    """Return a preparation, which writes a file and returns the flags `argv`, with the file's path for its name."""

    def prepare(p):
        (p / name).write_text(content)
        return [part if part != name else p / name for part in argv]

    return prepare


def finished(then, *argv):
    """Return a preparation, which trains a run in ``out``, calls `then` on that directory and returns flags."""

    def prepare(p):
        assert run.main([str(part) for part in base(p, rounds=1)]) == 0
        then(p / "out")
        return [p / "out" if part == "out" else part for part in argv]

    return prepare


def nothing(out):
    """Leave the run as it is."""


def damage_checkpoints(out):
    """Replace all checkpoints of a run by other bytes."""
    for path in (out / "checkpoints").glob("*.safetensors"):
        path.write_bytes(b"damaged")


def other_images(out):
    """Change the labels of the run's data set."""
    npz(out.parent / "base.npz", train_y=(np.arange(40) + 1) % 4)


CASES = {
    "flag": (["--clints", "5"], ["'--clints'", "did you mean --clients"]),
    "flag with value": (["--cohrt=5"], ["'--cohrt'", "did you mean --cohort"]),
    "word": (["laptop"], ["'laptop'"]),
    "not a number": (["--clients", "many"], ["clients: ", "'many'", "whole number"]),
    "missing value": (["--clients"], ["clients: ", "expected one argument; allowed: a value behind the flag"]),
    "preset": (["--preset", "papr"], ["preset", "'papr'", "did you mean paper"]),
    "dataset": (["--dataset", "cifar11"], ["dataset", "'cifar11'", "did you mean cifar10"]),
    "arch": (["--arch", "resnet19"], ["arch", "'resnet19'", "did you mean resnet18"]),
    "engine": (["--engine", "vamp"], ["engine", "'vamp'", "did you mean vmap"]),
    "tracker": (["--track", "csv,tensorbord"], ["track", "'tensorbord'", "did you mean tensorboard", "wandb, mlflow"]),
    "profile": (["--profile", "0"], ["profile: '0'", "1 or more"]),
    "client-state": (["--client-state", "hots"], ["client_state", "did you mean host"]),
    "precision": (["--precision", "fp16"], ["precision", "'fp16'", "bf16"]),
    "client state in tf32": (["--client-state-dtype", "tf32"], ["client_state_dtype", "'tf32'", "fp32, bf16"]),
    "bf16 on tiny images": (["--precision", "bf16"], ["precision: bf16", "8x8", "16"]),
    "partition": (["--partition", "dirichlett"], ["partition", "did you mean dirichlet"]),
    "dashboard": (["--dashboard", "of"], ["dashboard", "did you mean off"]),
    "no clients": (["--clients", "0"], ["clients: 0", "1 to 1,000,000,000"]),
    "negative": (["--clients", "-5"], ["clients: -5", "1 to"]),
    "cohort": (["--cohort", "9"], ["cohort: 9", "1 to 8"]),
    "more clients than images": (["--clients", "500"], ["clients: 500", "40 training images"]),
    "batch size": (["--batch-size", "6"], ["batch_size: 6", "client 0", "5 images", "6 clients"]),
    "classes": (
        ["--partition", "shards", "--classes-per-client", "6"],
        ["classes_per_client: 6", "40 training images", "1 to 5"],
    ),
    "cut layer low": (["--cut-layer", "0"], ["cut_layer: 0", "1 to 4"]),
    "cut layer high": (["--cut-layer", "5"], ["cut_layer: 5", "1 to 4"]),
    "cut layer of resnet18": (["--arch", "resnet18", "--cut-layer", "10"], ["cut_layer: 10", "1 to 9"]),
    "bottleneck": (["--bottleneck", "4S2"], ["bottleneck: '4S2'", "C4S2"]),
    "bottleneck's stride": (["--bottleneck", "C4S3"], ["bottleneck: 'C4S3'", "C4S2"]),
    "bottleneck and cut": (
        ["--bottleneck", "C4S8"],
        ["bottleneck: stride 8", "4x4", "cut layer 1 of resnet8", "stride 1 to 4"],
    ),
    "vgg": (["--arch", "vgg11"], ["image_size: 8", "vgg11", "32 or more"]),
    "unequal": (["--unequal", "0.2_0.8|16"], ["unequal: '0.2_0.8|16'", "0.2_0.8|16|0.8_0.2"]),
    "unequal shares": (["--unequal", "0.2_0.7|16|0.8_0.2"], ["unequal: ", "add up to 1"]),
    "frozen clients": (["--client-lr", "0", "--loss-threshold", "1"], ["loss_threshold: 1", "frozen"]),
    "share of data": (["--data-proportion", "0"], ["data_proportion: 0"]),
    "batch norm of one value": (
        ["--norm", "batch", "--batch-size", "1", "--cut-layer", "4"],
        ["batch_size: 1", "BatchNorm", "smaller cut layer"],
    ),
    "no tiny-imagenet": (["--dataset", "tiny-imagenet"], ["dataset: tiny-imagenet", "tiny-imagenet-200", "--data-dir"]),
    "width": (["--width", "10"], ["width: 10", "multiples of 4"]),
    "temperature": (["--temperature", "0"], ["temperature: 0"]),
    "nan": (["--lr", "nan"], ["lr: nan"]),
    "infinite": (["--lr", "inf"], ["lr: inf"]),
    "alpha": (["--partition", "dirichlet", "--alpha", "-1"], ["alpha: -1"]),
    "without effect, as by default": (["--alpha", "0.5"], ["alpha: has no effect", "partition is iid"]),
    "config and the usual preset": (["--config", "x.json", "--preset", "auto"], ["preset", "--config"]),
    "without effect": (["--alpha", "0.1"], ["alpha: has no effect", "partition is iid", "allowed with", "dirichlet"]),
    "overwrite without out": (lambda p: ["--config", p, "--overwrite"], ["overwrite", "--out"]),
    "flag with a value": (["--symmetric=yes"], ["symmetric: takes no value", "'yes'"]),
    "a number without end": (["--rounds", "9" * 400], ["rounds: a number of", "1 to 1,000,000,000"]),
    "a name without end": (["--dataset", "x" * 5000], ["dataset: 'xxx", "..."]),
    "a path without end": (["--out", "x" * 5000], ["out: xxx", "..."]),
    "own queues": (["--no-feature-sharing", "--queue-length", "7"], ["queue_length: 7", "8 or more"]),
    "image size": (["--image-size", "4"], ["image_size: 4", "8 to"]),
    "unequal and large batches": (
        ["--unequal", "0.2_0.8|16|0.8_0.2", "--batch-size", "30"],
        ["batch_size: 30 is more than", "would hold", "less unequal"],
    ),
    "unequal shards": (
        ["--unequal", "0.2_0.8|2|0.999_0.001", "--partition", "shards"],
        ["would hold no image", "less unequal"],
    ),
    "tiny share of the data": (["--data-proportion", "0.01"], ["data_proportion: 0.01 leaves 0 training images"]),
    "long profile": (["--profile", "500"], ["profile: 500 steps and 3 to warm up are more than the", "allowed: 1 to"]),
    "device": (["--device", "cud"], ["device: 'cud'", "cuda:N"]),
    "out is empty": (["--out", ""], ["out", "empty"]),
    "out is a file": (file("mine", "mine", "--out", "mine"), ["out: ", "mine is a file"]),
    "out below a file": (file("mine", "mine", "--out", "/dev/null/run"), ["out: /dev/null/run"]),
    "out on a file system of the kernel": (["--out", "/proc/run"], ["out: /proc/run", "writable"]),
    "out holds another run": (finished(nothing, "--seed", "5"), ["out: ", "another run", "--overwrite", "--resume"]),
    "overwriting with a mistake": (finished(nothing, "--overwrite", "--clients", "0"), ["clients: 0"]),
    "lacks arrays": (data(test_y=None), ["dataset", "lacks test_y"]),
    "dtype": (data(train_x=np.zeros((40, 8, 8, 3))), ["train_x", "float64", "uint8"]),
    "shape": (data(test_x=np.zeros((20, 3, 8, 8), np.uint8)), ["test_x", "(20, 3, 8, 8)"]),
    "lengths": (data(train_y=np.arange(39) % 4), ["train_y", "39", "40"]),
    "label type": (data(train_y=np.linspace(0, 1, 40)), ["train_y", "integers"]),
    "label range": (data(train_y=np.arange(40) - 1), ["train_y", "-1"]),
    "label unseen": (data(test_y=np.arange(20)), ["test_y", "4"]),
    "objects": (data(train_y=np.array([{}] * 40)), ["d.npz", "plain numbers"]),
    "truncated": (damaged(lambda content: content[: len(content) // 2]), ["d.npz", "not a whole .npz"]),
    "empty file": (damaged(lambda content: b""), ["d.npz", "not a whole .npz"]),
    "unknown compression": (damaged(with_method_99), ["d.npz"]),
    "missing file": (["--dataset", "none.npz"], ["no file or directory none.npz"]),
    "no image": (folder(b"\x89PNG\r\n\x1a\nnot an image"), ["b/1.png", "not a readable image"]),
    "damaged header": (folder(b"P6 8 \xff8 255\n", name="2.ppm"), ["b/2.ppm", "not a readable image"]),
    "no test split": (folder(splits=("train",)), ["test/ (or val/)"]),
    "empty directory": (lambda p: (p / "d").mkdir() or ["--dataset", p / "d"], ["train/"]),
    "config missing": (["--config", "none.json"], ["config", "none.json"]),
    "config field": (file("c.json", '{"config": {"cohrot": 2}}', "--config", "c.json"), ["did you mean cohort"]),
    "config value": (file("c.json", '{"clients": "five"}', "--config", "c.json"), ["clients: 'five'", "int"]),
    "config nested without end": (file("c.json", "[" * 100_000, "--config", "c.json"), ["c.json", "JSON"]),
    "config cut short": (file("c.json", '{"config": ', "--config", "c.json"), ["c.json", "JSON"]),
    "config and preset": (["--config", "x.json", "--preset", "paper"], ["preset", "--config"]),
    "resume nothing": (["--resume", "none"], ["resume: none", "config.json"]),
    "resume with other clients": (
        finished(nothing, "--resume", "out", "--clients", "9"),
        ["clients: 9", "contradicts", "8"],
    ),
    "resume elsewhere": (finished(nothing, "--resume", "out", "--out", "b"), ["out: b", "--resume"]),
    "resume with a preset": (finished(nothing, "--resume", "out", "--preset", "paper"), ["preset", "as configured"]),
    "resume without metrics": (
        finished(lambda out: (out / "metrics.jsonl").write_bytes(b"{}\n"), "--resume", "out"),
        ["resume: ", "metrics.jsonl has 3 bytes"],
    ),
    "resume from damaged checkpoints": (
        finished(damage_checkpoints, "--resume", "out"),
        ["resume: ", "no usable checkpoint", "damaged"],
    ),
    "resume with other images": (finished(other_images, "--resume", "out"), ["dataset", "not what the run"]),
}
"""Flags that follow valid ones, or a preparation that returns them, and words that the error contains."""


def base(path, **changes):
    """Return the flags of a valid run."""
    return flags(**{"dataset": npz(path / "base.npz"), "out": path / "out", **TINY, **changes})


def contents(path):
    """Return the content of all files in a directory, by path."""
    return {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}


def assert_refused(main, argv, words, capfd):
    """Check that a program exits with 2 and prints one line on stderr, which contains all `words`."""
    capfd.readouterr()
    assert main([str(part) for part in argv]) == 2
    error = capfd.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1, error
    for word in words:
        assert word in error


@pytest.mark.parametrize(("argv", "words"), CASES.values(), ids=CASES)
def test_a_wrong_input_is_named_and_leaves_no_trace(argv, words, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = argv(tmp_path) if callable(argv) else argv
    start = [] if "--resume" in argv or "--config" in argv else base(tmp_path)
    before = contents(tmp_path)
    assert_refused(run.main, [*start, *argv], words, capfd)
    assert contents(tmp_path) == before
    assert (tmp_path / "out").exists() == any("out" in path.parts for path in before)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_triton_without_cuda(tmp_path, capfd):
    argv = ["--engine", "fused:triton", "--out", str(tmp_path / "out")]
    assert_refused(run.main, argv, ["engine: fused:triton", "CUDA", "allowed: fused"], capfd)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("engine", "broken", "words"),
    [
        ("fused:unfold", ["unfold"], ["fused:unfold", "version unfold of conv2d", "allowed: fused, vmap, loop"]),
        ("fused", ["unfold", "grouped"], ["no version of conv2d", "grouped: CompilerError", "allowed: vmap, loop"]),
    ],
)
@pytest.mark.parametrize("operator", ["_FORWARD", "_BACKWARD"])
def test_an_operator_that_cannot_run(operator, engine, broken, words, tmp_path, capfd, monkeypatch):
    """The operator is refused before a directory is made, whatever the type of its error."""

    class CompilerError(Exception):
        """An error like Triton's, which is no RuntimeError."""

    def fail(x, *others):
        raise CompilerError("too many registers\n  at line 7")

    versions = getattr(sys.modules["simsfl.kernels.conv2d"], operator)
    for version in broken:
        monkeypatch.setitem(versions, version, fail)
    monkeypatch.setattr(sys.modules[kernels.fastest.__module__], "CHOICES", {})
    words = ["engine: ", "3x2x", "float32 cpu", "CompilerError: too many registers", *words]
    assert_refused(run.main, base(tmp_path, engine=engine), words, capfd)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_cuda_without_cuda(device, tmp_path, capfd):
    assert_refused(run.main, [*base(tmp_path), "--device", device], [f"device: {device}", "no CUDA", "cpu"], capfd)


def test_overwriting_replaces_the_run_and_nothing_else(tmp_path):
    assert run.main(base(tmp_path, rounds=1)) == 0
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert run.main([*base(tmp_path, seed=5, rounds=1), "--overwrite"]) == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["config"]["seed"] == 5
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("error", [MemoryError("no room"), RuntimeError("can't allocate memory: you tried")])
def test_a_run_that_does_not_fit(error, tmp_path, capfd, monkeypatch):
    def initial_clients(*args, **options):
        raise error

    monkeypatch.setattr("simsfl.setup.assembly.initial_clients", initial_clients)
    assert_refused(run.main, base(tmp_path), ["memory: ", str(error)], capfd)
    assert not (tmp_path / "out").exists()


def test_a_disk_that_is_full(tmp_path, capfd, monkeypatch):
    """A disk that is full at the start leaves no directory; later, the last checkpoint is kept."""

    def full(path, *args):
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("simsfl.runs.checkpoint.write_tensors", full)
        assert_refused(run.main, base(tmp_path), ["No space left"], capfd)
    assert not Path(tmp_path / "out").exists()
    honest, saved = Simulation.save, []

    def save(simulation, *args):
        saved.append(simulation.progress.round_index)
        return honest(simulation, *args) if len(saved) < 3 else full("checkpoint")

    monkeypatch.setattr(Simulation, "save", save)
    assert run.main(base(tmp_path)) == 1
    error = capfd.readouterr().err
    assert error.count("\n") == 1
    assert "No space left" in error
    assert "kept in" in error
    monkeypatch.undo()
    monkeypatch.setenv("SIMSFL_CACHE", str(tmp_path))
    assert run.main(["--resume", str(tmp_path / "out")]) == 0


@pytest.mark.parametrize("program", [watch, report], ids=["watch", "report"])
def test_other_programs_on_what_is_no_run(program, tmp_path, capfd):
    assert_refused(program.main, [tmp_path / "none"], ["none", "config.json"], capfd)
    assert_refused(program.main, [], ["RUN_DIR: is missing; allowed: ", " RUN_DIR"], capfd)
    assert_refused(program.main, [""], ["empty"], capfd)


def test_bench_with_what_it_sets_itself(capfd):
    assert_refused(bench.main, ["--rounds", "5"], ["--rounds"], capfd)
