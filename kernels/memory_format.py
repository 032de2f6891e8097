"""Images from PyTorch's contiguous memory format to channels-last and back.

The values stay the same, and so does the shape ``[N, ch, H, W]``; what changes is which of them lie beside each other.
PyTorch's own copy between the two reads or writes single values on CUDA devices, which takes four times as long as
memory allows; ours moves square tiles. It has no gradient, so images that need one are left to PyTorch.
"""

import torch
from torch import Tensor

from simsfl.kernels import gpu
from simsfl.kernels.gpu import jit, tl

TILE = 64
"""Rows and columns of the matrices that one program turns over."""


def channels_last(images: Tensor) -> Tensor:
    """Return ``images [N, ch, H, W]`` in the channels-last memory format, copied only where they are in another."""
    if gpu.usable(images) and images.is_contiguous() and not images.requires_grad:
        return turned(images, torch.channels_last)
    return images.contiguous(memory_format=torch.channels_last)


def contiguous(images: Tensor) -> Tensor:
    """Return ``images [N, ch, H, W]`` in the contiguous memory format, copied only where they are in another."""
    if gpu.usable(images) and images.is_contiguous(memory_format=torch.channels_last) and not images.requires_grad:
        return turned(images, torch.contiguous_format)
    return images.contiguous()


def turned(images: Tensor, memory_format: torch.memory_format) -> Tensor:
    """Return the images in the other one of the two memory formats."""
    if images.is_contiguous(memory_format=memory_format):
        return images  # they are in both where they have one channel or one pixel
    n, ch, h, w = images.shape
    result = torch.empty_like(images, memory_format=memory_format)
    rows, columns = (ch, h * w) if memory_format == torch.channels_last else (h * w, ch)
    grid = (n, gpu.cdiv(rows, TILE), gpu.cdiv(columns, TILE))
    transpose_kernel[grid](images, result, rows, columns, TILE=TILE)
    return result


@jit
def transpose_kernel(x, y, ROWS, COLUMNS, TILE: tl.constexpr):
    """Write a tile of a matrix ``x [ROWS, COLUMNS]`` of each image into ``y [COLUMNS, ROWS]``."""
    image = tl.program_id(0).to(tl.int64) * ROWS * COLUMNS
    row = tl.program_id(1) * TILE + tl.arange(0, TILE)
    column = tl.program_id(2) * TILE + tl.arange(0, TILE)
    mask = (row < ROWS)[:, None] & (column < COLUMNS)[None, :]
    tile = tl.load(x + image + row[:, None] * COLUMNS + column[None, :], mask=mask)
    tl.store(y + image + column[:, None] * ROWS + row[None, :], tl.trans(tile), mask=tl.trans(mask))
