"""The cost model against sums by hand, what the paper published, and what a run counted."""

import json
from dataclasses import replace

import pytest
import torch

from simsfl import RunConfig, Simulation
from simsfl.cli.cost import program as cost
from simsfl.cli.cost import tables as costs
from simsfl.cli.cost.tables import _PUBLISHED, _paper_way, estimate
from simsfl.config.catalogue import DATASETS, Code, DataSet
from simsfl.config.notation import Bottleneck
from simsfl.cost.measured import training_bytes
from simsfl.cost.model import memory, operations
from simsfl.data import make_dataset
from simsfl.data.shapes import shapes
from simsfl.models import split_model
from tests.conftest import TINY


def stem(width=8, size=16):
    """Return a network with only the first convolution on the client."""
    generator = torch.Generator()
    return split_model(
        "resnet18", width=width, cut_layer=1, image_size=size, head="mlp", key_dim=8, generator=generator
    )


def test_operations_of_a_stem_by_hand():
    found = operations(stem().client, (3, 16, 16), of_images=True)
    maps, macs = 8 * 16 * 16, 8 * 16 * 16 * 3 * 9
    assert (found.macs, found.normalised) == (macs, maps)
    assert found.forward == 2 * macs + 8 * maps
    assert found.backward == 2 * macs + 16 * maps  # the backward pass is for weights only: images need no gradient
    assert found.step(views=2, graded=1) == 2 * found.forward + found.backward
    assert found.step(views=2, graded=0) == 2 * found.forward


def test_operations_of_a_server_are_those_of_its_layers():
    """Count the operations of the server with hooks on ordinary modules."""
    model = stem()
    macs = 0

    def count(module, inputs, output):
        nonlocal macs
        macs += output.numel() * module.weight[0].numel()

    server = model.server.module(model.server.initial)
    from simsfl.models.layers import ConvNorm  # noqa: PLC0415

    for layer in server.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.register_forward_hook(count)
        elif isinstance(layer, ConvNorm):
            layer.register_forward_hook(lambda own, inputs, output: count(own.conv, inputs, output))
    server(torch.zeros(1, *model.smashed_shape))
    found = operations(model.server, model.smashed_shape)
    assert found.macs == macs
    assert found.backward == 4 * macs + 16 * found.normalised  # the backward pass is for weights and smashed data


NARROW = {"bottleneck": Bottleneck.parse("C4S2")}
COUNTED = {
    **dict.fromkeys(("resnet8", "resnet50", "vgg11", "mobilenetv2", "vit-tiny"), NARROW),
    "vit-small": {"options": {"pool": "class"}},
}
"""Arguments of networks whose operations are counted, by architecture."""


@pytest.mark.parametrize(("arch", "options"), COUNTED.items(), ids=COUNTED)
def test_operations_are_those_that_pytorch_counts(arch, options):
    """PyTorch's counter takes a second to import, so the library does not use it, but agrees with it."""
    from torch.utils.flop_counter import FlopCounterMode  # noqa: PLC0415

    model = split_model(
        arch,
        width=8,
        cut_layer=2,
        image_size=32,
        head="mlp",
        key_dim=8,
        generator=torch.Generator(),
        **options,
    )
    for half, shape in ((model.client, (3, 32, 32)), (model.server, model.smashed_shape)):
        images = half is model.client
        found = operations(half, shape, of_images=images)
        module = half.module(half.initial)
        with FlopCounterMode(display=False) as counter:
            output = module(torch.rand(1, *shape, requires_grad=not images))
            forward = counter.get_total_flops()
            output.sum().backward()
        assert forward == 2 * found.macs
        if arch != "mobilenetv2":  # it counts weight gradients of grouped convolutions as if they were not grouped
            assert counter.get_total_flops() - forward == found.backward - 16 * found.normalised


def test_memory_of_a_stem_by_hand():
    """Image, convolution and output are kept for three images, and a mean and a deviation for each group."""
    model = stem()
    found = memory(model.client, (3, 16, 16), 3)
    parameters = 4 * (8 * 3 * 9 + 16)
    assert [found.weights, found.momentum, found.velocity, found.gradients] == [parameters] * 4
    kept = 3 * 4 * (3 + 8 + 8) * 16 * 16
    assert kept <= found.activations <= kept + 3 * 4 * 2 * 2 + 2 * parameters  # weights before and after standardising
    assert found.workspace == 2 * 3 * 4 * 8 * 16 * 16
    frozen = memory(model.client, (3, 16, 16), 3, learns=False)
    assert frozen.total == 2 * parameters + frozen.workspace


@pytest.mark.parametrize("learns", [True, False])
def test_memory_is_about_what_is_measured(learns):
    """The gradient that the server sends is among the measured bytes, but not among the estimated ones."""
    model = stem(width=16, size=32)
    found = memory(model.client, (3, 32, 32), 2, learns=learns).total
    measured = training_bytes(model.client, (3, 32, 32), 2, learns=learns)
    assert 0.9 * found < measured < found + 2 * 4 * 16 * 32 * 32 + 0.1 * found


