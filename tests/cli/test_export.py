"""Exported networks compute the features of the run they come from, in plain PyTorch, torchvision and timm."""

import json
import re

import pytest
import torch
from safetensors import safe_open

from simsfl import RunConfig, Simulation
from simsfl.cli.export import program
from simsfl.rounds import evaluating
from tests.conftest import TINY, generator

WIDE = {"width": 64, "image_size": 32}
CASES = {
    "resnet8": ("safetensors", {}),
    "resnet8-program": ("torch.export", {"cut_layer": 2, "norm": "batch", "align_momentum": True}),
    "resnet8-federated": ("safetensors", {"method": "fl-byol"}),
    "resnet18-bottleneck": (
        "safetensors",
        {"arch": "resnet18", "cut_layer": 3, "bottleneck": "C4S2", "client_residual": False, "image_size": 32},
    ),
    "resnet18-torchvision": ("torchvision", {"arch": "resnet18", **WIDE}),
    "resnet18-timm": ("timm", {"arch": "resnet18", "norm": "batch", "cut_layer": 4, **WIDE}),
    "resnet18-large": ("torchvision", {"arch": "resnet18", "width": 64, "image_size": 224}),
    "resnet50-torchvision": ("torchvision", {"arch": "resnet50", "cut_layer": 2, "width": 64, "image_size": 64}),
    "resnet50-program": ("torch.export", {"arch": "resnet50", "image_size": 32}),
    "vgg11": ("safetensors", {"arch": "vgg11", "cut_layer": 3, "image_size": 32}),
    "mobilenetv2": ("safetensors", {"arch": "mobilenetv2", "image_size": 32}),
    "vit-tiny": ("timm", {"arch": "vit-tiny", **WIDE}),
    "vit-tiny-token": ("timm", {"arch": "vit-tiny", "options": {"arch.pool": "class"}, **WIDE, "width": 128}),
    "vit-tiny-own": ("safetensors", {"arch": "vit-tiny", "options": {"arch.pool": "class"}, **WIDE}),
    "vit-small-program": ("torch.export", {"arch": "vit-small", **WIDE}),
    "convnext": ("timm", {"arch": "convnext-tiny", "image_size": 64, "width": 8}),
    "convnext-own": ("safetensors", {"arch": "convnext-tiny", "image_size": 32, "width": 8}),
}
"""Formats, and config fields of the networks that are exported in them."""
FAST = ("resnet18-torchvision", "vit-tiny")
ROUNDED = {"resnet50-torchvision": 1e-4}
"""Differences of features in float32 where the run's own differ as much from those in float64; others: 1e-5."""


def saved(path, npz, **fields):
    """Save a run whose weights and running statistics are none that layers begin with; return it."""
    simulation = Simulation(RunConfig(**TINY | {"dataset": str(npz), "knn_bank": 1, "knn_test": 1} | fields))
    for part in (simulation.state.clients, simulation.state.server):
        for tensor in (part.online, part.online_statistics):
            tensor.add_(torch.rand(tensor.shape, generator=generator(1)), alpha=0.02)
    simulation.save(path)
    return simulation


def executed(card, section, into=None, **values):
    """Run the code in a section of a card, with these names and those in `into`; return the names that it leaves."""
    names = {} if into is None else into
    names.update(values)
    code = re.search(rf"## {section}\n\n```python\n(.*?)```", card.read_text(), flags=re.DOTALL)[1]
    exec(compile(code, section, "exec"), names)
    return names


@pytest.mark.parametrize(
    ("format", "fields", "tolerance"),
    [
        pytest.param(*case, ROUNDED.get(name, 1e-5), id=name, marks=() if name in FAST else pytest.mark.slow)
        for name, case in CASES.items()
    ],
)
def test_features_are_those_of_the_run(format, fields, tolerance, npz, tmp_path, monkeypatch, capsys):
    """The card's code loads the file, for any number of images."""
    if format == "timm":
        pytest.importorskip("timm")
    simulation = saved(tmp_path / "run", npz, **fields)
    assert program.main([str(tmp_path / "run"), "--format", format]) == 0
    (file,) = (tmp_path / "run" / "exports").glob(f"*{program.FORMATS[format]}")
    monkeypatch.chdir(file.parent)
    images = torch.randn(3, 3, *[simulation.config.image_size] * 2, generator=generator())
    loaded = executed(file.with_name(f"{file.name}.md"), "Load it", images=images)
    with torch.no_grad():
        for count in (1, 2, 3):
            expected = simulation.encoder("backbone")(images[:count])
            torch.testing.assert_close(loaded["network"](images[:count]), expected, atol=tolerance, rtol=tolerance)
    assert expected.std() > 1e-3
    assert loaded["features"].shape == (3, simulation.model.feature_dim)
    capsys.readouterr()


