"""Architectures: shapes, the cut, initialisation, and numbers of parameters against torchvision's."""

from unittest.mock import patch

import pytest
import torch
import torchvision
from torch import nn

from simsfl import RunConfig, Simulation, extend
from simsfl.algorithm.clients import forward
from simsfl.cli import choices
from simsfl.config import NORMS
from simsfl.config.catalogue import ARCHITECTURES, HEADS
from simsfl.config.notation import Bottleneck
from simsfl.models import Style, client_model, layer_count, split_model
from simsfl.models.layers import Backbone, BatchNorm, ConvNorm
from simsfl.setup.checks import check_machine
from simsfl.testing import _images
from tests.doors.conftest import BASE

IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def build(arch, cut_layer, width=8, **options):
    """Return a network, cut in two, with weights drawn from a fixed seed; a width of None is the published one."""
    options = {"image_size": 32, "head": "mlp", "key_dim": 16, **options}
    width = width or ARCHITECTURES[arch].width
    return split_model(arch, width=width, cut_layer=cut_layer, generator=torch.Generator().manual_seed(5), **options)


class Tokens(nn.Conv2d):
    """Cuts an image into patches, and returns a token for each."""

    def forward(self, x):
        return super().forward(x).flatten(2).transpose(1, 2)


def patches(width=8):
    """Return a layer of patches."""
    return nn.Conv2d(3, width, 8, 8)


SHARED = nn.Conv2d(8, 8, 1)
WRONG = {
    "tokens": (
        lambda: Backbone([Tokens(3, 8, 8, 8), nn.LayerNorm(8)], 8),
        r"odd has a layer Tokens whose output for one image has shape \(1, 16, 8\); allowed: maps \[n, c, h, w\]",
    ),
    "vectors": (
        lambda: Backbone([patches(), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())], 8),
        r"odd has a layer Sequential whose output for one image has shape \(1, 8\); allowed: maps ",
    ),
    "features": (lambda: Backbone([patches()], 9), "odd says that it has 9 features; allowed: 8, the channels behind "),
    "twice": (
        lambda: Backbone([patches(), SHARED, SHARED], 8),
        "odd uses Conv2d, or weights of it, as layers 2 and 3; allowed: modules of its own for each layer",
    ),
    "shared": (
        lambda: Backbone([patches(), nn.Sequential(SHARED), nn.Sequential(SHARED)], 8),
        "odd uses Sequential, or weights of it, as layers 2 and 3; allowed: ",
    ),
    "sequential": (
        lambda: nn.Sequential(patches()),
        r"odd returns a Sequential; allowed: a Backbone\(layers, ",
    ),
    "no list": (
        lambda: Backbone(nn.Sequential(patches()), 8),
        "odd returns a Backbone whose layers are a Sequential; allowed: a list of modules",
    ),
    "no fit": (
        lambda: Backbone([patches(), nn.Conv2d(9, 8, 1)], 8),
        r"odd cannot compute its layer Conv2d for images of 32 pixels \(RuntimeError: .*\); allowed: layers that take ",
    ),
    "no number": (lambda: Backbone([patches()], "8"), "odd says that it has '8' features; allowed: a whole number"),
    "frozen": (
        lambda: Backbone([patches().requires_grad_(False)], 8),
        "odd has weights in layer 1, Conv2d, that need no gradient; allowed: weights that are trained, or buffers",
    ),
    "computed weights": (
        lambda: Backbone([nn.utils.parametrizations.weight_norm(patches())], 8),
        "ParametrizedConv2d has weights that are computed from others .*; allowed: layers whose parameters are ",
    ),
    "dropout": (
        lambda: Backbone([patches(), nn.Sequential(nn.Dropout(0.1))], 8),
        "Dropout draws random numbers, which a resumed run would not draw again; allowed: without it, or with p=0",
    ),
    "no tensor": (
        lambda: Backbone([patches(), nn.LSTM(4, 4)], 8),
        r"odd (cannot compute its layer LSTM|has a layer LSTM whose output for one image has type tuple)",
    ),
}
"""What a plugin's architecture returns, and the error."""


