"""A CUDA graph's likeness on the CPU: operations on tensors are recorded, and carried out again without the Python."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Tape(TorchDispatchMode):
    """A `simsfl.engine.cuda_graph.Graph`: as on CUDA, a step that reads a number of a tensor cannot be recorded."""

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
            taken = {place(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
            for old, new in zip(tree_leaves(result), tree_leaves(function(*args, **kwargs)), strict=True):
                if isinstance(old, torch.Tensor) and place(old) not in taken:  # else it has been changed, or is a view
                    old.copy_(new)


def place(tensor):
    """Where a tensor's memory is."""
    return tensor.untyped_storage().data_ptr()