@pytest.mark.parametrize("format", ["torch.export", pytest.param("safetensors", marks=pytest.mark.slow)])
def test_the_cards_code_fine_tunes_the_backbone(format, npz, tmp_path, monkeypatch, capsys):
    simulation = saved(tmp_path / "run", npz)
    name = f"mine{program.FORMATS[format]}"
    assert program.main([str(tmp_path / "run"), "--format", format, "--out", str(tmp_path / name)]) == 0
    monkeypatch.chdir(tmp_path)
    labels = torch.arange(20) % 2
    images = torch.randn(20, 3, 8, 8, generator=generator()) + labels[:, None, None, None]
    torch.manual_seed(0)
    values = executed(tmp_path / f"{name}.md", "Load it", images=images)
    losses = []

    def batches():
        for _ in range(30):
            yield images, labels
            losses.append(values["loss"].item())

    before = [weight.detach().clone() for weight in values["network"].parameters() if weight.requires_grad]
    executed(tmp_path / f"{name}.md", "Fine-tune it", batches=batches(), into=values)
    assert losses[-1] < 0.5 * losses[0]
    after = [weight for weight in values["network"].parameters() if weight.requires_grad]
    assert len(after) == len(list(simulation.encoder("backbone").parameters()))
    assert not any(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    if format == "safetensors":
        with safe_open(name, "pt") as file:
            assert file.metadata()["card"] == (tmp_path / f"{name}.md").read_text()
    capsys.readouterr()


@pytest.mark.parametrize("cut", [1, 2])
def test_a_frozen_client_is_a_program(cut, npz, tmp_path, capsys):
    """A client that has learnt TAResSFL, which stays as it is, sends the same from the program on a device."""
    expert = saved(tmp_path / "expert", npz, cut_layer=cut, bottleneck="C4S2", ressfl_lambda=1.0)
    start = {"init_client": str(tmp_path / "expert"), "client_lr": 0.0, "syncs_per_round": None}
    fields = TINY | {"cut_layer": cut, "bottleneck": "C4S2", "dataset": str(npz), "rounds": 1} | start
    simulation = Simulation(RunConfig(**fields))
    list(simulation.rounds())
    simulation.save(tmp_path / "run")
    assert program.main([str(tmp_path / "run"), "--part", "client", "--out", str(tmp_path / "client.pt2")]) == 0
    device = torch.export.load(tmp_path / "client.pt2").module()
    images = torch.randn(3, 3, 8, 8, generator=generator())
    with torch.no_grad():
        for one in (expert, simulation):
            module = evaluating.client(one.parts)
            torch.testing.assert_close(device(images), module(images), atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(device(images[:1]), module(images[:1]), atol=1e-5, rtol=1e-5)
    assert not any(parameter.requires_grad for parameter in device.parameters())
    card = (tmp_path / "client.pt2.md").read_text()
    assert f"up to cut layer {cut}" in card
    assert f"smashed data [n, {', '.join(map(str, simulation.model.smashed_shape))}]" in card
    mean = simulation.dataset.train.mean.flatten().tolist()
    assert f"| mean | {', '.join(f'{one:.6g}' for one in mean)} |" in card
    capsys.readouterr()


@pytest.mark.parametrize(
    ("fields", "argv", "words"),
    [
        ({}, ["--format", "torchvison"], "format: 'torchvison' is not known (did you mean torchvision?); allowed: "),
        (
            {},
            ["--format", "timm"],
            "format: timm has no network like resnet8; allowed for it: safetensors or torch.expo",
        ),
        (
            {"arch": "resnet18", "image_size": 32},
            ["--format", "torchvision"],
            "format: torchvision has no such network: this one has width 4, and not 64; allowed for it: ",
        ),
        (
            {"arch": "vit-tiny", **WIDE, "bottleneck": "C4S2"},
            ["--format", "timm"],
            "this one has a bottleneck at the cut (C4S2); allowed for it: safetensors or torch.export",
        ),
        ({}, ["--format", "timm", "--part", "client"], "format: timm is for whole networks, and not for a client"),
        ({"method": "federated"}, ["--part", "client"], "part: a client of method federated has the whole network"),
        ({}, ["--out", "x.pt"], "x.pt does not end as format safetensors does; allowed: a name with .safetensors"),
        ({}, ["--out", "mine.safetensors"], "mine.safetensors was not written by simsfl, or has been changed since"),
        (
            None,
            ["laptop-shapes"],
            "part: backbone needs the server's half, which laptop-shapes.safetensors lacks; allowed: client",
        ),
        (
            None,
            ["nowhere"],
            "source: 'nowhere' is not known; allowed: laptop-cifar10, laptop-shapes, or the directory ",
        ),
    ],
)
def test_what_cannot_be_exported(fields, argv, words, npz, tmp_path, monkeypatch, capfd):
    """Each mistake gets one line and exit code 2, and no file is left behind."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.safetensors").write_text("notes")
    if fields is not None:
        saved(tmp_path / "run", npz, **fields)
        argv = ["run", *argv]
    before = sorted(tmp_path.rglob("*"))
    assert program.main(argv) == 2
    error = capfd.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_of_an_earlier_version_is_normalised_by_its_images(npz, tmp_path, capsys):
    """Such a run has not recorded what images are normalised by."""
    simulation = saved(tmp_path / "run", npz)
    config = tmp_path / "run" / "config.json"
    content = json.loads(config.read_text())
    mean, std = content["dataset"].pop("mean"), content["dataset"].pop("std")
    assert (mean, std) == (
        simulation.dataset.train.mean.flatten().tolist(),
        simulation.dataset.train.std.flatten().tolist(),
    )
    config.write_text(json.dumps({name: value for name, value in content.items() if name != "sha256"}))
    assert program.main([str(tmp_path / "run"), "--part", "client"]) == 0
    card = (tmp_path / "run" / "exports" / "client.pt2.md").read_text()
    assert f"| std | {', '.join(f'{one:.6g}' for one in std)} |" in card
    capsys.readouterr()
