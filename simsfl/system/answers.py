"""Checks of what methods return that somebody else may have written."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral, Real

from torch import Tensor

from simsfl.system.messages import count_text, kind_of


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
    raise _refused(_found(answer), f"a tensor of shape {list(shape)}", field, method, of)


def count_from(answer: object, field: str, method: str, of: object) -> int:
    """Return what a method has returned, if it is a whole number from 0 on; see `tensor_from` for the other arguments.

    Raises:
        ValueError: it is something else.
    """
    if isinstance(answer, Integral) and not isinstance(answer, bool) and answer >= 0:
        return int(answer)
    found = str(answer) if isinstance(answer, Real) else _found(answer)
    raise _refused(found, "a whole number from 0 on", field, method, of)


def amount_from(answer: object, field: str, method: str, of: object) -> float:
    """Return what a method has returned, if it is a finite number from 0 on; see `tensor_from` for the other arguments.

    Raises:
        ValueError: it is something else.
    """
    is_number = isinstance(answer, Real) and not isinstance(answer, bool)
    if is_number and math.isfinite(answer) and answer >= 0:
        return float(answer)
    raise _refused(str(answer) if is_number else _found(answer), "a finite number from 0 on", field, method, of)


def memory_from(answer: object, groups: int | None, field: str, of: object) -> dict[str, Tensor]:
    """Return what a method ``memory`` has returned, if it is tensors by name.

    >>> memory_from({"seen": 0}, None, "aggregation", of=range(3))
    Traceback (most recent call last):
    ...
    ValueError: aggregation: memory of range returns an int as 'seen'; allowed: a dict of tensors by name

    Args:
        answer: what it has returned.
        groups: length of the first dimension of each tensor; None if any shape is right.
        field: field of the config that has chosen the object, for the error.
        of: the object that the method belongs to.

    Raises:
        ValueError: it is something else.
    """
    allowed = "a dict of tensors by name" + ("" if groups is None else f", each with {count_text(groups, 'row')}")
    if not isinstance(answer, dict):
        raise _refused(_found(answer), allowed, field, "memory", of)
    for name, one in answer.items():
        if not isinstance(name, str):
            raise _refused(f"{_found(name)} as a name", allowed, field, "memory", of)
        if not isinstance(one, Tensor) or (groups is not None and one.shape[:1] != (groups,)):
            raise _refused(f"{_found(one)} as {name!r}", allowed, field, "memory", of)
    return answer


@contextmanager
def kept(memory: dict[str, Tensor], field: str, method: str, of: object) -> Iterator[None]:
    """Return a context for a method that changes the tensors of a memory in place; others would be lost.

    Args:
        memory: what is remembered, by name.
        field: field of the config that has chosen the object, for the error.
        method: name of the method.
        of: the object that the method belongs to.

    Raises:
        ValueError: at the end, if the memory has lost tensors, or has others than before.
    """
    before = dict(memory)
    yield
    for name in [*before, *memory]:
        if memory.get(name) is not before.get(name):
            raise ValueError(
                f"{field}: {method} of {type(of).__name__} puts another object into memory as {name!r}; allowed: "
                "what its method memory returned, changed in place, such as by copy_ or +="
            )


@contextmanager
def unchanged(*tensors: Tensor, field: str, method: str, of: object) -> Iterator[None]:
    """Return a context for a method that gets tensors that are others', and returns new ones.

    Args:
        tensors: the tensors.
        field: field of the config that has chosen the object, for the error.
        method: name of the method.
        of: the object that the method belongs to.

    Raises:
        ValueError: at the end, if one of the tensors was changed in place.
    """
    before = [own._version for own in tensors]
    yield
    if [own._version for own in tensors] != before:
        raise ValueError(
            f"{field}: {method} of {type(of).__name__} changes in place what it gets; allowed: a new tensor, such as "
            "of models.clone()"
        )


def _found(answer: object) -> str:
    """Return what an answer is, for a message."""
    return f"a tensor of shape {list(answer.shape)}" if isinstance(answer, Tensor) else kind_of(answer)


def _refused(found: str, allowed: str, field: str, method: str, of: object) -> ValueError:
    """Return the error that a method of an object returns something else than what is allowed."""
    return ValueError(f"{field}: {method} of {type(of).__name__} returns {found}; allowed: {allowed}")
