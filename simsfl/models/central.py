"""The server's network in the form that is fastest on CUDA: weights prepared in one pass, and channels-last maps."""

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

_NORMS = "norms"
"""Name of the leaf that holds the parameters of all GroupNorm layers."""


class CentralModule(FlatModule):
    """A network that computes in `dtype`, whatever dtype its parameters have, in the way that is fastest on CUDA.

    One kernel standardises, rounds and lays out the weights of all layers (`kernels.standardise`), and one handles
    their gradient in the backward pass. Parameters of normalisation layers are used unchanged. The gradients of
    GroupNorm parameters are computed per image, and summed over images for all layers at once. Activations are
    channels-last.

    Args:
        network: The network to run, which must not be a `CentralModule` itself.
        dtype: Floating-point type of activations and weight matrices.
        device: Device that the network runs on.
    """

    def __init__(self, network: FlatModule, dtype: torch.dtype, device: torch.device):
        vars(self).update(vars(network))
        self.plain = network
        self.dtype = dtype
        self.twin = copy.deepcopy(network.template)  # the template is left unchanged, since `module` copies it
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
        """Return the tensors that `run` takes, by parameter name, prepared from ``flat [Q]``."""
        return self._weights(flat)[0]

    def _weights(self, flat: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Return the tensors that `run` takes, and the moments ``[R, 2]`` that `prepare_backward_` needs."""
        prepared, moments = prepare(flat, self.layout, self.dtype)
        return self.named(flat) | dict(zip(self.matrices, self.layout.split(prepared), strict=True)), moments

    def leaves(self, flat: Tensor) -> Leaves:
        """Return the weights as leaves of a graph, and a function for the gradient of ``flat [Q]`` from theirs.

        The parameters of all GroupNorm layers are one leaf.
        """
        tensors, moments = self._weights(flat)
        if self.group_norms:
            tensors[_NORMS] = torch.cat([tensors.pop(name) for name in self.group_norms])
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}

        def gradient() -> Tensor:
            result = torch.empty_like(flat)
            grads = {name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for name, leaf in leaves.items()}
            grad = self.layout.join([grads[name] for name in self.matrices])
            prepare_backward_(result, grad, flat, moments, self.layout)
            rest = {name: grad for name, grad in grads.items() if name not in self.matrices}
            if self.group_norms:
                own = rest.pop(_NORMS).split(list(self.group_norms.values()))
                rest |= dict(zip(self.group_norms, own, strict=True))
            if rest:
                parts = self.named(result)
                torch._foreach_copy_([parts[name] for name in rest], list(rest.values()))
            return result

        return Leaves(leaves, gradient)

    def received(self, x: Tensor) -> Tensor:
        """Return smashed data ``[N, c, h, w]`` in `dtype` and in the channels-last memory format."""
        return channels_last(x.to(self.dtype))

    def run(self, tensors: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Return the network's output for `x`, in `dtype`.

        Args:
            tensors: Tensors by name, from `weights` or `leaves`, and the buffers.
            x: Smashed data, as `received` returns them.
        """
        if _NORMS in tensors:
            norms = tensors[_NORMS].expand(len(x), -1).split(list(self.group_norms.values()), dim=1)
            others = {name: tensor for name, tensor in tensors.items() if name != _NORMS}
            tensors = others | dict(zip(self.group_norms, norms, strict=True))
        with accelerated(None):  # PyTorch's convolutions keep the memory format
            return functional_call(self.twin, tensors, (x,))
