"""What makes an operator on stacks of clients work under `vmap`: the mapped dimension lengthens the stack."""

from collections.abc import Callable

from torch import Tensor


def lengthen(stacked: Callable[..., object]) -> Callable[..., object]:
    """The vmap rule of a custom operator whose tensors all have the clients first."""

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