@pytest.mark.parametrize("name", _PUBLISHED)
def test_counting_as_the_paper_does_gives_the_papers_figures(name):
    found, published = _paper_way(name), _PUBLISHED[name]
    for key in ("weights", "activations", "flops"):
        if published[key] is not None:
            assert found[key] == pytest.approx(published[key], abs=0.12)  # published figures are cut off, not rounded
    if published["memory"] is not None:  # the paper read memory off a GPU's allocator
        assert found["memory"] == pytest.approx(published["memory"], rel=0.05, abs=0.35)


SETTINGS = {
    "plain": {},
    "shards": {"partition": "shards", "clients": 7, "classes_per_client": 3, "batch_size": 1},
    "bottleneck": {"bottleneck": "C4S2", "align_momentum": True},
    "frozen": {"client_lr": 0.0, "bottleneck": "C4S2", "norm": "batch"},
    "unequal": {"unequal": "0.4_0.6|3|0.5_0.5", "cohort": 4},
    "supervised": {"supervised": True},
    "bf16": {"precision": "bf16", "image_size": 16},
    "federated": {"method": "fl-moco", "syncs_per_round": 1, "queue_length": 20},
}


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_what_a_run_counts_is_what_was_estimated(setting, arrays):
    config = RunConfig(**{**TINY, "rounds": 2, "dataset": "made up", "image_size": 8, **setting})
    dataset = make_dataset("tiny", "made up", arrays, image_size=config.image_size)
    simulation = Simulation(replace(config, image_size=None), dataset)
    last = list(simulation.rounds())[-1]
    found = estimate(replace(config, classes_per_client=config.classes_per_client or 1), 80)
    assert found["steps_per_round"] == simulation.parts.steps
    assert found["bytes_per_session"] == {"up": last.bytes_up_per_client, "down": last.bytes_down_per_client}


def test_a_second_data_set_is_counted(arrays, monkeypatch):
    from simsfl.data import with_auxiliary  # noqa: PLC0415

    monkeypatch.setitem(costs.DATASETS, "svhn", DataSet("", Code(""), 80, 8, 3))
    config = RunConfig(**{**TINY, "rounds": 2, "dataset": "made up", "image_size": 8, "aux_dataset": "svhn"})
    dataset = with_auxiliary(*(make_dataset("tiny", "made up", arrays) for _ in range(2)))
    simulation = Simulation(replace(config, image_size=None), dataset)
    last = list(simulation.rounds())[-1]
    found = estimate(config, 80)
    assert found["steps_per_round"] == simulation.parts.steps
    assert found["bytes_per_session"] == {"up": last.bytes_up_per_client, "down": last.bytes_down_per_client}


def test_the_program(tmp_path, capsys):
    file = tmp_path / "cost.json"
    assert cost.main(["--arch", "resnet8", "--json", str(file), "--dtype", "int8"]) == 0
    found = json.loads(file.read_text())
    assert {"as asked", "MocoSFL-1", "MocoSFL-3, TAResSFL", "FL-BYOL"} <= found.keys()
    assert found["MocoSFL-1, TAResSFL"]["bytes_per_session"]["down"] == 0
    assert found["MocoSFL-1"]["bytes_per_image"]["up"] == 2 * 16 * 16 * 16  # one byte each
    output = capsys.readouterr().out
    assert "resnet8, 1,000 clients, data set auto" in " ".join(output.split())
    for word in ("MocoSFL-3", "maps [MB]", "kB an image"):
        assert word in output
    defended = ["--arch", "resnet8", "--defence", "top-k", "--json", str(tmp_path / "defended.json")]
    assert cost.main(defended) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "left out: FL-MoCo (defence: top-k is for mocosfl, not for fl-moco)" in said
    assert cost.main(["--arch", "vit-tiny", "--width", "16", "--arch.pool", "class"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "left out: MocoSFL-1, C4S2, MocoSFL-1, TAResSFL (bottleneck: is for square maps" in said
    undefended = json.loads(file.read_text())["as asked"]["bytes_per_image"]["up"]
    sent = json.loads((tmp_path / "defended.json").read_text())["as asked"]["bytes_per_image"]["up"]
    assert 0.1 * 4 * undefended < sent < 0.2 * 4 * undefended  # a tenth of the numbers in fp32, and their places
    assert cost.main(["--accounting", "paper"]) == 0
    assert "8,269.2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--dtype", "fp8"], "dtype: 'fp8'"),
        (["--accounting", "paper", "--dtype", "int8"], "accounting: paper has the paper's settings"),
        (["--dataset", "mine.npz"], "images: how many mine.npz has"),
        (["--cut-layer", "99"], "cut_layer: 99"),
        (["--accounting", "mine"], "accounting: 'mine'"),
        (["--clients", "100000"], "clients"),
        (["--aux-dataset", "mine.npz"], "aux_dataset: how many images mine.npz has is not known"),
    ],
)
def test_bad_input(argv, message, capsys):
    assert cost.main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: " + message)
    assert error.count("\n") == 1


@pytest.mark.slow
def test_shapes_are_as_many_as_is_said():

    arrays = shapes(0)
    known = DATASETS["shapes"]
    assert (known.images, known.image_size, known.classes) == (
        len(arrays.train_x),
        arrays.train_x.shape[1],
        len(arrays.classes),
    )
