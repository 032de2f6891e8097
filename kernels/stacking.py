"""Custom operators on stacks of clients that work under `vmap`: the mapped dimension makes the stack longer."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.library import Library, infer_schema, register_autograd, register_fake, register_vmap

_LIBRARY = Library("simsfl", "DEF")
"""Library that the operators are defined in. `torch.library.custom_op` does the same, but its operators import
TorchDynamo when they are first called, which takes a second and 120 MB."""


def custom_op(
    name: str,
    function: Callable[..., object],
    *,
    shapes: Callable[..., object],
    stacked: bool = True,
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., object] | None = None,
) -> Callable[..., object]:
    """Define the custom operator ``simsfl::name``, and return it.

    Args:
        name: Name of the operator, unique in this library.
        function: The implementation, with annotated arguments. It neither changes nor returns any of them.
        shapes: The "fake" implementation, which takes the same arguments and returns uninitialised tensors of the
            shapes and dtypes that `function` returns.
        stacked: Whether all tensors have the clients as their first dimension. Such an operator works under `vmap`.
        setup_context: Saves what `backward` needs, like that of a `torch.autograd.Function`.
        backward: Returns the gradients of the arguments, like that of a `torch.autograd.Function`. Without it, the
            operator has no gradient.
    """
    _LIBRARY.define(name + infer_schema(function, mutates_args=()))
    _LIBRARY.impl(name, function, "CompositeExplicitAutograd")
    qualified = f"simsfl::{name}"
    operator = getattr(torch.ops.simsfl, name).default
    register_fake(qualified, shapes, lib=_LIBRARY)
    if stacked:
        register_vmap(qualified, _lengthen(operator), lib=_LIBRARY)
    if backward:
        register_autograd(qualified, backward, setup_context=setup_context, lib=_LIBRARY)
    return operator


def _lengthen(stacked: Callable[..., object]) -> Callable[..., object]:
    """Return the vmap rule of an operator whose tensors all have the clients as their first dimension.

    The rule flattens the mapped dimension into the clients', calls the operator once, and splits the results again.
    """

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