@pytest.mark.parametrize(("made", "message"), WRONG.values(), ids=WRONG)
def test_a_network_of_a_plugin_that_cannot_be_used_is_refused_in_one_line(made, message):
    with patch.dict(ARCHITECTURES):
        extend.architecture("odd", width=8)(lambda width, image_size, style: made())
        for generator in (None, torch.Generator()):
            with pytest.raises(ValueError, match=f"^arch: {message}[^\n]*$"):
                split_model("odd", width=8, cut_layer=1, image_size=32, head="linear", key_dim=4, generator=generator)


def test_clients_have_weights():
    with patch.dict(ARCHITECTURES):
        extend.architecture("late", width=8)(lambda *_: Backbone([nn.AvgPool2d(2), patches(), nn.Conv2d(8, 8, 1)], 8))
        own = {"width": 8, "image_size": 32, "head": "linear", "key_dim": 4, "generator": torch.Generator()}
        with pytest.raises(ValueError, match=r"^cut_layer: 1 of late leaves clients without weights; allow"):
            split_model("late", cut_layer=1, **own)
        assert split_model("late", cut_layer=2, **own).client.size


def test_layers_that_overwrite_what_they_get_compute_what_others_do():
    """Behind the cut they get smashed data whose gradient is wanted, which nobody may overwrite."""

    def network(inplace):
        def layers(width, image_size, style):
            behind = nn.Sequential(nn.ReLU(inplace), nn.Dropout(0.0), nn.Conv2d(8, 8, 3, 2, 1), nn.Hardswish(inplace))
            return Backbone([patches(), nn.ReLU(inplace), behind], 8)

        return layers

    states = []
    with patch.dict(ARCHITECTURES):
        for name, inplace in (("apart", False), ("inplace", True)):
            extend.architecture(name, width=8)(network(inplace))
            simulation = Simulation(RunConfig(**BASE | {"arch": name, "width": None}), _images())
            list(simulation.rounds())
            states.append(simulation.state.tensors())
    for part, own in states[0].items():
        assert torch.equal(own, states[1][part]), part


def test_the_list_goes_on_where_one_network_cannot_be_built():
    def large(width, image_size, style):
        if image_size < 64:
            raise ValueError(f"arch: large needs images of 64 pixels, not {image_size}")
        return Backbone([patches(width)], width)

    with patch.dict(ARCHITECTURES):
        extend.architecture("large", width=8)(large)
        extend.architecture("sequential", width=8)(WRONG["sequential"][0])
        listed = {name: choices._cut_layers(name) for name in ("large", "sequential", "resnet8")}
        assert listed["large"].startswith("cannot be made for images of 32x32: arch: large needs images of 64 pixels")
        assert listed["sequential"].startswith("cannot be made for images of 32x32: ")
        assert listed["resnet8"] == "cut layer 1 to 4"
        check_machine(RunConfig(arch="large", image_size=64))


TOKEN = {"pool": "class"}
"""Options of a vision transformer with a token of the class."""
DEEP = ("resnet34", "resnet101", "resnet152", "vgg19")
"""Architectures that have more of the same blocks than others here, and take long."""


@pytest.mark.parametrize(
    ("arch", "options"),
    [
        *(pytest.param(arch, {}, marks=pytest.mark.slow if arch in DEEP else ()) for arch in ARCHITECTURES),
        ("vit-tiny", TOKEN),
    ],
)
def test_the_cut_changes_nothing(arch, options):
    outputs = []
    for cut_layer in range(1, layer_count(arch, options) + 1):
        model = build(arch, cut_layer, width=4, options=options)
        smashed = model.client.module(model.client.initial)(IMAGES)
        assert smashed.shape[1:] == model.smashed_shape
        outputs.append(model.server.module(model.server.initial)(smashed))
    assert outputs[0].shape == (3, 16)
    for output in outputs[1:]:
        torch.testing.assert_close(output, outputs[0])


