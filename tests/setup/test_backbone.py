"""Runs that start from the weights of torchvision, timm, or an exported backbone."""

import re
from fnmatch import fnmatch

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import resnet18

from simsfl import RunConfig, Simulation
from simsfl.cli import run
from simsfl.cli.export import program as export
from simsfl.models.backbone import joined
from tests.conftest import TINY, flags, generator
from tests.simulations import assert_same_state

SETTINGS = {**TINY, "arch": "resnet18", "width": 64, "image_size": 32, "cut_layer": 2, "knn_bank": 1, "knn_test": 1}
"""Config fields of a network that is built like torchvision's ResNet-18, apart from its stem."""


@pytest.fixture(scope="module")
def other():
    """Return torchvision's ResNet-18 with the stem of one for small images, and running statistics of its own."""
    network = resnet18(weights=None)
    network.conv1, network.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            tensor.add_(torch.rand(tensor.shape, generator=generator(len(name))), alpha=0.1)
    return network


@pytest.fixture(scope="module")
def file(other, tmp_path_factory):
    """Return the path of a file with the weights of `other`."""
    path = tmp_path_factory.mktemp("other") / "resnet18.pth"
    torch.save(other.state_dict(), path)
    return path


@pytest.mark.parametrize("method", ["mocosfl", pytest.param("federated", marks=pytest.mark.slow)])
def test_all_models_start_from_torchvision(method, other, file, npz, caplog):
    """Online and momentum models compute torchvision's features; its classifier is listed, which nothing takes."""
    settings = SETTINGS | {"norm": "batch", "method": method, "batch_size": 4, "dataset": str(npz)}
    simulation = Simulation(RunConfig(**settings, init_backbone=str(file)))
    listing = f"init_backbone: 100 of the backbone's 100 tensors start from {file}; not used: fc.weight, fc.bias"
    assert [one.message for one in caplog.records if "init_backbone" in one.message] == [listing]
    images = torch.randn(2, 3, 32, 32, generator=generator())
    clients, server = simulation.state.clients, simulation.state.server
    with torch.no_grad():
        expected = nn.Sequential(*list(other.eval().children())[:-1], nn.Flatten())(images)
        torch.testing.assert_close(simulation.encoder("backbone")(images), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(clients.initial, clients.online)
    assert torch.equal(clients.initial_statistics, clients.online_statistics)
    assert torch.equal(server.momentum, server.online)
    assert torch.equal(server.momentum_statistics, server.online_statistics)


def load(file):
    """Return a state dict."""
    return torch.load(file, weights_only=True)


def test_what_does_not_fit_is_drawn_as_usual_and_listed(file, npz, caplog):
    """BatchNorm is not taken for GroupNorm, nor weights of another shape, nor what a bottleneck adds."""
    settings = SETTINGS | {"image_size": 64, "bottleneck": "C4S2", "dataset": str(npz)}
    torchvision = load(file) | {"conv1.weight": torch.zeros(64, 3, 7, 7)}
    torch.save(torchvision, file.with_name("large.pt"))
    simulation = Simulation(RunConfig(**settings, init_backbone=str(file.with_name("large.pt"))))
    (listing,) = (one.message for one in caplog.records if "init_backbone" in one.message)
    assert listing.startswith("init_backbone: 19 of the backbone's 64 tensors start from ")
    assert "does not fit: conv1.weight (64x3x7x7 there, 64x3x3x3 here), bn1.weight (another normalisation), " in listing
    assert ", 16 layer*.*.bn*.weight (another normalisation), 16 layer*.*.bn*.bias (another normalisation), " in listing
    assert "; not in the file: narrow0.weight, narrow0.bias, wide0.weight, wide0.bias" in listing
    unused = [name for name in torchvision if "running" in name or name.startswith("fc.")]
    kinds = re.findall(r"(\d+)? ?([a-z*][\w.*]+)", listing.partition("; not used: ")[2])
    assert sum(int(count or 1) for count, _ in kinds) == len(unused) == 42
    for _, kind in kinds:
        assert any(fnmatch(name, kind) for name in unused), kind
    drawn = Simulation(RunConfig(**settings)).model.client
    client = simulation.model.client
    own, usual = client.named(simulation.state.clients.online), drawn.named(drawn.initial)
    assert torch.equal(own["1.conv1.conv.weight"], torchvision["layer1.0.conv1.weight"])
    for name in set(own) - {"1.conv1.conv.weight", "1.conv2.conv.weight"}:
        assert torch.equal(own[name], usual[name]), name


@pytest.mark.parametrize("method", ["mocosfl", pytest.param("fl-byol", marks=pytest.mark.slow)])
def test_the_file_is_needed_only_to_begin(method, npz, tmp_path):
    """A run that is stopped goes on without the file, and ends as one that is not stopped."""
    settings, file = TINY | {"method": method, "rounds": 2, "dataset": str(npz)}, tmp_path / "x.pt"
    model = Simulation(RunConfig(**settings, seed=7)).parts.untrained()
    halves = [half.module(half.initial) for half in (model.client, model.server)]
    torch.save(joined(*halves, 1).state_dict(), file)
    config = RunConfig(**settings, init_backbone=str(file))
    whole, stopped = Simulation(config), Simulation(config)
    list(whole.rounds())
    next(stopped.rounds())
    stopped.save(tmp_path / "run")
    file.unlink()
    resumed = Simulation.load(tmp_path / "run")
    list(resumed.rounds())
    assert_same_state(resumed, whole)


def test_an_exported_backbone_gives_its_features(npz, tmp_path, capsys):
    """Weights that are standardised already are standardised again, which changes them by their epsilon."""
    first = Simulation(RunConfig(**TINY, seed=3, dataset=str(npz)))
    first.save(tmp_path / "run")
    file = tmp_path / "x.safetensors"
    assert export.main([str(tmp_path / "run"), "--out", str(file)]) == 0
    second = Simulation(RunConfig(**TINY | {"cut_layer": 3}, dataset=str(npz), init_backbone=str(file)))
    images = torch.randn(2, 3, 8, 8, generator=generator())
    with torch.no_grad():
        one, other = (simulation.encoder("backbone")(images) for simulation in (first, second))
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)
    capsys.readouterr()


