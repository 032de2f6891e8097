"""Checks of what methods return that somebody else may have written."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from simsfl.system.messages import kind_of


def tensor_from(answer: object, shape: Sequence[int], field: str, method: str, of: object) -> Tensor:
    """Return what a method has returned, if it is a tensor of this shape.

    >>> import torch
    >>> tensor_from(torch.ones(2), (3,), "aggregation", "combine", of=range(3))
    Traceback (most recent call last):
    ...
    ValueError: aggregation: combine of range returns a tensor of shape [2]; allowed: a tensor of shape [3]

    Args:
        answer: what it has returned.
        shape: what the shape has to be.
        field: field of the config that has chosen the object, for the error.
        method: name of the method.
        of: the object that the method belongs to.

    Raises:
        ValueError: it is something else.
    """
    if isinstance(answer, Tensor) and answer.shape == tuple(shape):
        return answer
    found = f"a tensor of shape {list(answer.shape)}" if isinstance(answer, Tensor) else kind_of(answer)
    raise ValueError(
        f"{field}: {method} of {type(of).__name__} returns {found}; allowed: a tensor of shape {list(shape)}"
    )
