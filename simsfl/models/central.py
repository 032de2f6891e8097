"""The server's network as CUDA devices run it fastest: weights prepared in one pass, maps channels-last."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from simsfl.kernels import accelerated, channels_last
from simsfl.kernels.standardise import Layout, Matrix, prepare, prepare_backward_
from simsfl.models.flat import FlatModule, Leaves
from simsfl.models.layers import BatchNorm, ConvNorm

NORMS = "norms"
"""Name of the leaf with the parameters of all GroupNorm layers."""


class CentralModule(FlatModule):
    """A network that computes in `dtype`, whatever its parameters are kept in, in the way that CUDA devices do fastest.

    Its weights are standardised, rounded and laid out by one kernel for all layers (`kernels.standardise`), and so is
    their gradient on the way back. Parameters of normalisation layers are used as they are. Their gradients come back
    for each image, and are summed over images for all GroupNorm layers at once. Activations are channels-last.

    Args:
        network: the network; not one of this class.
        dtype: of activations and weight matrices.
        device: where it runs.
    """

    def __init__(self, network: FlatModule, dtype: torch.dtype, device: torch.device):
        vars(self).update(vars(network))
        self.plain = network
        self.dtype = dtype
        self.twin = copy.deepcopy(network.template)  # the template itself stays what modules are made of
        group_norms, others, standardised = [], set(), set()
        for path, module in self.twin.named_modules():
            names = [f"{path}.{name}" for name, _ in module.named_parameters(recurse=False)]
            if isinstance(module, nn.GroupNorm):
                group_norms += names
            if isinstance(module, BatchNorm):
                others |= set(names)
            if isinstance(module, ConvNorm):
                standardised |= {f"{path}.conv.weight"} if module.standardise else set()
                module.standardise, module.channels_last = False, True
        self.group_norms = {name: self.shapes[name].numel() for name in group_norms}
        start, matrices = 0, {}
        for name, shape in self.shapes.items():
            if name not in self.group_norms and name not in others:
                matrices[name] = Matrix(start, tuple(shape), name in standardised)
            start += shape.numel()
        self.layout, self.matrices = Layout(list(matrices.values()), device), list(matrices)

    def weights(self, flat: Tensor) -> dict[str, Tensor]:
        """Return what `run` takes, by parameter name, from ``flat [Q]``."""
        return self._weights(flat)[0]

    def _weights(self, flat: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Return what `run` takes, and what the backward pass through its preparation needs."""
        prepared, moments = prepare(flat, self.layout, self.dtype)
        return self.named(flat) | dict(zip(self.matrices, self.layout.split(prepared), strict=True)), moments

    def leaves(self, flat: Tensor) -> Leaves:
        """Return the weights as leaves of a graph, and how their gradients become that of ``flat [Q]``."""
        tensors, moments = self._weights(flat)
        if self.group_norms:
            tensors[NORMS] = torch.cat([tensors.pop(name) for name in self.group_norms])
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}

        def gradient() -> Tensor:
            result = torch.empty_like(flat)
            grads = {name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for name, leaf in leaves.items()}
            grad = self.layout.join([grads[name] for name in self.matrices])
            prepare_backward_(result, grad, flat, moments, self.layout)
            rest = {name: grad for name, grad in grads.items() if name not in self.matrices}
            if self.group_norms:
                own = rest.pop(NORMS).split(list(self.group_norms.values()))
                rest |= dict(zip(self.group_norms, own, strict=True))
            if rest:
                parts = self.named(result)
                torch._foreach_copy_([parts[name] for name in rest], list(rest.values()))
            return result

        return Leaves(leaves, gradient)

    def received(self, x: Tensor) -> Tensor:
        """Return smashed data in `dtype`, channels-last."""
        return channels_last(x.to(self.dtype))

    def run(self, tensors: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Return the network's output for `x`, in `dtype`, from what `weights` or `leaves` gave and buffers by name."""
        if NORMS in tensors:
            norms = tensors[NORMS].expand(len(x), -1).split(list(self.group_norms.values()), dim=1)
            others = {name: tensor for name, tensor in tensors.items() if name != NORMS}
            tensors = others | dict(zip(self.group_norms, norms, strict=True))
        with accelerated(None):  # PyTorch's convolutions keep the memory format
            return functional_call(self.twin, tensors, (x,))
