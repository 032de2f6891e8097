"""Zip files of arrays: whole ones are read as NumPy reads them, and nothing that a hostile one claims is believed."""

import io
import os
import random
import zipfile

import numpy as np
import pytest

from simsfl.system.array_zip import ArrayZip, NotArraysError

ARRAYS = {
    "float": np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3),
    "big-endian": np.arange(6, dtype=">i4"),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(3, 2)),
    "bool": np.array(True),
    "empty": np.zeros((0, 5), np.int64),
    "deep/er": np.arange(100_000, dtype=np.uint8),
}


def read(path, *, compressed=True):
    file = ArrayZip(path, compressed=compressed)
    return {name: file.array(name) for name in file.names}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_are_numpys(save, tmp_path):
    save(tmp_path / "x.npz", **ARRAYS)
    file = ArrayZip(tmp_path / "x.npz", compressed=True)
    assert file.names == list(ARRAYS)
    for name, expected in ARRAYS.items():
        header = file.header(name)
        assert (header.shape, header.dtype, header.nbytes) == (expected.shape, expected.dtype, expected.nbytes)
        found = file.array(name)
        np.testing.assert_array_equal(found, expected)
        assert found.dtype.isnative


def test_later_versions_of_the_format(tmp_path):
    for version in ((1, 0), (2, 0)):
        content = io.BytesIO()
        np.lib.format.write_array(content, ARRAYS["float"], version=version)
        with zipfile.ZipFile(tmp_path / "x.npz", "w") as file:
            file.writestr("float.npy", content.getvalue())
        np.testing.assert_array_equal(read(tmp_path / "x.npz")["float"], ARRAYS["float"])


def refused(path, words, **options):
    with pytest.raises(NotArraysError, match=words):
        read(path, **options)


def array(shape, descr="'|u1'", content=b"", version=b"\1\0"):
    """Return the bytes of an array whose header may say anything."""
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}".encode()
    return b"\x93NUMPY" + version + len(header).to_bytes(2 if version == b"\1\0" else 4, "little") + header + content


HOSTILE = {
    "8 TB": (array("(8000000000000,)"), "its shape"),
    "8 TB in no bytes": (array("(8000000000000,)", "'V0'"), "plain numbers"),
    "other shape": (array("(3,)", content=b"ab"), "its shape"),
    "negative shape": (array("(-1, -2)", content=b"ab"), "its shape"),
    "shape of floats": (array("(2.0,)", content=b"ab"), "shape is not valid"),
    "pickled": (array("(1,)", "'|O'", b"x" * 8), "plain numbers"),
    "records": (array("(1,)", "[('a', '|u1')]", b"x"), "plain numbers"),
    "text": (array("(1,)", "'<U1'", b"abcd"), "plain numbers"),
    "a type that is none": (array("(1,)", "'|q9'", b"x"), "dtype"),
    "nested": (array("(" * 9000), "unusable x"),
    "negated": (array("-" * 9000 + "1"), "unusable x"),
    "a header of 4 GB": (b"\x93NUMPY\2\0\xff\xff\xff\xff{", "unusable x"),
    "a header of 60 KB": (array("(1,)" + " " * 60_000, content=b"x"), "unusable x"),
    "version 9": (array("(1,)", content=b"x", version=b"\x09\0"), r"version \(9, 0\)"),
    "no array": (b"hello", "unusable x"),
    "nothing": (b"", "unusable x"),
}


@pytest.mark.parametrize(("content", "words"), HOSTILE.values(), ids=HOSTILE)
def test_headers_are_checked_before_arrays_are_read(content, words, tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as file:
        file.writestr("x.npy", content)
    refused(tmp_path / "x.npz", words)


def directory(path):
    """Return the bytes of a zip file, and where its directory of entries begins."""
    content = bytearray(path.read_bytes())
    return content, content.index(b"PK\1\2")


def put(content, at, value, size):
    content[at : at + size] = value.to_bytes(size, "little")


def test_entries_that_the_file_cannot_hold(tmp_path):
    path = tmp_path / "x.npz"
    for save, words in ((np.savez, "4,294,967,290 bytes"), (np.savez_compressed, "4,294,967,290 bytes")):
        save(path, x=ARRAYS["float"])
        content, start = directory(path)
        put(content, start + 24, 2**32 - 6, 4)  # the size that it says to have
        path.write_bytes(content)
        refused(path, words)
    np.savez(path, x=ARRAYS["float"])
    content, start = directory(path)
    for at in (20, 24):
        put(content, start + at, 2**31, 4)
    path.write_bytes(content)
    refused(path, "cannot hold")


def test_entries_that_overlap(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, a=ARRAYS["float"], b=ARRAYS["float"])
    content, start = directory(path)
    put(content, content.index(b"PK\1\2", start + 1) + 42, 0, 4)  # where the second begins
    path.write_bytes(content)
    refused(path, "overlap")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_entries_that_nobody_writes(tmp_path):
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w") as file:
        for _ in range(2):
            file.writestr("x.npy", array("(1,)", content=b"x"))
    refused(path, "same name")
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        with zipfile.ZipFile(path, "w", method) as file:
            file.writestr("x.npy", array("(1,)", content=b"x"))
        refused(path, "unknown method")
    np.savez(path, x=ARRAYS["float"])
    content, start = directory(path)
    put(content, start + 8, 1, 2)
    path.write_bytes(content)
    refused(path, "encrypted")
    np.savez_compressed(path, x=ARRAYS["float"])
    refused(path, "compressed entry", compressed=False)


def test_a_directory_of_entries_without_end_is_not_read(tmp_path):
    """A file with holes says that its last 2 GB are the directory."""
    with (tmp_path / "x.npz").open("wb") as file:
        file.truncate(1 << 32)
        file.seek(0, os.SEEK_END)
        size = (1 << 31).to_bytes(4, "little")
        file.write(b"PK\5\6\0\0\0\0\1\0\1\0" + size + size + b"\0\0")
    refused(tmp_path / "x.npz", "not a whole")


def test_content_is_bounded(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("x.json", b" " * 10_000)
    file = ArrayZip(tmp_path / "x.npz", compressed=True)
    assert len(file.content("x.json", 10_000)) == 10_000
    with pytest.raises(NotArraysError, match="9,999 at most"):
        file.content("x.json", 9_999)
    with pytest.raises(NotArraysError, match="lacks y"):
        file.content("y", 9)


def test_damage_anywhere_is_an_error_of_one_kind(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, a=ARRAYS["float"], b=ARRAYS["fortran"])
    whole, rng = path.read_bytes(), random.Random(0)
    for _ in range(1000):
        content = bytearray(whole)
        for _ in range(rng.choice((1, 3))):
            content[rng.randrange(len(content))] = rng.randrange(256)
        path.write_bytes(content[: rng.choice((len(content), rng.randrange(len(content))))])
        try:
            read(path)
        except NotArraysError as error:
            assert str(error)  # noqa: PT017  (it need not be raised: names of entries have no checksum)