def test_vision_transformers_start_from_timm(npz, tmp_path):
    timm = pytest.importorskip("timm")
    network = timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=4, embed_dim=64, depth=12, num_heads=1, num_classes=3
    )
    torch.nn.init.normal_(network.cls_token)
    save_file(network.state_dict(), tmp_path / "vit.safetensors")
    settings = SETTINGS | {"arch": "vit-tiny", "options": {"arch.pool": "class"}, "dataset": str(npz)}
    simulation = Simulation(RunConfig(**settings, init_backbone=str(tmp_path / "vit.safetensors")))
    images = torch.randn(2, 3, 32, 32, generator=generator())
    with torch.no_grad():
        expected = network.eval().forward_head(network.forward_features(images), pre_logits=True)
        torch.testing.assert_close(simulation.encoder("backbone")(images), expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            {"fc.weight": torch.zeros(2)},
            "nothing in .* fits resnet18 of width 64, it has other names, such as fc.weight; allowed: .* network$",
        ),
        (
            {"conv1.weight": torch.zeros(8, 3, 3, 3)},
            r"conv1.weight \(8x3x3x3 there, 64x3x3x3 here\); .* for this network, or width 8$",
        ),
        ({"conv1.weight": torch.full((64, 3, 3, 3), float("nan"))}, "other than finite numbers in conv1.weight"),
        ({"conv1.weight": [1]}, "holds no state dict"),
        ({"conv1.weight": print}, "is damaged, or holds more than tensors"),
        (None, "there is no file"),
    ],
)
def test_what_no_run_can_start_from(content, words, npz, tmp_path, capfd):
    if content is not None:
        torch.save(content, tmp_path / "x.pt")
    argv = flags(**SETTINGS, dataset=npz, out=tmp_path / "out", init_backbone=tmp_path / "x.pt")
    assert run.main([*argv, "--dashboard", "off"]) == 2
    error = capfd.readouterr().err
    assert error.startswith("error: init_backbone: ")
    assert error.count("\n") == 1
    assert re.search(words, error), error
    assert not (tmp_path / "out").exists()


def test_an_expert_and_a_backbone_exclude_each_other():
    with pytest.raises(ValueError, match=r"init_backbone: x.pt and init_client are both .*; allowed: one of them"):
        RunConfig(init_client="laptop-shapes", init_backbone="x.pt")