def test_resnet18_has_nine_layers_and_torchvisions_weights():
    """All convolutions but the stem, 7x7 there and 3x3 here, have the shapes of torchvision's."""
    assert layer_count("resnet18") == 9
    model = build("resnet18", 9, width=64)
    ours = sorted(tuple(shape) for shape in model.client.shapes.values() if len(shape) == 4)
    theirs = sorted(tuple(p.shape) for p in torchvision.models.resnet18().parameters() if p.dim() == 4)
    assert ours.count((64, 3, 3, 3)) == 1
    ours.remove((64, 3, 3, 3))
    theirs.remove((64, 3, 7, 7))
    assert ours == theirs


@pytest.mark.parametrize(
    ("size", "smashed"), [(32, (8, 32, 32)), (64, (8, 32, 32)), (96, (8, 96, 96)), (224, (8, 112, 112))]
)
def test_stem_of_each_image_size(size, smashed):
    assert build("resnet18", 1, image_size=size).smashed_shape == smashed


@pytest.mark.parametrize(("arch", "features", "mlp"), [("resnet8", 64, 24), ("resnet50", 256, 96)])
@pytest.mark.parametrize("head", HEADS)
def test_heads(head, arch, features, mlp):
    """The MLP's hidden layer is four times as wide behind bottleneck blocks, whose output is four times as wide."""
    model = build(arch, 1, head=head, key_dim=24, width=8)
    shapes = {name: tuple(shape) for name, shape in model.server.shapes.items() if "head" in name and len(shape) == 2}
    hidden = {"linear": None, "mlp": mlp, "large-mlp": 4096}[head]
    expected = [(24, features)] if hidden is None else [(hidden, features), (24, hidden)]
    assert list(shapes.values()) == expected
    assert bool(len(model.server.initial_statistics)) == (head == "large-mlp")


def test_weight_standardisation_is_the_formula():
    layer = ConvNorm(3, 5, 3, 2, Style()).double()
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


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("arch", [arch for arch, known in ARCHITECTURES.items() if known.styled])
def test_parameters_are_torchvisions_but_for_the_listed_differences(arch, norm):
    """Classifiers are not counted; both kinds of norm have the same number of parameters.

    ResNets differ in the stem, which is 3x3 here and 7x7 there. MobileNetV2 has more here: the 1x1 convolution of the
    first stage, and the projections where channels change at stride 1. VGG does not differ.
    """
    if arch.startswith("resnet8"):
        return  # torchvision has no such network
    model = build(arch, 1, width=None, style=Style(norm, norm == "group"), key_dim=4, head="linear")
    ours = model.client.size + model.server.size - 4 * (model.feature_dim + 1)
    if arch.startswith("resnet"):
        extra = 64 * 3 * (3 * 3 - 7 * 7)
    elif arch == "mobilenetv2":
        projections = [(32, 16), (16, 24), (64, 96), (160, 320)]
        extra = 32 * 32 + 2 * 32 + sum(i * o + 2 * o for i, o in projections)
    else:
        extra = 0
    name = {"mobilenetv2": "mobilenet_v2"}.get(arch, f"{arch}_bn" if arch.startswith("vgg") else arch)
    with torch.device("meta"):
        theirs = getattr(torchvision.models, name)()
    classifier = "fc." if arch.startswith("resnet") else "classifier."
    count = sum(p.numel() for name, p in theirs.named_parameters() if not name.startswith(classifier))
    assert ours == count + extra


@pytest.mark.parametrize(("arch", "heads"), [("vit-tiny", 3), ("vit-small", 6)])
def test_parameters_of_transformers_are_torchvisions_without_a_token_of_the_class(arch, heads):
    model = build(arch, 1, width=None, image_size=32, key_dim=4, head="linear")
    width = model.feature_dim
    shape = {"hidden_dim": width, "mlp_dim": 4 * width, "num_heads": heads, "num_classes": 4}
    theirs = torchvision.models.VisionTransformer(image_size=32, patch_size=4, num_layers=12, **shape)
    count = sum(parameter.numel() for parameter in theirs.parameters())
    assert model.client.size + model.server.size == count - 2 * width  # the token and its place
    model = build(arch, 1, width=None, image_size=32, key_dim=4, head="linear", options=TOKEN)
    assert model.client.size + model.server.size == count


