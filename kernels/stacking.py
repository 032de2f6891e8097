"""Custom operators on stacks of clients, which work under `vmap`: the mapped dimension lengthens the stack."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.library import Library, infer_schema, register_autograd, register_fake, register_vmap

LIBRARY = Library("simsfl", "DEF")
"""Where operators are defined. `torch.library.custom_op` does the same, but its operators import TorchDynamo when they
are first called: a second, and 120 MB."""


def custom_op(
    name: str,
    function: Callable[..., object],
    *,
    shapes: Callable[..., object],
    stacked: bool = True,
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., object] | None = None,
) -> Callable[..., object]:
    """A custom operator.

    Args:
        function: what it does, with annotated arguments. It changes none of them, and returns none of them.
        shapes: the same with nothing computed (a "fake" implementation).
        stacked: its tensors have the clients first, and it may be mapped over more of them.
        setup_context: with `backward` its gradient, as of an autograd function.
    """
    LIBRARY.define(name + infer_schema(function, mutates_args=()))
    LIBRARY.impl(name, function, "CompositeExplicitAutograd")
    qualified = f"simsfl::{name}"
    operator = getattr(torch.ops.simsfl, name).default
    register_fake(qualified, shapes, lib=LIBRARY)
    if stacked:
        register_vmap(qualified, lengthen(operator), lib=LIBRARY)
    if backward:
        register_autograd(qualified, backward, setup_context=setup_context, lib=LIBRARY)
    return operator


def lengthen(stacked: Callable[..., object]) -> Callable[..., object]:
    """The vmap rule of an operator whose tensors all have the clients first."""

    def rule(info: object, in_dims: tuple[int | None, ...], *arguments: object) -> tuple[object, object]:
        size = info.batch_size

        def fold(argument: object, dim: int | None) -> object:
            if not isinstance(argument, Tensor):
                return argument
            mapped = argument.expand(size, *argument.shape) if dim is None else argument.movedim(dim, 0)
            return mapped.flatten(0, 1)

        results = stacked(*map(fold, arguments, in_dims))
        if isinstance(results, Tensor):
            return results.unflatten(0, (size, -1)), 0
        return tuple(result.unflatten(0, (size, -1)) for result in results), (0,) * len(results)

    return rule
