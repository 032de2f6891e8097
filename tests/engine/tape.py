"""A stand-in for CUDA graphs on the CPU: it records operations on tensors, and repeats them without the Python."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Tape(TorchDispatchMode):
    """A `simsfl.engine.cuda_graph.Graph` for the CPU.

    As on CUDA, a step that reads the value of a tensor cannot be recorded.
    """

    def __init__(self):
        super().__init__()
        self.calls = []

    def warm_up(self, function):
        function()

    def record(self, function):
        with self:
            return function()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing\nSearch for it")
        result = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def replay(self):
        for function, args, kwargs, result in self.calls:
            inputs = {address(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
            for old, new in zip(tree_leaves(result), tree_leaves(function(*args, **kwargs)), strict=True):
                if isinstance(old, torch.Tensor) and address(old) not in inputs:  # else it was changed in place
                    old.copy_(new)


def address(tensor):
    """Return the address of a tensor's memory, which it shares with its views."""
    return tensor.untyped_storage().data_ptr()
