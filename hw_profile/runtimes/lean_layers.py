"""The layers of a client's network on NumPy alone: for one image, forwards and backwards.

Parameters lie outside, in one flat vector, in the order of `simsfl.models.flat.FlatModule`; a layer knows the places
of its own. What a layer needs to go back it puts on a tape, a list, and takes off it again; without one it keeps
nothing. All is float32 and ``[channels, height, width]``.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import prod
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

EPSILON = 1e-5
"""Added to the variance in GroupNorm, and to the standard deviation in weight standardisation."""
COLUMNS = 1 << 16
"""Numbers of which patches are laid out at a time: 256 KB, which a cache holds together with the weights."""


class Place(NamedTuple):
    """Where a parameter lies in a flat vector."""

    start: int
    shape: tuple[int, ...]

    def of(self, flat: np.ndarray) -> np.ndarray:
        """A view of it in ``flat [P]``."""
        return flat[self.start : self.start + prod(self.shape)].reshape(self.shape)


class Layout:
    """Hands out the places of a network's parameters, one behind the other.

    Attributes:
        shapes: of each parameter by name, in flat order.
        size: P, the number of parameters.
    """

    def __init__(self):
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.size = 0

    def place(self, name: str, *shape: int) -> Place:
        """The next one."""
        place = Place(self.size, shape)
        self.shapes[name] = shape
        self.size += prod(shape)
        return place


class ConvNorm:
    """Convolution with standardised weights, then GroupNorm in groups of four channels; padding for the same size.

    Args:
        first: nothing comes before it, so it need not know the gradient of its input.
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
        """``[I, H, W]`` to ``[O, H', W']``."""
        weight, _ = standardised(self.weight.of(flat))
        normal = convolved(x, weight, self.stride)
        groups = normal.reshape(self.groups, -1)
        groups -= groups.mean(axis=1, keepdims=True)
        inverse = 1.0 / np.sqrt(inner(groups, groups) / groups.shape[1] + EPSILON)
        groups *= inverse[:, None]
        if tape is not None:
            tape.append((x, normal, inverse))
        y = np.multiply(normal, self.scale.of(flat)[:, None, None], out=normal if tape is None else None)
        y += self.shift.of(flat)[:, None, None]
        return y

    def backward(self, flat: np.ndarray, grad_flat: np.ndarray, grad: np.ndarray, tape: list) -> np.ndarray | None:
        """From the gradient ``[O, H', W']`` to that of its input; adds that of its parameters.

        `grad` is contiguous, and overwritten.
        """
        x, normal, inverse = tape.pop()
        scale = self.scale.of(flat)
        rows, normal = grad.reshape(len(scale), -1), normal.reshape(len(scale), -1)
        plain, scaled = rows.sum(axis=1), inner(rows, normal)
        self.shift.of(grad_flat)[:] += plain
        self.scale.of(grad_flat)[:] += scaled
        # by way of the mean and of the deviation of each group; `normal` is needed no more, so it is overwritten
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

        weight, deviation = standardised(self.weight.of(flat))
        grad_weight = np.zeros_like(weight)
        add_weight_gradient(grad_weight, grad, x, self.stride)
        self.weight.of(grad_flat)[:] += standardised_backward(grad_weight, weight, deviation)
        return None if self.first else input_gradient(grad, weight, self.stride, x.shape)


