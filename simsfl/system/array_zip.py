"""Zip files of NumPy arrays, such as ``numpy.savez`` writes, that may be damaged or made to do harm.

Nothing is read before it is known that it is no larger than the file can hold, and nothing is unpickled.
"""

from __future__ import annotations

import io
import os
import weakref
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from simsfl.system.reading import open_regular

_READ_BYTES = 1 << 24
"""Most bytes that are read from the file at a time, and so the largest directory of its entries."""
_LOCAL_HEADER_BYTES = 30
"""Bytes before the content of an entry, without its name."""
_DEFLATE_RATIO = 1032
"""How many times larger than its compressed form an entry can be."""
_HEADER_BYTES = 10_240
"""Most bytes that are looked at for the header of an array; NumPy refuses longer ones."""
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
"""Functions that read the header of an array, by version of the format; structured arrays alone need a later one."""


class NotArraysError(ValueError):
    """What is wrong with a file, as the end of a sentence that begins with its path."""


@dataclass(frozen=True)
class Header:
    """What an array is, known before its numbers are read."""

    shape: tuple[int, ...]
    """Shape of the array."""
    dtype: np.dtype
    """Type of its numbers: booleans, integers or floats."""

    @property
    def nbytes(self) -> int:
        """Return how many bytes the numbers take."""
        return prod(self.shape) * self.dtype.itemsize


class ArrayZip:
    """A zip file of arrays whose directory of entries is read; arrays are read when they are asked for.

    Args:
        path: path of the file.
        compressed: whether its entries may be compressed.

    Raises:
        NotArraysError: the file is no whole zip file, or its entries overlap, are encrypted, or claim to be larger than
            they can be.
        OSError: the file cannot be opened, or is not a regular file.
    """

    def __init__(self, path: str | Path, *, compressed: bool):
        file = _Stepwise(open_regular(path).detach())
        weakref.finalize(self, file.close)
        with _converting("is not a whole .npz or zip file"):
            self._zip = zipfile.ZipFile(file)
        self._entries = {entry.filename: entry for entry in self._zip.infolist()}
        _check_entries(self._zip.infolist(), os.fstat(file.fileno()).st_size, compressed)

    @property
    def names(self) -> list[str]:
        """Return the names of the arrays, in the order of the file."""
        return [name.removesuffix(".npy") for name in self._entries if name.endswith(".npy")]

    def header(self, name: str) -> Header:
        """Return shape and type of the array of this name, without reading its numbers.

        Raises:
            NotArraysError: the file has no such array, or it is damaged, or does not consist of plain numbers.
        """
        with self._reading(f"{name}.npy") as member:
            return self._begun(name, member)[0]

    def array(self, name: str, accept: Callable[[Header], None] | None = None) -> np.ndarray:
        """Read and return the array of this name, in the byte order of this machine.

        Args:
            name: name of the array.
            accept: function that is called before the numbers are read, and raises a NotArraysError to refuse them.

        Raises:
            NotArraysError: as `header`, or the array is refused, or does not have its checksum.
            MemoryError: the array does not fit into memory.
        """
        with self._reading(f"{name}.npy") as member:
            header, fortran, start = self._begun(name, member)
            if accept:
                accept(header)
            content = np.empty(header.nbytes, np.uint8)
            content[: len(start)] = np.frombuffer(start, np.uint8)
            for at in range(len(start), len(content), _READ_BYTES):
                part = content[at : at + _READ_BYTES]
                member.readinto(part)  # an error is raised at the end if the checksum is another
        array = content.view(header.dtype).reshape(header.shape, order="F" if fortran else "C")
        return array.astype(header.dtype.newbyteorder("="), copy=False)

    def _begun(self, name: str, member: zipfile.ZipExtFile) -> tuple[Header, bool, bytes]:
        """Return the header of an array that is opened, whether its first index runs fastest, and its first bytes."""
        start = io.BytesIO(member.read(_HEADER_BYTES))
        version = np.lib.format.read_magic(start)
        if version not in _HEADERS:
            raise ValueError(f"version {version} of the format")
        try:
            shape, fortran, dtype = _HEADERS[version](start)
        except MemoryError:  # Python's parser says so of a text that is nested too deep
            raise ValueError("its header is nested too deep") from None
        if dtype.kind not in "biuf":
            raise ValueError(f"dtype {dtype}, which is not plain numbers")
        header = Header(shape, dtype)
        if min(shape, default=0) < 0 or start.tell() + header.nbytes != self._entries[f"{name}.npy"].file_size:
            raise ValueError(f"its shape {shape} is not that of its content")
        return header, fortran, start.read()

    def content(self, name: str, most: int) -> bytes:
        """Read and return an entry that is no array.

        Args:
            name: name of the entry.
            most: largest number of bytes that it may have.

        Raises:
            NotArraysError: there is no such entry, or it is damaged, or too large.
        """
        with self._reading(name) as member:
            if self._entries[name].file_size > most:
                raise ValueError(f"{self._entries[name].file_size:,} bytes, and {most:,} at most are possible")
            return member.read()

    @contextmanager
    def _reading(self, name: str) -> Iterator[zipfile.ZipExtFile]:
        """Open an entry; raise a NotArraysError if it does not exist, or if anything goes wrong with it inside."""
        if name not in self._entries:
            raise NotArraysError(f"lacks {name.removesuffix('.npy')}")
        with _converting(f"has an unusable {name.removesuffix('.npy')}"), self._zip.open(name) as member:
            yield member


class _Stepwise(io.BufferedReader):
    """A file that returns `_READ_BYTES` at most at a time, however many bytes a reader asks for."""

    def read(self, size: int | None = -1) -> bytes:
        return super().read(_READ_BYTES if size is None or size < 0 else min(size, _READ_BYTES))


@contextmanager
def _converting(what: str) -> Iterator[None]:
    """Raise errors of reading as a NotArraysError that says `what`, except for a lack of memory."""
    try:
        yield
    except (MemoryError, NotArraysError):
        raise
    except Exception as error:  # zipfile, zlib and NumPy raise errors of many types about damaged files
        raise NotArraysError(f"{what} ({error})") from error


def _check_entries(entries: list[zipfile.ZipInfo], size: int, compressed: bool) -> None:
    """Raise a NotArraysError if the entries of a zip file of `size` bytes cannot be what they claim to be."""
    if len({entry.filename for entry in entries}) < len(entries):
        raise NotArraysError("has two entries of the same name")
    end = 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        name = ascii(entry.filename)
        if entry.flag_bits & 1 or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise NotArraysError(f"has an entry {name} that is encrypted, or compressed by an unknown method")
        if entry.header_offset < end:
            raise NotArraysError(f"has entries that overlap, such as {name}")
        end = entry.header_offset + _LOCAL_HEADER_BYTES + len(entry.orig_filename) + entry.compress_size
        ratio = 1 if entry.compress_type == zipfile.ZIP_STORED else _DEFLATE_RATIO
        if end > size or entry.file_size > ratio * entry.compress_size:
            raise NotArraysError(f"has an entry {name} of {entry.file_size:,} bytes, which the file cannot hold")
        if entry.compress_type != zipfile.ZIP_STORED and not compressed:
            raise NotArraysError(f"has a compressed entry {name}")
