"""A client's step on NumPy alone, in float32: for boards where PyTorch does not fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np

from simsfl.hw_profile.runtimes.lean_layers import BasicBlock, ConvNorm, Convolution, Layout, ReLU
from simsfl.hw_profile.runtimes.lean_views import augment

_BLOCKS = {"resnet8": (1, 1, 1), "resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}
"""Number of residual blocks in each stage, by architecture."""


class LeanClient:
    """A client's side of a step (`client_work.Client`) on NumPy, with networks of its own.

    It computes what `simsfl.algorithm.single_client.SingleClient` computes on PyTorch.

    Args:
        about: the content of a trace's ``trace.json`` (`simsfl.runs.client_description`): how the network is made, the
            shape of each parameter by name in flat order, and the mean and standard deviation that normalise
            images.

    Attributes:
        online: ``[P]`` parameters of the online model; write new values into it, as into the next two.
        momentum: ``[P]`` parameters of the momentum encoder.
        velocity: ``[P]`` velocity of SGD.
        online_statistics, momentum_statistics: ``[0]``, because these networks have no running statistics.
        gradient: ``[P]`` gradient of `online` after `backward`.

    Raises:
        ValueError: the network is not supported here, or this version of simsfl gives its parameters other shapes.
    """

    def __init__(self, about: Mapping[str, Any]):
        layout, self.layers = _client_layers(about["network"])
        given = about["shapes"].items()
        for mine, (name, shape) in zip_longest(layout.shapes.items(), given, fillvalue=("nothing", ())):
            if mine != (name, tuple(shape)):
                raise ValueError(
                    f"network: is built differently here than where it was described: {name} {list(shape)}; allowed: "
                    f"{mine[0]} {list(mine[1])}"
                )
        self.online, self.momentum, self.velocity, self.gradient = np.zeros((4, layout.size), np.float32)
        self.online_statistics, self.momentum_statistics = np.zeros((2, 0), np.float32)
        self.images = about["images"]
        self.tapes: list[list | None] = []

    def views(self, pixels: np.ndarray, parameters: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return both views ``[2, B, 3, H, H]`` of ``pixels [B, 3, H, H]`` uint8; see `lean_views.augment`."""
        return augment(pixels, parameters, self.images["mean"], self.images["std"])

    def query(self, images: np.ndarray, *, learns: bool = True) -> np.ndarray:
        """Return the smashed data ``[B, c, h, w]`` of ``images [B, 3, H, H]``.

        What `backward` needs is kept if the client `learns`.
        """
        self.tapes = [[] if learns else None for _ in images]
        return self._run(self.online, images, self.tapes)

    def move(self, tau: float) -> None:
        """Move the momentum encoder towards the online model: ``tau`` times itself plus ``1 - tau`` times that."""
        self.momentum *= tau
        self.momentum += (1.0 - tau) * self.online

    def key(self, images: np.ndarray) -> np.ndarray:
        """Return the momentum encoder's smashed data ``[B, c, h, w]`` of ``images [B, 3, H, H]``; keep nothing."""
        return self._run(self.momentum, images, [None] * len(images))

    def _run(self, flat: np.ndarray, images: np.ndarray, tapes: Sequence[list | None]) -> np.ndarray:
        """Return the smashed data of the model with the parameters ``flat [P]``, computed image by image."""
        outputs = []
        for image, tape in zip(images, tapes, strict=True):
            x = image
            for layer in self.layers:
                x = layer.forward(flat, x, tape)
            outputs.append(x)
        return np.stack(outputs) if len(outputs) > 1 else x[None]  # a single result need not be copied

    def backward(self, gradient: np.ndarray) -> None:
        """Compute `self.gradient` from the ``gradient [B, c, h, w]`` of the query's smashed data."""
        self.gradient[:] = 0.0
        for grad, tape in zip(np.ascontiguousarray(gradient, np.float32), self.tapes, strict=True):
            for layer in reversed(self.layers):
                grad = layer.backward(self.online, self.gradient, grad, tape)  # noqa: PLW2901

    def descend(self, lr: float, momentum: float, weight_decay: float) -> None:
        """Do a step of SGD as `torch.optim.SGD` does: weight decay is added to the gradient."""
        self.gradient += weight_decay * self.online
        self.velocity *= momentum
        self.velocity += self.gradient
        self.online -= lr * self.velocity


def _client_layers(network: Mapping[str, Any]) -> tuple[Layout, list]:
    """Return the places of the parameters and the client's layers, as `simsfl.models.client_model` has them.

    Raises:
        ValueError: the network has something that is not implemented here.
    """
    arch, width, cut_layer = (network[field] for field in ("arch", "width", "cut_layer"))
    if arch not in _BLOCKS:
        raise ValueError(f"runtime: lean has no {arch}; allowed: torch, or arch {', '.join(_BLOCKS)}")
    if network["norm"] != "group":
        raise ValueError("runtime: lean has no batch norm; allowed: torch")
    if not network["weight_standardisation"]:
        raise ValueError("runtime: lean always standardises weights; allowed: torch")

    layout = Layout()
    small = arch == "resnet8"
    kernel, stride = (3, 2) if small else {64: (3, 2), 224: (7, 2)}.get(network["image_size"], (3, 1))
    layers = [ConvNorm(layout, "0", 3, width, kernel, stride, first=True), ReLU()]
    inputs = width
    stages = [stage for stage, count in enumerate(_BLOCKS[arch], start=small) for _ in range(count)]
    for position, stage in enumerate(stages[: cut_layer - 1], start=1):
        outputs = width << stage
        stride = 2 if outputs > inputs else 1
        layers.append(BasicBlock(layout, str(position), inputs, outputs, stride, network["client_residual"]))
        inputs = outputs

    if network["bottleneck"]:
        from simsfl.config.notation import Bottleneck  # noqa: PLC0415  (imports the config, which takes 1.5 MB)

        bottleneck = Bottleneck.parse(network["bottleneck"])
        for position in range(max(1, bottleneck.stride.bit_length() - 1)):
            name = str(cut_layer + position * (1 + bottleneck.relu))
            stride = min(bottleneck.stride, 2)
            layers.append(Convolution(layout, name, inputs, bottleneck.channels, bottleneck.kernel, stride))
            layers += [ReLU()] * bottleneck.relu
            inputs = bottleneck.channels
    return layout, layers