def test_a_transformer_with_a_token_of_the_class_is_torchvisions():
    model = build("vit-tiny", 4, width=64, key_dim=5, head="linear", options=TOKEN)
    client, server = (half.module(half.initial.double()) for half in (model.client, model.server))
    generator = torch.Generator().manual_seed(1)
    for half in (client, server):
        for parameter in half.parameters():
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    shape = {"hidden_dim": 64, "mlp_dim": 256, "num_heads": 1, "num_classes": 5}
    theirs = torchvision.models.VisionTransformer(image_size=32, patch_size=4, num_layers=12, **shape).double()
    embedding, *blocks = [*client, *server.backbone]
    copies = {
        theirs.conv_proj.weight: embedding.project.weight.view(64, 3, 4, 4),
        theirs.conv_proj.bias: embedding.project.bias,
        theirs.class_token: embedding.token.view(1, 1, 64),
        theirs.encoder.pos_embedding: embedding.position.view(64, 65).T[None],
        **pairs(theirs.encoder.ln, blocks[-1].norm3),
        **pairs(theirs.heads.head, server.head),
    }
    for layer, block in zip(theirs.encoder.layers, blocks, strict=True):
        copies |= {
            **pairs(layer.ln_1, block.norm1),
            layer.self_attention.in_proj_weight: block.attention.mix.weight,
            layer.self_attention.in_proj_bias: block.attention.mix.bias,
            **pairs(layer.self_attention.out_proj, block.attention.join),
            **pairs(layer.ln_2, block.norm2),
            **pairs(layer.mlp[0], block.perceptron[0]),
            **pairs(layer.mlp[3], block.perceptron[2]),
        }
    assert {id(parameter) for parameter in theirs.parameters()} == {id(parameter) for parameter in copies}
    for parameter, value in copies.items():
        parameter.data.copy_(value.detach())
    for layer in theirs.modules():
        if isinstance(layer, nn.LayerNorm):
            layer.eps = 1e-5
    images = IMAGES.double()
    assert model.smashed_shape == (64, 65, 1)
    torch.testing.assert_close(server(client(images)), theirs.eval()(images))


def pairs(theirs, ours):
    """Return the weight and the bias of a layer of torchvision's, each with ours."""
    return {theirs.weight: ours.weight, theirs.bias: ours.bias}


def test_a_token_of_the_class_has_no_map_for_a_bottleneck():
    with pytest.raises(ValueError, match=r"^bottleneck: is for square maps, .* 2 of vit-tiny are 65x1; allowed: "):
        build("vit-tiny", 2, options=TOKEN, bottleneck=Bottleneck.parse("C4"))


@pytest.mark.parametrize(("arch", "cut_layer"), [("vit-tiny", 2), ("mobilenetv2", 3), ("convnext-tiny", 5)])
def test_a_device_builds_the_clients_half_with_its_bottleneck(arch, cut_layer):
    settings = {"width": 8, "image_size": 32, "cut_layer": cut_layer, "bottleneck": Bottleneck.parse("C4S2")}
    whole = build(arch, **settings)
    own = client_model(arch, **settings, style=Style(), client_residual=True)
    assert own.shapes == whole.client.shapes


def test_parameters_of_convnext_are_torchvisions():
    model = build("convnext-tiny", 1, width=None, image_size=64, key_dim=4, head="linear")
    with torch.device("meta"):
        theirs = torchvision.models.convnext_tiny(num_classes=4)
    assert model.client.size + model.server.size == sum(parameter.numel() for parameter in theirs.parameters())


