"""The server's network as CUDA devices run it fastest: weights prepared in one pass, maps channels-last."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from simsfl.kernels import accelerated
from simsfl.kernels.standardise import Layout, Matrix, prepare, prepare_backward_
from simsfl.models.flat import FlatModule, Leaves
from simsfl.models.layers import BatchNorm, ConvNorm


class CentralModule(FlatModule):
    """The same network as a `FlatModule`'s, which computes in `dtype` whatever its parameters are kept in.

    Its weights are standardised, rounded and laid out by one kernel for all layers (`kernels.standardise`), and so is
    their gradient on the way back. Parameters of normalisation layers stay as they are. Activations are channels-last.

    Args:
        network: the network.
        dtype: of activations and weight matrices.
        device: where it runs.
    """

    def __init__(self, network: FlatModule, dtype: torch.dtype, device: torch.device):
        vars(self).update(vars(network))
        self.dtype = dtype
        self.template = copy.deepcopy(network.template)
        norms, standardised = set(), set()
        for path, module in self.template.named_modules():
            if isinstance(module, (nn.GroupNorm, BatchNorm)):
                norms |= {f"{path}.{name}" for name, _ in module.named_parameters(recurse=False)}
            if isinstance(module, ConvNorm):
                standardised |= {f"{path}.conv.weight"} if module.standardise else set()
                module.standardise, module.channels_last = False, True
        start, matrices = 0, {}
        for name, shape in self.shapes.items():
            if name not in norms:
                matrices[name] = Matrix(start, tuple(shape), name in standardised)
            start += shape.numel()
        self.layout, self.matrices = Layout(list(matrices.values()), device), list(matrices)

    def weights(self, flat: Tensor) -> dict[str, Tensor]:
        """Return what `run` takes, by parameter name, from ``flat [Q]``."""
        return self._weights(flat)[0]

    def _weights(self, flat: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        prepared, moments = prepare(flat, self.layout, self.dtype)
        return self.named(flat) | dict(zip(self.matrices, self.layout.split(prepared), strict=True)), moments

    def leaves(self, flat: Tensor) -> Leaves:
        """Return the weights as leaves of a graph, and how their gradients become that of ``flat [Q]``."""
        tensors, moments = self._weights(flat)
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}
        others = [name for name in leaves if name not in self.matrices]

        def gradient() -> Tensor:
            result = torch.empty_like(flat)
            grad = self.layout.join([leaves[name].grad for name in self.matrices])
            prepare_backward_(result, grad, flat, moments, self.layout)
            parts = self.named(result)
            if others:
                torch._foreach_copy_([parts[name] for name in others], [leaves[name].grad for name in others])
            return result

        return Leaves(leaves, gradient)

    def run(self, tensors: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Return the network's output for `x`, in `dtype`, from what `weights` gave and buffers by name."""
        with accelerated(None):  # PyTorch's convolutions keep the memory format
            return super().run(tensors, x.to(self.dtype, memory_format=torch.channels_last))
