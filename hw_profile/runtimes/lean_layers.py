"""The layers of a client's network on NumPy alone, for one image, forwards and backwards.

Parameters lie in one flat vector outside of the layers, in the order of `simsfl.models.flat.FlatModule`; a layer knows
the places of its own. In the forward pass a layer appends what its backward pass needs to a tape, a list, from which
the backward pass takes it again; without a tape it keeps nothing. All arrays are float32, and images are ``[channels,
height, width]``.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import prod
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

_EPSILON = 1e-5
"""Number added to the variance in GroupNorm, and to the standard deviation in weight standardisation."""
_COLUMNS = 1 << 16
"""Numbers of patches that are laid out at a time: 256 KB, which fit into a cache together with the weights."""


class _Place(NamedTuple):
    """The place of a parameter in a flat vector."""

    start: int
    shape: tuple[int, ...]

    def of(self, flat: np.ndarray) -> np.ndarray:
        """Return a view of the parameter in ``flat [P]``."""
        return flat[self.start : self.start + prod(self.shape)].reshape(self.shape)


class Layout:
    """Assigns places to a network's parameters, one after the other.

    Attributes:
        shapes: shape of each parameter by name, in flat order.
        size: P, the number of values of all parameters.
    """

    def __init__(self):
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.size = 0

    def place(self, name: str, *shape: int) -> _Place:
        """Return the next place, for a parameter of the given name and shape."""
        place = _Place(self.size, shape)
        self.shapes[name] = shape
        self.size += prod(shape)
        return place


class ConvNorm:
    """Convolution with standardised weights and "same" padding, then GroupNorm with groups of four channels.

    Args:
        layout: assigns the places of the parameters.
        name: prefix of the parameters' names.
        inputs: number of input channels I.
        outputs: number of output channels O.
        kernel: side k of the kernel.
        stride: stride in both directions.
        first: whether this is the network's first layer, whose input needs no gradient.
    """

    def __init__(
        self, layout: Layout, name: str, inputs: int, outputs: int, kernel: int, stride: int, *, first: bool = False
    ):
        self.weight = layout.place(f"{name}.conv.weight", outputs, inputs, kernel, kernel)
        self.scale = layout.place(f"{name}.norm.weight", outputs)
        self.shift = layout.place(f"{name}.norm.bias", outputs)
        self.groups = max(outputs // 4, 1)
        self.stride, self.first = stride, first

    def forward(self, flat: np.ndarray, x: np.ndarray, tape: list | None) -> np.ndarray:
        """Return the result ``[O, H', W']`` for ``x [I, H, W]``; without a `tape` nothing is kept."""
        weight, _ = _standardised(self.weight.of(flat))
        normal = _convolved(x, weight, self.stride)
        groups = normal.reshape(self.groups, -1)
        groups -= groups.mean(axis=1, keepdims=True)
        inverse = 1.0 / np.sqrt(_inner(groups, groups) / groups.shape[1] + _EPSILON)
        groups *= inverse[:, None]
        if tape is not None:
            tape.append((x, normal, inverse))
        y = np.multiply(normal, self.scale.of(flat)[:, None, None], out=normal if tape is None else None)
        y += self.shift.of(flat)[:, None, None]
        return y

    def backward(self, flat: np.ndarray, grad_flat: np.ndarray, grad: np.ndarray, tape: list) -> np.ndarray | None:
        """Return the gradient of the input, and add that of the parameters to ``grad_flat [P]``.

        Args:
            flat: ``[P]`` parameters.
            grad_flat: ``[P]`` gradient of the parameters, which is added to.
            grad: ``[O, H', W']`` gradient of the result; it has to be contiguous, and is overwritten.
            tape: where `forward` has put what is needed here.

        Returns:
            ``[I, H, W]``, or None for the first layer.
        """
        x, normal, inverse = tape.pop()
        scale = self.scale.of(flat)
        rows, normal = grad.reshape(len(scale), -1), normal.reshape(len(scale), -1)
        plain, scaled = rows.sum(axis=1), _inner(rows, normal)
        self.shift.of(grad_flat)[:] += plain
        self.scale.of(grad_flat)[:] += scaled
        # through the mean and the deviation of each group; `normal` is overwritten, since it is not needed any more
        rows *= (scale * inverse.repeat(len(scale) // self.groups))[:, None]
        through_mean, through_deviation = (
            ((scale * total).reshape(self.groups, -1).sum(axis=1) * inverse * self.groups / grad.size)[:, None]
            for total in (plain, scaled)
        )
        groups, normal = grad.reshape(self.groups, -1), normal.reshape(self.groups, -1)
        groups -= through_mean
        normal *= through_deviation
        groups -= normal
        del normal

        weight, deviation = _standardised(self.weight.of(flat))
        grad_weight = np.zeros_like(weight)
        _add_weight_gradient(grad_weight, grad, x, self.stride)
        self.weight.of(grad_flat)[:] += _standardised_backward(grad_weight, weight, deviation)
        return None if self.first else _input_gradient(grad, weight, self.stride, x.shape)


class Convolution:
    """A plain convolution with a bias and "same" padding; the arguments are those of `ConvNorm`."""

    def __init__(self, layout: Layout, name: str, inputs: int, outputs: int, kernel: int, stride: int):
        self.weight = layout.place(f"{name}.weight", outputs, inputs, kernel, kernel)
        self.bias = layout.place(f"{name}.bias", outputs)
        self.stride = stride

    def forward(self, flat: np.ndarray, x: np.ndarray, tape: list | None) -> np.ndarray:
        """Return the result ``[O, H', W']`` for ``x [I, H, W]``; without a `tape` nothing is kept."""
        if tape is not None:
            tape.append(x)
        y = _convolved(x, self.weight.of(flat), self.stride)
        y += self.bias.of(flat)[:, None, None]
        return y

    def backward(self, flat: np.ndarray, grad_flat: np.ndarray, grad: np.ndarray, tape: list) -> np.ndarray:
        """Return the input's gradient, and add the parameters' to ``grad_flat [P]``; see `ConvNorm.backward`."""
        x = tape.pop()
        self.bias.of(grad_flat)[:] += grad.sum(axis=(1, 2))
        _add_weight_gradient(self.weight.of(grad_flat), grad, x, self.stride)
        return _input_gradient(grad, self.weight.of(flat), self.stride, x.shape)


class ReLU:
    """Sets negative numbers to zero, in place."""

    def forward(self, flat: np.ndarray, x: np.ndarray, tape: list | None) -> np.ndarray:
        """Return `x`, an array of any shape, with negative numbers set to zero."""
        if tape is not None:
            tape.append(x > 0.0)
        return np.maximum(x, 0.0, out=x)

    def backward(self, flat: np.ndarray, grad_flat: np.ndarray, grad: np.ndarray, tape: list) -> np.ndarray:
        """Return the gradient of the input, a new array: `grad` where the input was positive, else zero."""
        return grad * tape.pop()


class BasicBlock:
    """Two 3x3 convolutions with norms and ReLUs, and a shortcut that projects where the shape changes.

    Args:
        layout: assigns the places of the parameters.
        name: prefix of the parameters' names.
        inputs: number of input channels I.
        outputs: number of output channels O.
        stride: stride of the first convolution, and of the projection.
        residual: whether there is a shortcut.
    """

    def __init__(self, layout: Layout, name: str, inputs: int, outputs: int, stride: int, residual: bool):
        self.residual, self.projection, self.relu = residual, None, ReLU()
        if residual and (stride > 1 or inputs != outputs):
            self.projection = ConvNorm(layout, f"{name}.shortcut", inputs, outputs, 1, stride)
        self.conv1 = ConvNorm(layout, f"{name}.conv1", inputs, outputs, 3, stride)
        self.conv2 = ConvNorm(layout, f"{name}.conv2", outputs, outputs, 3, 1)

    def forward(self, flat: np.ndarray, x: np.ndarray, tape: list | None) -> np.ndarray:
        """Return the result ``[O, H', W']`` for ``x [I, H, W]``; without a `tape` nothing is kept."""
        shortcut = self.projection.forward(flat, x, tape) if self.projection else x
        y = x
        for layer in (self.conv1, self.relu, self.conv2):
            y = layer.forward(flat, y, tape)
        if self.residual:
            y += shortcut
        return self.relu.forward(flat, y, tape)

    def backward(self, flat: np.ndarray, grad_flat: np.ndarray, grad: np.ndarray, tape: list) -> np.ndarray:
        """Return the input's gradient, and add the parameters' to ``grad_flat [P]``; see `ConvNorm.backward`."""
        grad = self.relu.backward(flat, grad_flat, grad, tape)
        grad_x = grad.copy() if self.residual else grad
        for layer in (self.conv2, self.relu, self.conv1):
            grad_x = layer.backward(flat, grad_flat, grad_x, tape)
        if self.projection:
            grad = self.projection.backward(flat, grad_flat, grad, tape)
        if self.residual:
            grad_x += grad
        return grad_x


def _inner(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the inner products ``[n]`` of the rows of two arrays ``[n, m]``, without an array in between."""
    return np.einsum("nm,nm->n", a, b)


