"""Architectures: shapes, the cut, initialisation, and counts against torchvision's."""

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from simsfl.clients import forward
from simsfl.models import ARCHITECTURES, HEADS, layer_count, split_model
from simsfl.models.layers import ConvNorm

IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def build(arch, cut_layer, width=8, **options):
    options = {"image_size": 32, "head": "mlp", "key_dim": 16, **options}
    return split_model(arch, width=width, cut_layer=cut_layer, generator=torch.Generator().manual_seed(5), **options)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_cut_changes_nothing(arch):
    outputs = []
    for cut_layer in range(1, layer_count(arch) + 1):
        model = build(arch, cut_layer)
        smashed = model.client.module(model.client.initial)(IMAGES)
        assert smashed.shape[1:] == model.smashed_shape
        outputs.append(model.server.module(model.server.initial)(smashed))
    assert outputs[0].shape == (3, 16)
    for output in outputs[1:]:
        torch.testing.assert_close(output, outputs[0])


def test_resnet18_has_nine_layers_and_torchvisions_weights():
    """Apart from the stem (7x7 there, 3x3 here) and the classifier, the convolutions coincide."""
    assert layer_count("resnet18") == 9
    model = build("resnet18", 9, width=64)
    ours = sorted(tuple(shape) for shape in model.client.shapes.values() if len(shape) == 4)
    theirs = sorted(tuple(p.shape) for p in resnet18().parameters() if p.dim() == 4)
    assert ours.count((64, 3, 3, 3)) == 1
    ours.remove((64, 3, 3, 3))
    theirs.remove((64, 3, 7, 7))
    assert ours == theirs


@pytest.mark.parametrize(
    ("size", "smashed"), [(32, (8, 32, 32)), (64, (8, 32, 32)), (96, (8, 96, 96)), (224, (8, 112, 112))]
)
def test_stem_of_each_image_size(size, smashed):
    assert build("resnet18", 1, image_size=size).smashed_shape == smashed


@pytest.mark.parametrize("head", HEADS)
def test_heads(head):
    model = build("resnet8", 1, head=head, key_dim=24)
    shapes = {name: tuple(shape) for name, shape in model.server.shapes.items() if "head" in name and len(shape) == 2}
    hidden = {"linear": None, "mlp": 24, "large-mlp": 4096}[head]
    expected = [(24, 64)] if hidden is None else [(hidden, 64), (24, hidden)]
    assert list(shapes.values()) == expected
    assert bool(model.server.initial_buffers) == (head == "large-mlp")


def test_weight_standardisation_is_the_formula():
    layer = ConvNorm(3, 5, 3, stride=2).double()
    x = torch.randn(2, 3, 7, 7, dtype=torch.float64)
    weight = torch.empty_like(layer.conv.weight)
    for channel, w in enumerate(layer.conv.weight.detach()):
        mean = w.sum() / w.numel()
        std = (((w - mean) ** 2).sum() / (w.numel() - 1)).sqrt()
        weight[channel] = (w - mean) / (std + 1e-5)
    expected = layer.norm(nn.functional.conv2d(x, weight, stride=2, padding=1))
    torch.testing.assert_close(layer(x), expected)


def test_initialisation_is_xavier_with_zero_bias_and_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    model = build("resnet18", 9, width=32, key_dim=256)
    assert torch.equal(torch.random.get_rng_state(), before)
    for flat in (model.client, model.server):
        for name, value in flat.named(flat.initial).items():
            if name.endswith("bias"):
                assert (value == 0).all()
            elif value.dim() >= 2:
                receptive = value[0, 0].numel()
                bound = (6 / ((value.shape[0] + value.shape[1]) * receptive)) ** 0.5
                assert 0.9 * bound < value.abs().max() <= bound
                assert value.std() == pytest.approx(bound / 3**0.5, rel=0.1)


@pytest.mark.parametrize("cohort", [1, 7, 60])
def test_stacked_forward_is_each_clients_own(cohort):
    """More clients than one chunk, too."""
    model = build("resnet8", 2)
    generator = torch.Generator().manual_seed(1)
    parameters = model.client.initial + 0.1 * torch.randn(cohort, model.client.size, generator=generator)
    images = torch.randn(cohort, 2, 3, 32, 32, generator=generator)
    stacked = torch.cat(forward(model.client, parameters, images, chunk=25))
    for row, x, output in zip(parameters, images, stacked, strict=True):
        torch.testing.assert_close(model.client.module(row)(x), output, rtol=1e-4, atol=1e-5)
