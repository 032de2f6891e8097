"""Conversion of images from PyTorch's contiguous memory format to channels-last and back.

The values and the shape ``[N, ch, H, W]`` stay the same; only the order of the values in memory changes. PyTorch's own
copy between the two formats reads or writes single values on CUDA devices, which takes four times as long as memory
bandwidth allows. Ours moves square tiles. It has no gradient, so images that need one are left to PyTorch.
"""

import torch
from torch import Tensor

from simsfl.kernels import gpu
from simsfl.kernels.gpu import jit, tl

_TILE = 64
"""Rows and columns of the tile that one program transposes."""


def channels_last(images: Tensor) -> Tensor:
    """Return ``images [N, ch, H, W]`` in the channels-last memory format, copied only if they are in another format."""
    if gpu.usable(images) and images.is_contiguous() and not images.requires_grad:
        return turned(images, torch.channels_last)
    return images.contiguous(memory_format=torch.channels_last)


def contiguous(images: Tensor) -> Tensor:
    """Return ``images [N, ch, H, W]`` in the contiguous memory format, copied only if they are in another format."""
    if gpu.usable(images) and images.is_contiguous(memory_format=torch.channels_last) and not images.requires_grad:
        return turned(images, torch.contiguous_format)
    return images.contiguous()


def turned(images: Tensor, memory_format: torch.memory_format) -> Tensor:
    """Return ``images [N, ch, H, W]`` in `memory_format`; they have to be in the other one of the two formats.

    Args:
        images: Images on a device where Triton runs.
        memory_format: `torch.channels_last` or `torch.contiguous_format`.
    """
    if images.is_contiguous(memory_format=memory_format):
        return images  # images of one channel or one pixel are in both formats
    n, ch, h, w = images.shape
    result = torch.empty_like(images, memory_format=memory_format)
    rows, columns = (ch, h * w) if memory_format == torch.channels_last else (h * w, ch)
    grid = (n, gpu.cdiv(rows, _TILE), gpu.cdiv(columns, _TILE))
    _transpose_kernel[grid](images, result, rows, columns, TILE=_TILE)
    return result


@jit
def _transpose_kernel(x, y, ROWS, COLUMNS, TILE: tl.constexpr):
    """Write a tile of one image's matrix ``x [ROWS, COLUMNS]``, transposed, into ``y [COLUMNS, ROWS]``."""
    image = tl.program_id(0).to(tl.int64) * ROWS * COLUMNS
    row = tl.program_id(1) * TILE + tl.arange(0, TILE)
    column = tl.program_id(2) * TILE + tl.arange(0, TILE)
    mask = (row < ROWS)[:, None] & (column < COLUMNS)[None, :]
    tile = tl.load(x + image + row[:, None] * COLUMNS + column[None, :], mask=mask)
    tl.store(y + image + column[:, None] * ROWS + row[None, :], tl.trans(tile), mask=tl.trans(mask))