@pytest.mark.parametrize("size", [32, 64, 96, 224])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture_takes_every_image_size(arch, size):
    model = build(arch, 2, width=4, image_size=size)
    smashed = model.client.module(model.client.initial)(torch.zeros(2, 3, size, size))
    assert smashed.shape == (2, *model.smashed_shape)
    assert model.server.module(model.server.initial).features(smashed).shape == (2, model.feature_dim)


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("C4S2", (4, 16, 16)),
        ("C8", (8, 32, 32)),
        ("K1C2noReLU", (2, 32, 32)),
        ("K5C3S4", (3, 8, 8)),
        ("c4s1norelu", (4, 32, 32)),
    ],
)
def test_bottleneck_narrows_on_the_client_and_widens_on_the_server(text, shape):
    plain, model = build("resnet18", 2), build("resnet18", 2, bottleneck=Bottleneck.parse(text))
    assert model.smashed_shape == shape
    smashed = model.client.module(model.client.initial)(IMAGES)
    assert (smashed.min() >= 0) == ("no" not in text)
    backbone = model.server.module(model.server.initial).backbone
    count = len(backbone) - len(plain.server.module(plain.server.initial).backbone)
    assert backbone[:count](smashed).shape[1:] == plain.smashed_shape
    for name, value in plain.client.named(plain.client.initial).items():  # the rest of the network is the same
        assert torch.equal(value, model.client.named(model.client.initial)[name])


@pytest.mark.parametrize("size", [24, 28, 36, 50])
def test_a_bottleneck_brings_maps_of_any_size_back(size):
    plain = build("resnet18", 4, width=4, image_size=size)
    model = build("resnet18", 4, width=4, image_size=size, bottleneck=Bottleneck.parse("C2S4"))
    smashed = model.client.module(model.client.initial)(torch.zeros(1, 3, size, size))
    wide = model.server.module(model.server.initial).backbone[:4]
    assert wide(smashed).shape[1:] == plain.smashed_shape


def test_a_bottleneck_that_does_not_fit_is_refused_with_cut_layers_that_do():
    with pytest.raises(ValueError, match=r"maps of 4x4 .*; allowed: stride 1 to 4, or cut layer 1, 2"):
        build("resnet18", 9, width=4, bottleneck=Bottleneck.parse("C4S8"))


def test_no_client_residual_is_a_plain_stack_up_to_the_cut():
    model = build("resnet18", 4, client_residual=False)
    assert not any("shortcut" in name for name in model.client.shapes)
    assert any("shortcut" in name for name in model.server.shapes)
    client = model.client.module(model.client.initial)
    block = client[3]
    x = client[:3](IMAGES)
    expected = block.conv2(block.conv1(x, relu=True)).relu()
    torch.testing.assert_close(block(x), expected)


def test_batch_norm_of_stacked_clients_is_torchs_for_each():
    style = Style("batch", standardise=False)
    model = build("resnet8", 2, style=style)
    generator = torch.Generator().manual_seed(1)
    parameters = model.client.initial + 0.1 * torch.randn(3, model.client.size, generator=generator)
    images = torch.randn(3, 2, 3, 32, 32, generator=generator)
    statistics = model.client.initial_statistics.expand(3, -1).clone()
    stacked = torch.cat(forward(model.client, parameters, statistics, [images]))
    for row, own, x, output in zip(parameters, statistics, images, stacked, strict=True):
        module = model.client.module(row)
        for layer in list(module.modules()):
            for name, child in layer.named_children():
                if isinstance(child, BatchNorm):
                    theirs = nn.BatchNorm2d(len(child.weight))
                    theirs.load_state_dict(child.state_dict(), strict=False)
                    setattr(layer, name, theirs)
        torch.testing.assert_close(module(x), output, rtol=1e-4, atol=1e-5)
        for name, value in model.client.named_statistics(own).items():
            torch.testing.assert_close(module.state_dict()[name], value, rtol=1e-4, atol=1e-5)
        evaluated = model.client.module(row, own).eval()(x)
        torch.testing.assert_close(evaluated, module.eval()(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cohort", [1, 7, 60])
def test_stacked_forward_is_each_clients_own(cohort):
    """Each client's stacked output is that of its own module, also where there are more clients than in a chunk."""
    model = build("resnet8", 2)
    generator = torch.Generator().manual_seed(1)
    parameters = model.client.initial + 0.1 * torch.randn(cohort, model.client.size, generator=generator)
    images = torch.randn(cohort, 2, 3, 32, 32, generator=generator)
    statistics = torch.empty(cohort, 0)
    stacked = torch.cat(forward(model.client, parameters, statistics, [images], chunk=25))
    for row, x, output in zip(parameters, images, stacked, strict=True):
        torch.testing.assert_close(model.client.module(row)(x), output, rtol=1e-4, atol=1e-5)
