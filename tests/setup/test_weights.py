"""Weights of models outside a run: exported, imported, and used to start another run."""

import errno
import json
import os
import pickle
import re
import shutil
import zipfile
from dataclasses import replace

import pytest
import torch
from torch import nn

from simsfl import RunConfig, Simulation
from simsfl.cli import export_checkpoint, import_checkpoint, run
from simsfl.config import presets
from simsfl.setup.weights import EXPERTS, experts, load_weights, published_names, to_published
from simsfl.system.tensor_file import write_tensors
from tests.conftest import TINY, flags
from tests.runs.changing import rewritten

MODELS = {
    "resnet18": {"arch": "resnet18", "cut_layer": 3, "bottleneck": "C4S2"},
    "resnet50": {"arch": "resnet50", "cut_layer": 2},
    "batch-norm": {"arch": "resnet18", "norm": "batch", "head": "linear"},
    "vgg11": {"arch": "vgg11", "cut_layer": 2},
    "mobilenetv2": {"arch": "mobilenetv2", "cut_layer": 3, "bottleneck": "C8"},
    "token-of-the-class": {"arch": "vit-tiny", "arch.pool": "class", "cut_layer": 3},
}
"""Config fields of the networks whose weights are exported."""
DEEP = ("resnet50", "mobilenetv2", "token-of-the-class")
"""Names of those that take long."""


@pytest.mark.parametrize(
    "model",
    [pytest.param(model, id=name, marks=pytest.mark.slow if name in DEEP else ()) for name, model in MODELS.items()],
)
def test_weights_go_there_and_back(model, npz, tmp_path, capsys):
    """Weights exported in the published layout, imported and exported again are the same tensors in the same order."""
    config = {**TINY, **model, "image_size": 32, "head": "mlp", "rounds": 1}
    config |= {"eval_every": 0, "knn_test": 1, "knn_bank": 1}
    trained = tmp_path / "run"
    assert run.main([*flags(dataset=npz, out=trained, **config), "--dashboard", "off"]) == 0
    assert export_checkpoint.main([str(trained), "--out", str(tmp_path / "a")]) == 0
    files = [str(tmp_path / "a" / f"{half}.tar") for half in ("client", "server")]
    architecture = {name: config[name] for name in (*model, "width", "key_dim", "image_size")}
    imported = tmp_path / "in.safetensors"
    argv = [*files[::-1], "--preset", "paper", *flags(**architecture), "--out", str(imported)]
    assert import_checkpoint.main(argv) == 0
    assert export_checkpoint.main([str(imported), "--out", str(tmp_path / "b")]) == 0
    whole = {"epoch": 3, "state_dict": torch.load(files[1], weights_only=True)}
    torch.save(whole, tmp_path / "among.tar")
    argv = [str(tmp_path / "among.tar"), *argv[2:-1], str(tmp_path / "among.safetensors")]
    assert import_checkpoint.main(argv) == 0
    assert load_weights(argv[-1]).server.keys() == load_weights(str(imported)).server.keys()
    alone = tmp_path / "server.safetensors"
    assert import_checkpoint.main([files[1], "--preset", "paper", *flags(**architecture), "--out", str(alone)]) == 0
    assert "a server alone" in capsys.readouterr().out
    assert load_weights(str(alone)).server.keys() == load_weights(str(imported)).server.keys()
    for half in ("client", "server"):
        one, two = (torch.load(tmp_path / where / f"{half}.tar", weights_only=True) for where in "ab")
        assert list(one) == list(two)
        for key in one:
            assert torch.equal(one[key], two[key]), key
    simulation = Simulation.load(trained)
    torch.testing.assert_close(
        torch.cat([load_weights(str(imported)).client[name].flatten() for name in simulation.model.client.shapes]),
        simulation.state.clients.online,
    )
    capsys.readouterr()


def test_published_names_are_those_of_its_modules():
    """The names are those of ``conv3x3_gn``, ``BasicBlock_gn`` and bottleneck convolutions in an `nn.Sequential`."""
    settings = {"arch": "resnet18", "cut_layer": 4, "bottleneck": "C4S2", "dataset": "shapes"}
    model = Simulation(RunConfig(**{**TINY, **settings})).model
    client = list(published_names(model.client).values())
    assert client[:3] == ["0.conv1.weight", "0.bn1.weight", "0.bn1.bias"]
    assert client[-11:] == [
        *("3.conv1.weight", "3.bn1.weight", "3.bn1.bias", "3.conv2.weight", "3.bn2.weight", "3.bn2.bias"),
        *("3.shortcut.0.weight", "3.shortcut.1.weight", "3.shortcut.1.bias"),
        *("4.weight", "4.bias"),
    ]
    server = list(published_names(model.server).values())
    assert server[:2] == ["0.weight", "0.bias"]
    assert server[-4:] == ["8.0.weight", "8.0.bias", "8.2.weight", "8.2.bias"]  # after five blocks and the pooling


