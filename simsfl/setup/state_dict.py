"""State dicts of files that others made; nothing in them is executed."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simsfl.system.array_zip import ArrayZip
from simsfl.system.tensor_file import open_tensors

_ELSE_BYTES = 1 << 28
"""Bytes of a file besides its weights, at most: of names, and of weights of a network that is not the one asked for."""


def read_state_dict(file: Path, most: int, field: str) -> dict[str, Tensor]:
    """Read a state dict that ``torch.save`` or safetensors wrote, alone or among other things, such as an epoch.

    Args:
        file: path of the file.
        most: bytes that its weights take at most; other content may take `_ELSE_BYTES`.
        field: name of the flag that it is given by.

    Returns:
        Tensors by name, on the CPU.

    Raises:
        ValueError: the file is missing or damaged, or holds something other than a state dict of finite numbers.
    """
    if not file.is_file():
        raise ValueError(f"{field}: there is no file {file}; allowed: a file that torch.save or safetensors wrote")
    if (size := file.stat().st_size) > most + _ELSE_BYTES:
        raise ValueError(
            f"{field}: {file} has {size:,} bytes; allowed: {most + _ELSE_BYTES:,} at most for this network"
        )
    try:
        given = _tensors(file) if file.suffix == ".safetensors" else _unpickled(file)
    except Exception as error:  # a damaged or foreign file can raise anything
        raise ValueError(f"{field}: {file} is damaged, or holds more than tensors; allowed: a state dict") from error
    inside = [own for own in given.values() if _is_state_dict(own)] if isinstance(given, dict) else []
    given = inside[0] if len(inside) == 1 else given
    if not _is_state_dict(given):
        raise ValueError(f"{field}: {file} holds no state dict, or several; allowed: tensors by name")
    for name, tensor in given.items():
        if not isinstance(name, str):
            raise ValueError(f"{field}: {file} has a name of type {type(name).__name__}; allowed: texts")
        plain = tensor.layout is torch.strided and not (tensor.is_quantized or tensor.is_complex() or tensor.is_meta)
        if plain and tensor.nbytes > most:  # strides of 0 repeat a few numbers, which takes no room in the file
            size = f"{tensor.nbytes:,} bytes in {name}"
            raise ValueError(f"{field}: {file} has {size}; allowed: {most:,} at most for this network")
        if not plain or not tensor.isfinite().all():
            raise ValueError(f"{field}: {file} holds something other than finite numbers in {name}; allowed: weights")
    return given


def _is_state_dict(value: Any) -> bool:
    """Return whether a value is a dict of tensors, and not empty."""
    return isinstance(value, dict) and bool(value) and all(isinstance(own, Tensor) for own in value.values())


def _tensors(file: Path) -> dict[str, Tensor]:
    """Return what a safetensors file holds."""
    with open_tensors(file) as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - it is no dictionary


def _unpickled(file: Path) -> Any:
    """Return what a file of torch.save holds, if that is tensors in containers."""
    if zipfile.is_zipfile(file):
        ArrayZip(file, compressed=False)  # torch would unpack what is compressed, however large it is
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about foreign pickles; the errors above say more
        return torch.load(file, map_location="cpu", weights_only=True)