class Convolution:
    """A plain convolution with a bias, padded for the same size."""

    def __init__(self, layout: Layout, name: str, inputs: int, outputs: int, kernel: int, stride: int):
        self.weight = layout.place(f"{name}.weight", outputs, inputs, kernel, kernel)
        self.bias = layout.place(f"{name}.bias", outputs)
        self.stride = stride

    def forward(self, flat: np.ndarray, x: np.ndarray, tape: list | None) -> np.ndarray:
        """``[I, H, W]`` to ``[O, H', W']``."""
        if tape is not None:
            tape.append(x)
        y = convolved(x, self.weight.of(flat), self.stride)
        y += self.bias.of(flat)[:, None, None]
        return y

    def backward(self, flat: np.ndarray, grad_flat: np.ndarray, grad: np.ndarray, tape: list) -> np.ndarray:
        """From the gradient ``[O, H', W']`` to that of its input; adds that of its parameters."""
        x = tape.pop()
        self.bias.of(grad_flat)[:] += grad.sum(axis=(1, 2))
        add_weight_gradient(self.weight.of(grad_flat), grad, x, self.stride)
        return input_gradient(grad, self.weight.of(flat), self.stride, x.shape)


class ReLU:
    """Negative numbers to zero, in place."""

    def forward(self, flat: np.ndarray, x: np.ndarray, tape: list | None) -> np.ndarray:
        """Of any shape."""
        if tape is not None:
            tape.append(x > 0.0)
        return np.maximum(x, 0.0, out=x)

    def backward(self, flat: np.ndarray, grad_flat: np.ndarray, grad: np.ndarray, tape: list) -> np.ndarray:
        """The gradient where the number was positive; an array of its own."""
        return grad * tape.pop()


class BasicBlock:
    """Two 3x3 convolutions with norms, a shortcut that projects where the shape changes, ReLUs.

    Args:
        residual: whether there is a shortcut.
    """

    def __init__(self, layout: Layout, name: str, inputs: int, outputs: int, stride: int, residual: bool):
        self.residual, self.projection, self.relu = residual, None, ReLU()
        if residual and (stride > 1 or inputs != outputs):
            self.projection = ConvNorm(layout, f"{name}.shortcut", inputs, outputs, 1, stride)
        self.conv1 = ConvNorm(layout, f"{name}.conv1", inputs, outputs, 3, stride)
        self.conv2 = ConvNorm(layout, f"{name}.conv2", outputs, outputs, 3, 1)

    def forward(self, flat: np.ndarray, x: np.ndarray, tape: list | None) -> np.ndarray:
        """``[I, H, W]`` to ``[O, H', W']``."""
        shortcut = self.projection.forward(flat, x, tape) if self.projection else x
        y = x
        for layer in (self.conv1, self.relu, self.conv2):
            y = layer.forward(flat, y, tape)
        if self.residual:
            y += shortcut
        return self.relu.forward(flat, y, tape)

    def backward(self, flat: np.ndarray, grad_flat: np.ndarray, grad: np.ndarray, tape: list) -> np.ndarray:
        """From the gradient ``[O, H', W']`` to that of its input; adds that of its parameters."""
        grad = self.relu.backward(flat, grad_flat, grad, tape)
        grad_x = grad.copy() if self.residual else grad
        for layer in (self.conv2, self.relu, self.conv1):
            grad_x = layer.backward(flat, grad_flat, grad_x, tape)
        if self.projection:
            grad = self.projection.backward(flat, grad_flat, grad, tape)
        if self.residual:
            grad_x += grad
        return grad_x


