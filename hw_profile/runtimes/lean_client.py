"""A client's step on NumPy alone, in float32: for boards where PyTorch does not fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np

from simsfl.hw_profile.runtimes.lean_layers import BasicBlock, ConvNorm, Convolution, Layout, ReLU
from simsfl.hw_profile.runtimes.lean_views import augment

BLOCKS = {"resnet8": (1, 1, 1), "resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}
"""Residual blocks in each stage."""


class LeanClient:
    """A client's side of a step, as `simsfl.algorithm.single_client.SingleClient`, with networks of its own.

    Args:
        about: the contents of a trace's ``trace.json`` (`simsfl.runs.recorder.about_client`): how the network is made,
            the shape of each parameter by name, in flat order, and what images are normalised by.

    Attributes:
        online: ``[P]`` parameters of the model that learns; values are to be copied into it, as into the next two.
        momentum: ``[P]`` of its moving average.
        velocity: ``[P]`` of SGD.
        online_statistics, momentum_statistics: ``[0]``; running statistics, of which there are none.
        gradient: ``[P]`` after `backward`.

    Raises:
        ValueError: a network that it cannot run, or shapes that are another network's.
    """

    def __init__(self, about: Mapping[str, Any]):
        layout, self.layers = client_layers(about["network"])
        given = about["shapes"].items()
        for mine, (name, shape) in zip_longest(layout.shapes.items(), given, fillvalue=("nothing", ())):
            if mine != (name, tuple(shape)):
                raise ValueError(
                    f"network: is built otherwise here than where this comes from: {name} {list(shape)}; allowed: "
                    f"{mine[0]} {list(mine[1])}"
                )
        self.online, self.momentum, self.velocity, self.gradient = np.zeros((4, layout.size), np.float32)
        self.online_statistics, self.momentum_statistics = np.zeros((2, 0), np.float32)
        self.images = about["images"]
        self.tapes: list[list | None] = []

    def views(self, pixels: np.ndarray, parameters: Mapping[str, np.ndarray]) -> np.ndarray:
        """Both views ``[2, B, 3, H, H]`` of images ``[B, 3, H, H]`` uint8; see `lean_views.augment`."""
        return augment(pixels, parameters, self.images["mean"], self.images["std"])

    def query(self, images: np.ndarray, *, learns: bool = True) -> np.ndarray:
        """Smashed data ``[B, c, h, w]`` of images ``[B, 3, H, H]``; if it `learns`, what `backward` needs is kept."""
        self.tapes = [[] if learns else None for _ in images]
        return self.run(self.online, images, self.tapes)

    def move(self, tau: float) -> None:
        """The momentum model follows."""
        self.momentum *= tau
        self.momentum += (1.0 - tau) * self.online

    def key(self, images: np.ndarray) -> np.ndarray:
        """Smashed data of the momentum model; nothing is kept."""
        return self.run(self.momentum, images, [None] * len(images))

    def run(self, flat: np.ndarray, images: np.ndarray, tapes: Sequence[list | None]) -> np.ndarray:
        """Smashed data by the model with the parameters ``flat [P]``, one image after the other."""
        outputs = []
        for image, tape in zip(images, tapes, strict=True):
            x = image
            for layer in self.layers:
                x = layer.forward(flat, x, tape)
            outputs.append(x)
        return np.stack(outputs) if len(outputs) > 1 else x[None]  # the one is not copied

    def backward(self, gradient: np.ndarray) -> None:
        """From the gradient of the query's smashed data ``[B, c, h, w]`` to that of the parameters."""
        self.gradient[:] = 0.0
        for grad, tape in zip(np.ascontiguousarray(gradient, np.float32), self.tapes, strict=True):
            for layer in reversed(self.layers):
                grad = layer.backward(self.online, self.gradient, grad, tape)  # noqa: PLW2901

    def descend(self, lr: float, momentum: float, weight_decay: float) -> None:
        """A step of SGD, as `torch.optim.SGD`'s; the decay is added to the gradient."""
        self.gradient += weight_decay * self.online
        self.velocity *= momentum
        self.velocity += self.gradient
        self.online -= lr * self.velocity


def client_layers(network: Mapping[str, Any]) -> tuple[Layout, list]:
    """The client's layers, and where their parameters lie: as `simsfl.models.client_model` has them.

    Raises:
        ValueError: there is something in them that is not made here.
    """
    arch, width, cut_layer = (network[field] for field in ("arch", "width", "cut_layer"))
    if arch not in BLOCKS:
        raise ValueError(f"runtime: lean has no {arch}; allowed: torch, or arch {', '.join(BLOCKS)}")
    if network["norm"] != "group":
        raise ValueError("runtime: lean has no batch norm; allowed: torch")
    if not network["weight_standardisation"]:
        raise ValueError("runtime: lean standardises weights always; allowed: torch")

    layout = Layout()
    small = arch == "resnet8"
    kernel, stride = (3, 2) if small else {64: (3, 2), 224: (7, 2)}.get(network["image_size"], (3, 1))
    layers = [ConvNorm(layout, "0", 3, width, kernel, stride, first=True), ReLU()]
    inputs = width
    stages = [stage for stage, count in enumerate(BLOCKS[arch], start=small) for _ in range(count)]
    for position, stage in enumerate(stages[: cut_layer - 1], start=1):
        outputs = width << stage
        stride = 2 if outputs > inputs else 1
        layers.append(BasicBlock(layout, str(position), inputs, outputs, stride, network["client_residual"]))
        inputs = outputs

    if network["bottleneck"]:
        from simsfl.config.notation import Bottleneck  # noqa: PLC0415  (brings the config along: 1.5 MB)

        bottleneck = Bottleneck.parse(network["bottleneck"])
        for position in range(max(1, bottleneck.stride.bit_length() - 1)):
            name = str(cut_layer + position * (1 + bottleneck.relu))
            stride = min(bottleneck.stride, 2)
            layers.append(Convolution(layout, name, inputs, bottleneck.channels, bottleneck.kernel, stride))
            layers += [ReLU()] * bottleneck.relu
            inputs = bottleneck.channels
    return layout, layers
