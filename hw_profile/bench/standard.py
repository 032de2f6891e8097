"""A standard trace: a client of the paper, or another, with 50 images of the built-in shapes and random gradients.

The expected results are computed in float64, with the modules of the simulator's oracle. This is a program of its own,
so that what it imports does not count towards the memory of what is measured.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from simsfl.config import RunConfig
from simsfl.config.notation import Bottleneck
from simsfl.data.shapes import CLASSES, shapes
from simsfl.data.views import UNIFORMS, Recipe
from simsfl.hw_profile.runtimes.client_work import put, state_of
from simsfl.hw_profile.runtimes.torch_client import TorchClient
from simsfl.models import FlatModule, layer_count
from simsfl.models.described import client_of
from simsfl.models.layers import initialise_
from simsfl.runs.client_description import about_client
from simsfl.runs.client_trace import VIEWS, TraceWriter, checksums
from simsfl.setup.defaults import resolve
from simsfl.ui.arguments import fail

_BUDGET, _FEWEST = 1 << 28, 2
"""Approximate largest size of a trace in bytes, and its smallest number of steps: deep cuts have many weights."""
_IMAGES, _EPOCHS = 50, 200
"""Images of a client among 1,000 clients on CIFAR-10, and the paper's number of passes over them."""
_SIZE = 32
"""Height and width of an image, in pixels."""
_GRADIENT = 4e-6
"""Standard deviation of the gradients, as measured in a run of ResNet-18 with 20 images per step."""
_LR = 0.06
"""Learning rate of SGD."""
_OPTIMISER = {"tau": 0.99, "momentum": 0.9, "weight_decay": 5e-4, "precision": "fp32"}
"""Settings of the optimiser, as ``trace.json`` has them."""


def _write(
    path: Path,
    cut_layer: int,
    bottleneck: str | None,
    batch_size: int,
    arch: str | None = None,
    width: int | None = None,
) -> None:
    """Write a trace of one visit, in which each step ends with an averaging over clients that have learnt the same.

    Each averaging hands the client the results of float64, so that differences in rounding do not add up and each step
    is compared by itself. The traffic of a session is computed with one averaging per pass, as with 1,000 clients.

    Args:
        path: the file to write.
        cut_layer: number of layers on the client.
        bottleneck: TAResSFL's bottleneck, such as ``C4S2``, or None.
        batch_size: images per step.
        arch: name of the network; None for the paper's.
        width: its width; None for its own.

    Raises:
        ValueError: there is no such network, or the batch is larger than the client's number of images.
    """
    if batch_size > _IMAGES:
        raise ValueError(f"batch_size: {batch_size} is more than the client's images; allowed: 1 to {_IMAGES}")
    config = _settings(cut_layer, bottleneck, arch, width)
    if cut_layer > (deepest := layer_count(config.arch)):
        raise ValueError(f"cut_layer: {cut_layer} is deeper than {config.arch}; allowed: 1 to {deepest}")
    model = client_of(config.network())
    start = torch.zeros(model.size)
    initialise_(model.module(start), torch.Generator().manual_seed(0))
    if bottleneck:
        _check_stride(Bottleneck.parse(bottleneck).stride, replace(config, bottleneck=None))
    smashed_bytes, step_bytes = _sizes(model, batch_size)
    steps = min(_IMAGES // batch_size, max(_FEWEST, _BUDGET // step_bytes))
    about = about_client(
        model,
        client=0,
        network=config.network(),
        mean=torch.full((3,), 0.45),
        std=torch.full((3,), 0.2),
        batch_size=batch_size,
        learns=True,
        optimiser=_OPTIMISER,
        session={
            "steps": _EPOCHS * _IMAGES // batch_size,
            "bytes_up": _EPOCHS * (2 * _IMAGES * smashed_bytes + start.numpy().nbytes),
            "bytes_down": _EPOCHS * (_IMAGES * smashed_bytes + start.numpy().nbytes),
        },
    )
    client = TorchClient(about, "fp64")
    writer = TraceWriter(path)
    put(client, {"online": start.numpy(), "momentum": start.numpy()})
    writer.put_all("begin", state_of(client))
    _train(client, writer, steps, batch_size)
    writer.put_all("end", state_of(client))
    writer.visits = 1
    writer.close(about)


def _settings(cut_layer: int, bottleneck: str | None, arch: str | None, width: int | None) -> RunConfig:
    """Return a config with the paper's network, or another; see `_write` for the arguments."""
    own = {name: value for name, value in (("arch", arch), ("width", width)) if value is not None}
    return resolve(RunConfig(cut_layer=cut_layer, bottleneck=bottleneck, image_size=_SIZE, device="cpu", **own))


def _sizes(model: FlatModule, batch_size: int) -> tuple[int, int]:
    """Return the bytes of an image's smashed data, and of a step in a trace: its gradient, and the weights twice."""
    with torch.no_grad():
        smashed = model.module(torch.zeros(model.size))(torch.zeros(1, 3, _SIZE, _SIZE)).nbytes
    return smashed, batch_size * smashed + 2 * 4 * model.size


def _check_stride(stride: int, config: RunConfig) -> None:
    """Raise a ValueError if a bottleneck's stride is larger than the maps behind the cut layer of a config."""
    layers = client_of(config.network())
    side = layers.module(torch.zeros(layers.size))(torch.zeros(1, 3, _SIZE, _SIZE)).shape[-1]
    if stride > side:
        raise ValueError(f"bottleneck: stride {stride} is more than the maps of {side}x{side}; allowed: 1 to {side}")


def _train(client: TorchClient, writer: TraceWriter, steps: int, batch_size: int) -> None:
    """Do the steps, and write what the client receives, sees and sends."""
    rng = np.random.default_rng(0)
    pixels = shapes(0, train=_IMAGES, test=len(CLASSES)).train_x[: steps * batch_size].transpose(0, 3, 1, 2)
    pixels = pixels.reshape(steps, batch_size, 3, _SIZE, _SIZE)
    drawn = Recipe("v2", _SIZE).sample(rng.random((steps, 2, batch_size, UNIFORMS)))
    views = {name: getattr(drawn, name).numpy() for name in VIEWS}
    sums = []
    for step in range(steps):
        images = client.views(pixels[step], {name: values[step] for name, values in views.items()})
        query = client.query(images[0])
        client.move(_OPTIMISER["tau"])
        sums.append([checksums(query), checksums(client.key(images[1]))])
        gradient = (_GRADIENT * rng.standard_normal(query.shape)).astype(np.float32)
        client.backward(gradient)
        client.descend(_LR, _OPTIMISER["momentum"], _OPTIMISER["weight_decay"])
        writer.put(f"gradients/{step}", gradient)
        for part in ("sent", "received"):
            writer.put_all(f"sync-{step}/{part}", {"online": client.online.astype(np.float32)})
    writer.put("syncs", np.arange(steps))
    writer.put("pixels", pixels)
    writer.put("lr", np.full(steps, _LR))
    writer.put("checksums", np.array(sums))
    writer.put("learns", np.array(True))
    writer.put_all("views", views)


def main(argv: Sequence[str]) -> int:
    """Write the trace into the file that `argv` names, with its settings as JSON; return the exit code."""
    try:
        _write(Path(argv[0]), **json.loads(argv[1]))
    except (ValueError, OSError) as error:
        return fail(error)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