def inner(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Inner product of each row of ``[n, m]`` with that of the other: ``[n]``, with nothing laid out in between."""
    return np.einsum("nm,nm->n", a, b)


def standardised(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights ``[O, I, k, k]`` centred and divided by their unbiased standard deviation plus epsilon, and that sum.

    Of each output channel by itself (Qiao et al. 2019, eq. 2); the sum is ``[O, 1]``.
    """
    rows = weight.reshape(len(weight), -1)
    rows = rows - rows.mean(axis=1, keepdims=True)
    deviation = np.sqrt(inner(rows, rows) / (rows.shape[1] - 1))[:, None] + EPSILON
    rows /= deviation
    return rows.reshape(weight.shape), deviation


def standardised_backward(grad: np.ndarray, used: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """The gradient of the weights from that of the standardised ones, ``[O, I, k, k]``, which it overwrites."""
    rows, used = grad.reshape(len(grad), -1), used.reshape(len(used), -1)
    without = np.maximum(deviation - EPSILON, 1e-12)  # 0 where all weights of a channel are equal
    rows -= used * (inner(rows, used)[:, None] * deviation / (without * (rows.shape[1] - 1)))
    rows -= rows.mean(axis=1, keepdims=True)
    rows /= deviation
    return grad


def convolved(x: np.ndarray, weight: np.ndarray, stride: int) -> np.ndarray:
    """``[I, H, W]`` convolved with weights ``[O, I, k, k]``, k // 2 zeros around it: ``[O, H', W']``."""
    patches = padded_patches(x, weight.shape[2], stride)
    y = np.empty((len(weight), *patches.shape[3:]), np.float32)
    matrix = weight.reshape(len(weight), -1)
    for rows in strips(patches):
        np.matmul(matrix, columns(patches[..., rows, :]), out=y[:, rows].reshape(len(y), -1))
    return y


def add_weight_gradient(grad_weight: np.ndarray, grad: np.ndarray, x: np.ndarray, stride: int) -> None:
    """Add to ``[O, I, k, k]`` the gradient of the weights, from that of the result ``[O, H', W']`` and the input."""
    patches = padded_patches(x, grad_weight.shape[2], stride)
    for rows in strips(patches):
        part = grad[:, rows].reshape(len(grad), -1) @ columns(patches[..., rows, :]).T
        grad_weight += part.reshape(grad_weight.shape)


def input_gradient(grad: np.ndarray, weight: np.ndarray, stride: int, shape: tuple[int, ...]) -> np.ndarray:
    """The gradient of the input, of `shape` ``[I, H, W]``, from that of the result ``[O, H', W']``."""
    kernel = weight.shape[2]
    around, inside = framed(shape, kernel)
    patches = windows(around, kernel, stride)
    matrix = weight.reshape(len(weight), -1).T
    for rows in strips(patches):
        part = matrix @ grad[:, rows].reshape(len(grad), -1)
        part = part.reshape(patches[..., rows, :].shape)
        for i, j in product(range(kernel), repeat=2):  # patches overlap, but the same pixel of each is another one
            patches[:, i, j, rows] += part[:, i, j]
    return inside


def padded_patches(x: np.ndarray, kernel: int, stride: int) -> np.ndarray:
    """The patches ``[I, k, k, H', W']`` of ``[I, H, W]`` with k // 2 zeros around it."""
    around, inside = framed(x.shape, kernel)
    inside[:] = x
    return windows(around, kernel, stride)


def framed(shape: tuple[int, ...], kernel: int) -> tuple[np.ndarray, np.ndarray]:
    """Zeros, of `shape` ``[I, H, W]`` and k // 2 more on each side, and the view inside of that shape."""
    channels, height, width = shape
    edge = kernel // 2
    around = np.zeros((channels, height + 2 * edge, width + 2 * edge), np.float32)
    return around, around[:, edge : edge + height, edge : edge + width]


def windows(x: np.ndarray, kernel: int, stride: int) -> np.ndarray:
    """The k x k patches of ``[I, H, W]`` as a view ``[I, k, k, H', W']``, to be written to as well."""
    channels, height, width = x.shape
    counts = ((side - kernel) // stride + 1 for side in (height, width))
    channel, row, column = x.strides
    return as_strided(x, (channels, kernel, kernel, *counts), (channel, row, column, stride * row, stride * column))


def strips(patches: np.ndarray) -> Iterator[slice]:
    """Rows of the result, as many at a time as there are `COLUMNS` for."""
    height = patches.shape[3]
    rows = max(1, COLUMNS * height // patches.size)
    for top in range(0, height, rows):
        yield slice(top, top + rows)


def columns(patches: np.ndarray) -> np.ndarray:
    """Patches ``[I, k, k, R, W']`` laid out as the columns of a matrix ``[I k k, R W']``."""
    return patches.reshape(prod(patches.shape[:3]), -1)
