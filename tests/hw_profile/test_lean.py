"""The client on NumPy alone computes what the one on PyTorch computes, in little memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from simsfl.algorithm.single_client import SingleClient
from simsfl.config.notation import Bottleneck
from simsfl.data import views
from simsfl.hw_profile.runtimes import lean_views
from simsfl.hw_profile.runtimes.lean_client import LeanClient
from simsfl.kernels import augment
from simsfl.models import split_model

PAPER = {"arch": "resnet18", "width": 64, "cut_layer": 1, "image_size": 32}
SMALL = {"arch": "resnet8", "width": 8, "cut_layer": 2, "image_size": 32}
NETWORKS = {
    "paper": PAPER,
    "paper-cut-2": {**PAPER, "cut_layer": 2},
    "stem": {**SMALL, "cut_layer": 1},
    "projection": SMALL,
    "two-blocks": {**SMALL, "cut_layer": 3},
    "no-shortcuts": {**SMALL, "cut_layer": 3, "client_residual": False},
    "bottleneck": {**SMALL, "bottleneck": "C4S2"},
    "bottleneck-without-relu": {**SMALL, "bottleneck": "K5C4S4noReLU", "client_residual": False},
    "second-stage": {**PAPER, "width": 8, "cut_layer": 4, "image_size": 64},
    "wide-stem": {**PAPER, "width": 4, "image_size": 224},
}


def complete(network):
    """Return the settings of a network with the defaults of those that are not given."""
    return {"norm": "group", "weight_standardisation": True, "bottleneck": None, "client_residual": True, **network}


def split(network):
    """Return the network that the settings describe, cut in two."""
    network = complete(network)
    return split_model(
        network["arch"],
        width=network["width"],
        cut_layer=network["cut_layer"],
        image_size=network["image_size"],
        head="linear",
        key_dim=8,
        generator=torch.Generator().manual_seed(0),
        bottleneck=Bottleneck.parse(network["bottleneck"]) if network["bottleneck"] else None,
        client_residual=network["client_residual"],
    )


def about(network):
    """Return the content of ``trace.json`` for a client with this network."""
    return {
        "network": complete(network),
        "shapes": {name: list(shape) for name, shape in split(network).client.shapes.items()},
        "images": {"mean": [0.5] * 3, "std": [0.25] * 3},
    }


def assert_near(found, expected, tolerance=1e-5):
    """Compare arrays, with a tolerance that is a share of the largest expected value."""
    expected = expected.detach().double().numpy()
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_steps_agree_with_pytorch(network, dtype):
    model, generator = split(network), torch.Generator().manual_seed(1)
    flat, batch, size = model.client, 1 if network["width"] == 64 else 3, network["image_size"]
    initial = flat.initial + 0.1 * torch.randn(3, flat.size, generator=generator)
    lean = LeanClient(about(network))
    for own, values in zip((lean.online, lean.momentum, lean.velocity), initial, strict=True):
        own[:] = values.numpy()
    online, momentum, velocity = (values.to(dtype, copy=True) for values in initial)
    client = SingleClient(flat.module(online), flat.module(momentum), flat.named(velocity).values())

    for _ in range(3):
        query, key = torch.randn(2, batch, 3, size, size, generator=generator)
        gradient = 0.01 * torch.randn(batch, *model.smashed_shape, generator=generator)
        sent, given = gradient.numpy(), gradient.numpy().copy()
        assert_near(lean.query(query.numpy()), *client.query(query.to(dtype)))
        lean.move(0.9)
        client.move(0.9)
        assert_near(lean.key(key.numpy()), client.key(key.to(dtype)))
        lean.backward(sent)
        client.backward(gradient.to(dtype))
        np.testing.assert_array_equal(sent, given)  # the caller's array is unchanged
        own = flat.named(torch.from_numpy(lean.gradient))
        for name, parameter in client.online.named_parameters():
            assert_near(own[name].numpy(), parameter.grad)
        lean.descend(0.05, 0.9, 5e-4)
        client.descend(0.05, 0.9, 5e-4)
    for own, expected in zip((lean.online, lean.momentum, lean.velocity), (online, momentum, velocity), strict=True):
        assert own.dtype == np.float32
        assert_near(own, expected)


@pytest.mark.parametrize("recipe", ["v1", "v2"])
def test_views_agree_with_the_kernel(recipe):
    count, size, rng = 100, 32, np.random.default_rng(0)
    drawn = views.Recipe(recipe, size).sample(rng.random((2, count, views.UNIFORMS)))
    pixels = rng.integers(0, 256, (count, 3, size, size), dtype=np.uint8)
    images = {"mean": (0.49, 0.48, 0.45), "std": (0.20, 0.20, 0.21)}
    expected = augment(
        torch.from_numpy(pixels)[None],
        drawn.map(lambda t: t[:, None]),
        *(torch.tensor(values).view(3, 1, 1) for values in images.values()),
    )[:, 0]
    lean = LeanClient({**about(PAPER), "images": images})
    found = lean.views(pixels, {name: values.numpy() for name, values in vars(drawn).items()})
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arch": "vgg11"}, "runtime: lean has no vgg11; allowed: torch, or arch resnet8, resnet18, resnet34"),
        ({"norm": "batch"}, "runtime: lean has no batch norm; allowed: torch"),
        ({"weight_standardisation": False}, "runtime: lean always standardises weights; allowed: torch"),
        ({"width": 32}, "0.conv.weight [64, 3, 3, 3]; allowed: 0.conv.weight [32, 3, 3, 3]"),
        ({"cut_layer": 2}, "nothing []; allowed: 1.conv1.conv.weight [64, 64, 3, 3]"),
    ],
)
def test_a_network_it_cannot_run_is_an_error(change, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011  (the whole message is compared)
        LeanClient({**about(PAPER), "network": {**complete(PAPER), **change}})
    assert str(error.value).removeprefix("network: is built differently here than where it was described: ") == message


MEASURED = """
import json, sys
import numpy as np

