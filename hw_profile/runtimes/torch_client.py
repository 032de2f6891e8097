"""A client's step on PyTorch: the module that the simulator's oracle runs, with its state where NumPy sees it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simsfl.algorithm.single_client import SingleClient
from simsfl.config.notation import Bottleneck
from simsfl.kernels import ViewParameters, augment
from simsfl.models import FlatModule, Style, client_model
from simsfl.runs.client_trace import STATE

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}


class TorchClient:
    """See `lean_client.LeanClient`, which does the same on NumPy.

    Args:
        about: what a trace says it is of (`simsfl.runs.recorder.about_client`).
        precision: of the forward passes, a name of `PRECISIONS`; weights are fp32 but with fp64.
        compile: run the models as programs of TorchInductor's.

    Attributes:
        online, online_statistics, momentum, momentum_statistics, velocity: flat arrays, views of the tensors.

    Raises:
        ValueError: the trace is of another network than its settings make.
    """

    def __init__(self, about: Mapping[str, Any], precision: str, *, compile: bool = False):
        network, self._dtype = about["network"], torch.float64 if precision == "fp64" else torch.float32
        model = model_of(network)
        if {name: list(shape) for name, shape in model.shapes.items()} != about["shapes"]:
            raise ValueError(
                "network: is built otherwise here than where this comes from; allowed: the version of simsfl there"
            )
        self._precision = PRECISIONS[precision]
        self._mean, self._std = (
            torch.tensor(about["images"][name], dtype=self._dtype).view(3, 1, 1) for name in ("mean", "std")
        )
        statistics = len(model.initial_statistics)
        state = {
            name: torch.zeros(statistics if name.endswith("statistics") else model.size, dtype=self._dtype)
            for name in STATE
        }
        for name, tensor in state.items():
            setattr(self, name, tensor.numpy())
        online, momentum = (model.module(state[name], state[f"{name}_statistics"]) for name in ("online", "momentum"))
        if compile:
            online, momentum = (torch.compile(module, dynamic=False) for module in (online, momentum))
        self._client = SingleClient(online, momentum, model.named(state["velocity"]).values())

    def views(self, pixels: np.ndarray, parameters: Mapping[str, np.ndarray]) -> Tensor:
        """Two normalised views ``[2, B, 3, H, H]`` of ``[B, 3, H, H]`` uint8, with parameters ``[2, B, ...]``."""
        own = ViewParameters(**{name: torch.from_numpy(value)[:, None] for name, value in parameters.items()})
        return augment(torch.from_numpy(pixels)[None], own, self._mean, self._std, self._dtype)[:, 0]

    def query(self, images: Tensor, *, learns: bool = True) -> np.ndarray:
        """Smashed data ``[B, c, h, w]`` to send; where the client `learns`, what `backward` needs is kept."""
        with self._autocast(), torch.set_grad_enabled(learns):
            return as_array(self._client.query(images))

    def move(self, tau: float) -> None:
        """The momentum model follows the online one."""
        self._client.move(tau)

    def key(self, images: Tensor) -> np.ndarray:
        """Smashed data of the momentum model."""
        with self._autocast():
            return as_array(self._client.key(images))

    def backward(self, gradient: np.ndarray) -> None:
        """From the gradient of what `query` sent, which came in, to that of the weights."""
        self._client.backward(torch.from_numpy(gradient))

    def descend(self, lr: float, momentum: float, weight_decay: float) -> None:
        """A step of SGD."""
        self._client.descend(lr, momentum, weight_decay)

    def _autocast(self) -> AbstractContextManager[object]:
        if self._precision in (torch.bfloat16, torch.float16):
            return torch.autocast("cpu", self._precision)
        return nullcontext()


def model_of(network: Mapping[str, Any]) -> FlatModule:
    """The client's half of a network, by the settings that say how it is made."""
    return client_model(
        network["arch"],
        width=network["width"],
        cut_layer=network["cut_layer"],
        image_size=network["image_size"],
        style=Style(network["norm"], network["weight_standardisation"]),
        bottleneck=Bottleneck.parse(network["bottleneck"]) if network["bottleneck"] else None,
        client_residual=network["client_residual"],
    )


def as_array(smashed: Tensor) -> np.ndarray:
    """For the wire; NumPy has no bfloat16."""
    smashed = smashed.detach()
    return (smashed.float() if smashed.dtype == torch.bfloat16 else smashed).numpy()
