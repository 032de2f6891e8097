"""A client's step on PyTorch: the simulator's oracle module, with its state as NumPy arrays."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simsfl.algorithm.single_client import SingleClient
from simsfl.kernels import ViewParameters, augment
from simsfl.models.described import client_of
from simsfl.runs.client_trace import STATE

_PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}
"""Types of the forward passes by name."""


class TorchClient:
    """A client's side of a step (`client_work.Client`) on PyTorch.

    Args:
        about: the content of a trace's ``trace.json`` (`simsfl.runs.client_description.about_client`).
        precision: precision of the forward passes, one of `_PRECISIONS`; weights are fp64 with fp64, else fp32.
        compile: whether to compile the models with TorchInductor.

    Attributes:
        online, momentum, velocity: ``[P]`` arrays that share their memory with the tensors: parameters of the online
            model and of the momentum encoder, and velocity of SGD.
        online_statistics, momentum_statistics: ``[S]`` running statistics, which share their memory as well.

    Raises:
        ValueError: the network that the settings describe has other parameters in this version of simsfl.
    """

    def __init__(self, about: Mapping[str, Any], precision: str, *, compile: bool = False):
        network, self._dtype = about["network"], torch.float64 if precision == "fp64" else torch.float32
        model = client_of(network)
        if {name: list(shape) for name, shape in model.shapes.items()} != about["shapes"]:
            raise ValueError(
                "network: is built differently here than where it was described; allowed: that version of simsfl"
            )
        self._precision = _PRECISIONS[precision]
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
        """Return two normalised views ``[2, B, 3, H, H]`` of ``pixels [B, 3, H, H]`` uint8; parameters are ``[2, B,
        ...]``.
        """
        own = ViewParameters(**{name: torch.from_numpy(value)[:, None] for name, value in parameters.items()})
        return augment(torch.from_numpy(pixels)[None], own, self._mean, self._std, self._dtype)[:, 0]

    def query(self, images: Tensor, *, learns: bool = True) -> np.ndarray:
        """Return the smashed data ``[B, c, h, w]`` of ``images [B, 3, H, H]``.

        What `backward` needs is kept if the client `learns`.
        """
        with self._autocast(), torch.set_grad_enabled(learns):
            return _as_array(*self._client.query(images))

    def move(self, tau: float) -> None:
        """Move the momentum encoder towards the online model: ``tau`` times itself plus ``1 - tau`` times that."""
        self._client.move(tau)

    def key(self, images: Tensor) -> np.ndarray:
        """Return the momentum encoder's smashed data ``[B, c, h, w]`` of ``images [B, 3, H, H]``."""
        with self._autocast():
            return _as_array(self._client.key(images))

    def backward(self, gradient: np.ndarray) -> None:
        """Compute the gradient of the parameters from ``gradient [B, c, h, w]``, that of the query's smashed data."""
        self._client.backward(torch.from_numpy(gradient))

    def descend(self, lr: float, momentum: float, weight_decay: float) -> None:
        """Do a step of SGD, as `SingleClient.descend` does."""
        self._client.descend(lr, momentum, weight_decay)

    def _autocast(self) -> AbstractContextManager[object]:
        if self._precision in (torch.bfloat16, torch.float16):
            return torch.autocast("cpu", self._precision)
        return nullcontext()


def _as_array(smashed: Tensor) -> np.ndarray:
    """Return smashed data as a NumPy array; bfloat16 becomes float32, since NumPy has no such type."""
    smashed = smashed.detach()
    return (smashed.float() if smashed.dtype == torch.bfloat16 else smashed).numpy()
