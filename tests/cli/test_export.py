"""Exported networks compute the features of the run they come from, in plain PyTorch, torchvision and timm."""

import re

import pytest
import torch

from simsfl import RunConfig, Simulation
from simsfl.cli.export import program
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
    "resnet34-large": ("torchvision", {"arch": "resnet34", "width": 64, "image_size": 224, "norm": "batch"}),
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
FAST = ("resnet8", "resnet18-torchvision", "resnet18-timm", "vit-tiny")


def saved(path, npz, **fields):
    """Save a run whose weights and running statistics are none that layers begin with; return it."""
    simulation = Simulation(RunConfig(**TINY | {"dataset": str(npz), "knn_bank": 1, "knn_test": 1} | fields))
    for part in (simulation.state.clients, simulation.state.server):
        for tensor in (part.online, part.online_statistics):
            tensor.add_(torch.rand(tensor.shape, generator=generator(1)), alpha=0.1)
    simulation.save(path)
    return simulation


def executed(card, section, **values):
    """Run the code in a section of a card; return what it has made."""
    code = re.search(rf"## {section}\n\n```python\n(.*?)```", card.read_text(), flags=re.DOTALL)[1]
    exec(compile(code, section, "exec"), values)
    return values


@pytest.mark.parametrize(
    ("format", "fields"),
    [pytest.param(*case, id=name, marks=() if name in FAST else pytest.mark.slow) for name, case in CASES.items()],
)
def test_features_are_those_of_the_run(format, fields, npz, tmp_path, monkeypatch, capsys):
    """The card's code loads the file; the network computes the features of the run, and can be fine-tuned."""
    if format == "timm":
        pytest.importorskip("timm")
    simulation = saved(tmp_path / "run", npz, **fields)
    assert program.main([str(tmp_path / "run"), "--format", format]) == 0
    (file,) = (tmp_path / "run" / "exports").glob(f"*{program.FORMATS[format]}")
    monkeypatch.chdir(file.parent)
    images = torch.randn(3, 3, *[simulation.config.image_size] * 2, generator=generator())
    loaded = executed(file.with_name(f"{file.name}.md"), "Load it", images=images)
    with torch.no_grad():
        expected = simulation.encoder("backbone")(images)
        for count in (1, 2, 3):
            torch.testing.assert_close(loaded["network"](images[:count]), expected[:count], atol=1e-5, rtol=1e-5)
    assert expected.std() > 1e-3
    assert loaded["features"].shape == (3, simulation.model.feature_dim)