def status(name):
    with open("/proc/self/status") as lines:
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))

def steps(count):
    for _ in range(count):
        views = client.views(pixels, parameters)
        query = client.query(views[0])
        client.move(0.99)
        key = client.key(views[1])
        client.backward(np.full((1, 64, 32, 32), 0.01, np.float32))
        client.descend(0.05, 0.9, 5e-4)
        del query, key

about = json.loads(sys.argv[1])
pixels = (np.arange(3 * 32 * 32).reshape(1, 3, 32, 32) % 251).astype(np.uint8)
parameters = {
    "crop": np.array([[[3.0, 4.0, 20.0, 22.0]]] * 2), "flip": np.ones((2, 1), bool),
    "jitter": np.full((2, 1, 4), 0.9), "blends": np.array([[[0, 1, 2]]] * 2), "hue_slot": np.ones((2, 1), int),
    "gray": np.ones((2, 1), bool), "sigma": np.ones((2, 1)),
}
before = status("RssAnon")
from simsfl.hw_profile.runtimes.lean_client import LeanClient
client = LeanClient(about)
client.online[:] = client.momentum[:] = np.arange(len(client.online)) % 13
steps(1)
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
steps(2)
own = status("VmHWM") - status("RssFile") - before

import tracemalloc
tracemalloc.start()
steps(1)
print(json.dumps({"own": own, "arrays": tracemalloc.get_traced_memory()[1], "modules": list(sys.modules)}))
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak cannot be reset (Linux only)")
def test_memory_of_the_paper_s_client_stays_below_2_mb(tmp_path):
    """Memory of its code, weights, views, gradients and smashed data counts; the interpreter and NumPy do not.

    It is the peak of resident memory without pages that are mapped from files, which hold the code of NumPy and of its
    BLAS.
    """
    job = json.dumps(about(PAPER))
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "PYTHONPYCACHEPREFIX": str(tmp_path),
        "PYTHONDONTWRITEBYTECODE": "",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    for _ in range(2):  # the first run compiles the code to bytecode, which takes memory
        done = subprocess.run(
            [sys.executable, "-c", MEASURED, job], env=environment, capture_output=True, text=True, check=True
        )
    measured = json.loads(done.stdout)
    assert not {"torch", "simsfl.config"} & set(measured["modules"])
    assert measured["own"] < 2_000_000
    assert measured["arrays"] < 1_600_000


def test_views_leave_an_image_as_it_is_where_nothing_is_asked():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8), dtype=np.uint8)
    same = lean_views.view(pixels, [0, 0, 8, 8], False, [1, 1, 1, 0], [2, 0, 1], 3, False, 0.0)
    np.testing.assert_allclose(same, pixels / 255, atol=1e-6)