def test_exported_layout_is_the_published_one_of_a_client():
    """Exported weights load strictly into modules that are written here as in the published program."""
    simulation = Simulation(RunConfig(**{**TINY, "arch": "resnet18", "cut_layer": 1, "dataset": "shapes"}))
    stem = nn.Module()
    stem.conv1, stem.bn1 = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.GroupNorm(1, 4)
    half = simulation.model.client
    tensors = half.named(half.initial)
    nn.Sequential(stem).load_state_dict(to_published(half, tensors), strict=True)
    assert torch.equal(stem.conv1.weight, tensors["0.conv.weight"])


def test_what_cannot_be_imported(tmp_path, capsys, npz):
    file = tmp_path / "x.tar"
    torch.save({"0.conv1.weight": torch.zeros(64, 3, 3, 3), "0.bn1.weight": torch.zeros(32)}, file)
    assert import_checkpoint.main([str(file), "--arch", "resnet18"]) == 2
    error = capsys.readouterr().err
    assert "tensor 2 is 0.bn1.weight (32,) in the file, and 0.norm.weight (64,) in the network" in error
    file.write_bytes(b"nothing")
    assert import_checkpoint.main([str(file)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    torch.save({"model": RunConfig()}, file)
    assert import_checkpoint.main([str(file)]) == 2
    assert "or holds more than tensors" in capsys.readouterr().err
    assert import_checkpoint.main([str(tmp_path / "none.tar")]) == 2
    assert "files: there is no file" in capsys.readouterr().err
    for content in (b"build", b"appends", pickle.dumps({"a": print}), pickle.dumps([1], protocol=2)):
        file.write_bytes(content)
        assert import_checkpoint.main([str(file)]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_hostile_files_are_not_unpacked(tmp_path, capsys):
    """Neither a file that unpacks to a thousand times its size, nor one with holes, nor what is no file."""
    torch.save({"0.conv1.weight": torch.zeros(10_000_000)}, tmp_path / "whole.tar")
    with (
        zipfile.ZipFile(tmp_path / "whole.tar") as whole,
        zipfile.ZipFile(tmp_path / "bomb.tar", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for name in whole.namelist():
            bomb.writestr(name, whole.read(name))
    assert (tmp_path / "bomb.tar").stat().st_size < 100_000
    with (tmp_path / "long.tar").open("wb") as file:
        file.truncate(1 << 40)
    os.mkfifo(tmp_path / "fifo.tar")
    for name, words in (
        ("bomb.tar", "is damaged, or holds more than tensors"),
        ("long.tar", "has 1,099,511,627,776 bytes; allowed: "),
        ("fifo.tar", "there is no file"),
    ):
        argv = [str(tmp_path / name), "--arch", "resnet8", "--width", "4", "--out", str(tmp_path / "out")]
        assert import_checkpoint.main(argv) == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def written(path, size, **changes):
    """Write a file of weights with one tensor of zeros, `size` bytes of them, as holes in the file."""
    tensor = {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}
    header = {"__metadata__": {"config": json.dumps(RunConfig(**TINY).network())}, "client.x": tensor} | changes
    start = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(start).to_bytes(8, "little") + start)
        file.truncate(8 + len(start) + size)
    return str(path)


@pytest.mark.slow
def test_hostile_files_of_weights(tmp_path):
    """None is read before its shapes are known, and what is wrong is said in one line."""
    simulation = Simulation(RunConfig(**{**TINY, "dataset": "shapes"}))
    for size in (1 << 32, 1 << 43):  # the second is refused by the system, unless it lends more memory than there is
        with pytest.raises(ValueError, match="init_client: "):
            load_weights(written(tmp_path / "large", size)).initialise(
                simulation.model, simulation.config, server=False
            )
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "short").write_bytes((1 << 60).to_bytes(8, "little"))
    for source in (
        written(tmp_path / "nested", 4, __metadata__={"config": "[" * 100_000}),
        written(tmp_path / "no config", 4, __metadata__={}),
        written(tmp_path / "other half", 4, **{"middle.x": {"dtype": "F32", "shape": [0], "data_offsets": [4, 4]}}),
        str(tmp_path / "short"),
        str(tmp_path / "fifo"),
        "/dev/zero",
    ):
        with pytest.raises(ValueError, match="init_client: ") as caught:
            load_weights(source)
        assert "\n" not in str(caught.value)


def test_a_file_of_weights_may_have_any_name(tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9.safetensors")
    shutil.copy(EXPERTS / "laptop-shapes.safetensors", path)
    name = "0.conv.weight"
    assert torch.equal(load_weights(str(path)).client[name], load_weights("laptop-shapes").client[name])


def test_clients_start_from_an_expert_and_stay_as_they_are(npz, tmp_path, capsys):
    settings = {**TINY, "bottleneck": "C4S2", "rounds": 2}
    expert = tmp_path / "expert"
    assert run.main([*flags(dataset=npz, out=expert, **settings), "--dashboard", "off"]) == 0
    weights = load_weights(str(expert))
    frozen = {**settings, "init_client": expert, "client_lr": 0.0, "out": tmp_path / "frozen"}
    frozen.pop("syncs_per_round")
    assert run.main([*flags(dataset=npz, init_server=True, **frozen), "--dashboard", "off"]) == 0
    simulation = Simulation.load(tmp_path / "frozen")
    own = torch.cat([weights.client[name].flatten() for name in simulation.model.client.shapes])
    assert torch.equal(simulation.state.clients.online, own)
    assert torch.equal(simulation.state.clients.initial, own)
    summary = json.loads((tmp_path / "frozen" / "summary.json").read_text())
    assert summary["bytes_down_per_client"] == 0
    assert summary["knn_top1_untrained"] == json.loads((expert / "summary.json").read_text())["knn_top1"]
    learning = json.loads((expert / "summary.json").read_text())
    assert summary["client_flops_per_step"] < 0.8 * learning["client_flops_per_step"]  # no backward pass
    capsys.readouterr()
    for wrong, words in (
        ({"width": 8}, "init_client: .* client 0.conv.weight is 4x3x3x3 there, and 8x3x3x3 here"),
        ({"bottleneck": "C2S2"}, "init_client: .* 2x4x3x3 here"),
        ({"init_client": "nobody"}, "init_client: 'nobody' is not known"),
        ({"init_client": npz}, "init_client: .* is no file of weights"),
    ):
        argv = flags(dataset=npz, **{**frozen, "out": tmp_path / "wrong", **wrong})
        assert run.main([*argv, "--dashboard", "off"]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert re.search(words, error), error
    other = RunConfig(**settings | {"dataset": str(npz), "init_client": str(expert), "arch": "resnet8-s1"})
    message = r"^init_client: .*expert sends maps of 4x2x2, and clients here maps of 4x4x4; allowed: the same shape$"
    with pytest.raises(ValueError, match=message):
        Simulation(other)


@pytest.mark.parametrize("name", [pytest.param("laptop-cifar10", marks=pytest.mark.slow), "laptop-shapes"])
def test_experts_that_come_with_simsfl(name, tmp_path):
    """Experts fit the network that they are for, keep their weights if clients do not learn, and are documented."""
    assert name in experts()
    assert (EXPERTS / f"{name}.safetensors").stat().st_size < 1_000_000
    assert name in (EXPERTS / "README.md").read_text()
    options = {"dataset": "shapes", "bottleneck": "C4S2", "client_lr": 0.0, "init_client": name, "rounds": 1}
    config = replace(presets.laptop(), cohort=2, local_epochs=0.02, device="cpu", **options)
    simulation = Simulation(config)
    weights = load_weights(name)
    own = torch.cat([weights.client[key].flatten() for key in simulation.model.client.shapes])
    list(simulation.rounds())
    assert torch.equal(simulation.state.clients.online, own)


def test_a_run_needs_its_expert_only_to_begin(npz, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = {**TINY, "rounds": 1}
    assert run.main([*flags(dataset=npz, out="expert", **settings), "--dashboard", "off"]) == 0
    argv = [*flags(dataset=npz, out="run", init_client="expert", **TINY), "--dashboard", "off"]
    assert run.main(argv) == 0
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    shutil.rmtree("expert")
    manifest = tmp_path / "run" / "checkpoints" / "manifest.json"
    older = json.loads(manifest.read_text())["checkpoints"][1:]
    manifest.write_text(json.dumps({"checkpoints": older}))
    (tmp_path / "run" / "summary.json").unlink()
    assert run.main(["--resume", "run", "--dashboard", "off"]) == 0
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    capsys.readouterr()


def hostile(change):
    """A preparation: a whole file of weights in which `change` changes tensors or the config of the network."""

    def prepare(file):
        weights = load_weights("laptop-shapes")
        tensors = {f"client.{name}": tensor.clone() for name, tensor in weights.client.items()}
        about = weights.config.network()
        change(tensors, about)
        write_tensors(file, tensors, {"config": json.dumps(about)})

    return prepare


def replaced(value):
    """A change: the first number of the first tensor."""
    return lambda tensors, about: next(iter(tensors.values())).view(-1)[:1].fill_(value)


HOSTILE = {
    "nan": (hostile(replaced(float("nan"))), "holds something other than finite numbers"),
    "infinity": (hostile(replaced(float("inf"))), "holds something other than finite numbers"),
    "whole numbers": (
        hostile(lambda tensors, about: tensors.update({next(iter(tensors)): torch.zeros(16, 3, 3, 3).long()})),
        "holds something other than finite numbers",
    ),
    "a tensor less": (hostile(lambda tensors, about: tensors.pop(next(iter(tensors)))), "is nothing, but"),
    "a tensor more": (hostile(lambda tensors, about: tensors.update({"client.x": torch.zeros(2)})), "client.x is 2"),
    "another half": (hostile(lambda tensors, about: tensors.update({"clint.x": torch.zeros(2)})), "holds clint.x"),
    "another network": (hostile(lambda tensors, about: about.update(width=32)), "in the network that it says to be of"),
    "a width that is text": (hostile(lambda tensors, about: about.update(width="wide")), "width: 'wide' is not"),
    "a field more": (hostile(lambda tensors, about: about.update(colour=1)), "colour: is not known"),
    "no config": (lambda file: write_tensors(file, {"client.x": torch.zeros(2)}), "of which network"),
    "a config nested without end": (
        lambda file: write_tensors(file, {"client.x": torch.zeros(2)}, {"config": "[" * 100_000}),
        "nested too deeply",
    ),
    "a header without end": (lambda file: file.write_bytes((2**62).to_bytes(8, "little") + bytes(99)), "damaged"),
    "nothing": (lambda file: file.touch(), "damaged"),
}


@pytest.mark.parametrize(("prepare", "words"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_of_weights_is_refused(prepare, words, tmp_path, capfd):
    file = tmp_path / "x.safetensors"
    prepare(file)
    for field, main, argv in (
        ("init_client", run.main, flags(dataset="shapes", out=tmp_path / "out", init_client=file, rounds=1)),
        ("source", export_checkpoint.main, [str(file), "--out", str(tmp_path / "out")]),
    ):
        assert main(argv) == 2
        error = capfd.readouterr().err
        assert error.startswith(f"error: {field}: {file} is no file of weights (")
        assert error.count("\n") == 1
        assert words in error
    assert not (tmp_path / "out").exists()


def test_a_run_with_weights_that_are_not_finite_is_no_expert(npz, tmp_path, capfd):
    Simulation(RunConfig(**TINY, dataset=str(npz))).save(tmp_path / "run")
    rewritten(tmp_path / "run", tensors=lambda tensors: tensors["clients.online"].fill_(float("nan")))
    assert run.main(flags(dataset=npz, out=tmp_path / "out", init_client=tmp_path / "run", **TINY)) == 2
    assert "holds something other than finite numbers" in capfd.readouterr().err


STRANGE = {
    "a tuple for a name": {("a", ("b", 1)): torch.zeros(2)},
    "a number for a name": {1: torch.zeros(2)},
    "nan": {"a": torch.tensor([0.0, float("nan")])},
    "complex numbers": {"a": torch.zeros(2, dtype=torch.complex64)},
    "a sparse tensor": {"a": torch.eye(3).to_sparse()},
    "a tensor without numbers": {"a": torch.zeros(2, device="meta")},
    "one number, repeated by strides of 0": {"a": torch.zeros(1).expand(10**6, 10**7)},
    "a list": {"a": [torch.zeros(2)]},
    "nothing": {},
}


@pytest.mark.parametrize("content", STRANGE.values(), ids=STRANGE)
def test_a_strange_state_dict_is_refused(content, tmp_path, capfd):
    file = tmp_path / "x.tar"
    torch.save(content, file)
    assert import_checkpoint.main([str(file)]) == 2
    error = capfd.readouterr().err
    assert error.startswith(f"error: files: {file} h")
    assert error.count("\n") == 1
    assert not file.with_suffix(".safetensors").exists()


def test_an_expert_that_was_changed_after_the_run_began(npz, tmp_path, capfd):
    expert, out = tmp_path / "expert", tmp_path / "run"
    Simulation(RunConfig(**TINY, dataset=str(npz))).save(expert)
    Simulation(RunConfig(**TINY, dataset=str(npz), init_client=str(expert))).save(out)
    content = bytearray((out / "start.safetensors").read_bytes())
    content[-3] ^= 1
    (out / "start.safetensors").write_bytes(content)
    assert run.main(["--resume", str(out)]) == 2
    assert "start.safetensors is damaged, or was edited" in capfd.readouterr().err


def test_a_disk_that_is_full_when_weights_are_exported(tmp_path, capfd, monkeypatch):
    def full(path, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    assert export_checkpoint.main(["laptop-shapes", "--out", str(tmp_path / "out")]) == 2
    error = capfd.readouterr().err
    assert error == f"error: [Errno 28] No space left on device: '{tmp_path}/out/client.tar'\n"
