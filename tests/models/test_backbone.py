"""Backbones: joined at the cut, with standardisation folded in, and named as in other libraries."""

import pytest
import torch

from simsfl.config.catalogue import ARCHITECTURES
from simsfl.config.notation import Bottleneck
from simsfl.evaluation.encoding import encoder
from simsfl.models import split_model
from simsfl.models.backbone import folded, joined, joined_names
from tests.conftest import generator

SETTINGS = {"image_size": 32, "head": "mlp", "key_dim": 8, "client_residual": True}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_folded_backbone_computes_the_same_bits(arch):
    """No layer standardises weights any more, and each tensor has memory of its own."""
    width = 64 if arch.startswith("vit") else 8
    model = split_model(arch, width=width, cut_layer=2, generator=generator(), **SETTINGS)
    halves = [half.module(half.initial.clone()).eval() for half in (model.client, model.server)]
    network = folded(joined(*halves, 2))
    images = torch.randn(2, 3, 32, 32, generator=generator(1))
    with torch.no_grad():
        features, expected = network(images), encoder(*halves)[0](images)
    assert torch.equal(features, expected)
    assert not any(getattr(layer, "standardise", False) for layer in network.modules())
    memory = {tensor.untyped_storage().data_ptr() for tensor in network.parameters()}
    assert len(memory) == len(list(network.parameters()))


def test_names_do_not_depend_on_the_cut():
    """A bottleneck has names of its own; the head has none."""
    found = []
    for cut, bottleneck in ((1, None), (3, None), (2, Bottleneck.parse("C4S4"))):
        options = {"width": 8, "generator": generator(), "bottleneck": bottleneck, **SETTINGS}
        model = split_model("resnet18", cut_layer=cut, **options)
        names = joined_names(model, cut)
        for half, own in names.items():
            shapes = getattr(model, half).shapes
            assert set(shapes) - set(own) == {name for name in shapes if name.startswith("head.")}
        found.append({name for own in names.values() for name in own.values()})
    extra = {f"{side}{place}.{kind}" for side in ("narrow", "wide") for place in (0, 2) for kind in ("weight", "bias")}
    assert found[0] == found[1] == found[2] - extra
    assert extra <= found[2]