def _standardised(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return standardised weights ``[O, I, k, k]`` and what each output channel was divided by, ``[O, 1]``.

    The weights of each output channel are centred, and divided by their unbiased standard deviation plus epsilon (Qiao
    et al. 2019, eq. 2).
    """
    rows = weight.reshape(len(weight), -1)
    rows = rows - rows.mean(axis=1, keepdims=True)
    deviation = np.sqrt(_inner(rows, rows) / (rows.shape[1] - 1))[:, None] + _EPSILON
    rows /= deviation
    return rows.reshape(weight.shape), deviation


def _standardised_backward(grad: np.ndarray, used: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """Return the gradient ``[O, I, k, k]`` of the weights, from that of the standardised weights.

    Args:
        grad: ``[O, I, k, k]`` gradient of the standardised weights, which is overwritten.
        used: ``[O, I, k, k]`` standardised weights.
        deviation: ``[O, 1]`` divisors, as `_standardised` returns them.
    """
    rows, used = grad.reshape(len(grad), -1), used.reshape(len(used), -1)
    without = np.maximum(deviation - _EPSILON, 1e-12)  # 0 where all weights of a channel are equal
    rows -= used * (_inner(rows, used)[:, None] * deviation / (without * (rows.shape[1] - 1)))
    rows -= rows.mean(axis=1, keepdims=True)
    rows /= deviation
    return grad


def _convolved(x: np.ndarray, weight: np.ndarray, stride: int) -> np.ndarray:
    """Return ``x [I, H, W]``, padded with k // 2 zeros, convolved with ``weight [O, I, k, k]``: ``[O, H', W']``."""
    patches = _padded_patches(x, weight.shape[2], stride)
    y = np.empty((len(weight), *patches.shape[3:]), np.float32)
    matrix = weight.reshape(len(weight), -1)
    for rows in _strips(patches):
        np.matmul(matrix, _columns(patches[..., rows, :]), out=y[:, rows].reshape(len(y), -1))
    return y


def _add_weight_gradient(grad_weight: np.ndarray, grad: np.ndarray, x: np.ndarray, stride: int) -> None:
    """Add the gradient of the weights to ``grad_weight [O, I, k, k]``.

    Args:
        grad_weight: ``[O, I, k, k]``, which is added to.
        grad: ``[O, H', W']`` gradient of the convolution's result.
        x: ``[I, H, W]`` input of the convolution.
        stride: stride of the convolution.
    """
    patches = _padded_patches(x, grad_weight.shape[2], stride)
    for rows in _strips(patches):
        part = grad[:, rows].reshape(len(grad), -1) @ _columns(patches[..., rows, :]).T
        grad_weight += part.reshape(grad_weight.shape)


def _input_gradient(grad: np.ndarray, weight: np.ndarray, stride: int, shape: tuple[int, ...]) -> np.ndarray:
    """Return the gradient of the convolution's input, from the gradient ``grad [O, H', W']`` of its result.

    Args:
        grad: ``[O, H', W']``.
        weight: ``[O, I, k, k]``.
        stride: stride of the convolution.
        shape: the input's shape ``[I, H, W]``, which is that of the result.
    """
    kernel = weight.shape[2]
    around, inside = _framed(shape, kernel)
    patches = _windows(around, kernel, stride)
    matrix = weight.reshape(len(weight), -1).T
    for rows in _strips(patches):
        part = matrix @ grad[:, rows].reshape(len(grad), -1)
        part = part.reshape(patches[..., rows, :].shape)
        for i, j in product(range(kernel), repeat=2):  # patches overlap, but their (i, j) pixels are distinct
            patches[:, i, j, rows] += part[:, i, j]
    return inside


def _padded_patches(x: np.ndarray, kernel: int, stride: int) -> np.ndarray:
    """Return the patches ``[I, k, k, H', W']`` of ``x [I, H, W]``, padded with k // 2 zeros."""
    around, inside = _framed(x.shape, kernel)
    inside[:] = x
    return _windows(around, kernel, stride)


def _framed(shape: tuple[int, ...], kernel: int) -> tuple[np.ndarray, np.ndarray]:
    """Return zeros of `shape` ``[I, H, W]`` with a frame of k // 2 zeros around them, and the view inside the frame."""
    channels, height, width = shape
    edge = kernel // 2
    around = np.zeros((channels, height + 2 * edge, width + 2 * edge), np.float32)
    return around, around[:, edge : edge + height, edge : edge + width]


def _windows(x: np.ndarray, kernel: int, stride: int) -> np.ndarray:
    """Return a writable view ``[I, k, k, H', W']`` of the k x k patches of ``x [I, H, W]``."""
    channels, height, width = x.shape
    counts = ((side - kernel) // stride + 1 for side in (height, width))
    channel, row, column = x.strides
    return as_strided(x, (channels, kernel, kernel, *counts), (channel, row, column, stride * row, stride * column))


def _strips(patches: np.ndarray) -> Iterator[slice]:
    """Yield slices of the result's rows, each as large as `_COLUMNS` allows."""
    height = patches.shape[3]
    rows = max(1, _COLUMNS * height // patches.size)
    for top in range(0, height, rows):
        yield slice(top, top + rows)


def _columns(patches: np.ndarray) -> np.ndarray:
    """Return ``patches [I, k, k, R, W']`` laid out as the columns of a matrix ``[I k k, R W']``."""
    return patches.reshape(prod(patches.shape[:3]), -1)
